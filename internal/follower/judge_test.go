package follower

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/pgbough/pgbough"
	"github.com/pgbough/pgbough/internal/postgres"
	"github.com/pgbough/pgbough/internal/replication"
)

// Only what the log says of the present break counts.
func TestJudgeForgetsWhatWasMended(t *testing.T) {
	t.Chdir(t.TempDir())
	relay, err := replication.StartRelay(t.Context(), replication.RelayOptions{
		Dir: t.TempDir(), Log: slog.New(slog.DiscardHandler),
		Dial: func(context.Context) (*pgconn.HijackedConn, error) { return nil, errors.New("no way") },
	})
	if err != nil {
		t.Fatal(err)
	}
	defer relay.Cut()
	if err := os.Mkdir("log", 0o755); err != nil {
		t.Fatal(err)
	}
	f, s := &Follower{}, &Standby{Server: &postgres.Server{}, Relay: relay}
	line := "FATAL:  could not receive data from WAL stream: ERROR:  requested WAL segment 000000010000000000000001 " + walRemoved + "\n"
	write := func(text string) {
		file, err := os.OpenFile("log/postgres.log", os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
		if err == nil {
			_, err = file.WriteString(text)
		}
		if err := errors.Join(err, file.Close()); err != nil {
			t.Fatal(err)
		}
	}
	for i, step := range []struct {
		logged    string
		receiving bool
		want      pgbough.FollowerState
	}{
		{line, false, pgbough.FollowerBroken},
		{"LOG:  started streaming WAL\n", true, pgbough.FollowerStreaming},
		{"FATAL:  could not connect\n", false, pgbough.FollowerDisconnected},
		{line, false, pgbough.FollowerBroken},
	} {
		write(step.logged)
		if got, reason := f.judge(s, Position{Receiving: step.receiving}); got != step.want {
			t.Errorf("step %d: %s, %q", i, got, reason)
		}
	}
}

// While production cannot be asked, a follower is as old as production's last answer.
func TestLagWithoutProduction(t *testing.T) {
	at := time.Now()
	f := &Follower{asked: []sample{{at.Add(-time.Second), 100}, {at, 200}}}
	for after, want := range map[time.Duration]float64{0: 0, 10 * time.Second: 10} {
		if got := f.lag(200, at.Add(after)); got != want {
			t.Errorf("%s after the last answer: %v s", after, got)
		}
	}
}
