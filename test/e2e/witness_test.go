package e2e

import (
	"context"
	"sync"
	"testing"
	"time"

	"github.com/pgbough/pgbough/internal/pgtest"
)

// witness is production's own word on what it pays for being followed (promise
// 7), asked all the time.
type witness struct {
	mu   sync.Mutex
	most bill
	n    int
}

// bill is the most that was seen at one time. What a query holds while it runs
// is not counted, only what is held for more than a second.
type bill struct{ sessions, walsenders, snapshots, locks int }

const question = `
	WITH ours AS (SELECT *, xact_start < clock_timestamp() - interval '1 s' AS long FROM pg_stat_activity WHERE usename = 'follower')
	SELECT (SELECT count(*) FROM ours WHERE backend_type <> 'walsender'),
	       (SELECT count(*) FROM ours WHERE backend_type = 'walsender'),
	       (SELECT count(*) FROM ours WHERE long AND (backend_xmin IS NOT NULL OR backend_xid IS NOT NULL))
	     + (SELECT count(*) FROM pg_stat_replication WHERE backend_xmin IS NOT NULL OR sync_state <> 'async')
	     + (SELECT count(*) FROM pg_replication_slots WHERE xmin IS NOT NULL OR catalog_xmin IS NOT NULL),
	       (SELECT count(*) FROM pg_locks JOIN ours USING (pid) WHERE long)`

// watch asks until the test ends.
func watch(t *testing.T, p *pgtest.Server) *witness {
	t.Helper()
	conn := p.Conn(t, "postgres")
	w := &witness{}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		ticker := time.NewTicker(50 * time.Millisecond)
		defer ticker.Stop()
		sessions := 0 // of the moment before
		for {
			select {
			case <-ctx.Done():
				return
			case <-ticker.C:
			}
			var b bill
			was := sessions
			if err := conn.QueryRow(context.Background(), question).Scan(&b.sessions, &b.walsenders, &b.snapshots, &b.locks); err != nil {
				t.Errorf("ask production what it pays: %v", err)
				return
			}
			// One that was closed just now ends a moment later.
			sessions, b.sessions = b.sessions, min(b.sessions, was)
			w.mu.Lock()
			w.n++
			w.most = bill{max(w.most.sessions, b.sessions), max(w.most.walsenders, b.walsenders), max(w.most.snapshots, b.snapshots), max(w.most.locks, b.locks)}
			w.mu.Unlock()
		}
	}()
	t.Cleanup(func() {
		cancel()
		<-ended
	})
	return w
}

// hold checks what was seen since the last call.
func (w *witness) hold(t *testing.T, during string, sessions, walsenders int) {
	t.Helper()
	w.mu.Lock()
	defer w.mu.Unlock()
	t.Logf("%s: %+v in %d moments", during, w.most, w.n)
	want := bill{sessions: sessions, walsenders: walsenders}
	if w.most.sessions > want.sessions || w.most.walsenders > want.walsenders || w.most.snapshots > 0 || w.most.locks > 0 {
		t.Errorf("production paid %+v for %s, want at most %+v", w.most, during, want)
	}
	if w.n < 20 || w.most.walsenders == 0 {
		t.Errorf("there is less to see during %s than there should be: %d moments, %d walsenders", during, w.n, w.most.walsenders)
	}
	w.n, w.most = 0, bill{}
}

// schemaOf is a fingerprint of all that is defined in production. What the tests
// themselves make there is not in it.
func schemaOf(t *testing.T, p *pgtest.Server) string {
	t.Helper()
	return p.Value(t, "postgres", `
		SELECT md5(string_agg(what, ',' ORDER BY what)) FROM (
			SELECT 'relation ' || oid || relname FROM pg_class
			UNION ALL SELECT 'function ' || oid || proname FROM pg_proc
			UNION ALL SELECT 'extension ' || extname FROM pg_extension
			UNION ALL SELECT 'database ' || oid || datname FROM pg_database
			UNION ALL SELECT 'role ' || oid || rolname || rolsuper || rolcanlogin || rolreplication FROM pg_authid
			UNION ALL SELECT 'setting ' || name || setting FROM pg_settings WHERE source <> 'session' AND name <> 'application_name'
			UNION ALL SELECT 'publication ' || pubname FROM pg_publication) x (what)`)
}
