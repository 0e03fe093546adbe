package sandbox

import (
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/pgbough/pgbough/internal/postgres"
)

// BenchmarkStart compares a start in a sandbox with a plain exec of the same
// postgres by the same user on the same data, in turns, from the start to the
// first answered connection. Medians: -benchtime 20x.
func BenchmarkStart(b *testing.B) {
	l := newLauncher(b)
	s := newSpec(b, l)
	// The plain one must reach its directories by their host paths.
	if err := os.Chmod(filepath.Dir(s.DataDir), 0o755); err != nil {
		b.Fatal(err)
	}
	var sandboxed, made, plain []time.Duration
	for b.Loop() {
		began := time.Now()
		p := start(b, l, s)
		made = append(made, time.Since(began))
		_ = connect(b, s).Close(b.Context())
		sandboxed = append(sandboxed, time.Since(began))
		if err := p.Signal(unix.SIGINT); err != nil {
			b.Fatal(err)
		}
		<-p.Done()
		plain = append(plain, startPlain(b, s))
	}
	for name, d := range map[string][]time.Duration{"sandbox-ms": sandboxed, "made-ms": made, "plain-ms": plain} {
		slices.Sort(d)
		b.ReportMetric(float64(d[len(d)/2].Microseconds())/1000, name)
	}
}

func startPlain(b *testing.B, s postgres.Spec) time.Duration {
	b.Helper()
	cmd := exec.Command(filepath.Join(s.BinDir, "postgres"), postgresArgs(postgres.Inside{DataDir: s.DataDir, EtcDir: s.EtcDir, Socket: s.Socket})...)
	cmd.Env, cmd.Dir = s.Env, "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uint32(testCredential.UID), Gid: uint32(testCredential.GID)}}
	began := time.Now()
	if err := cmd.Start(); err != nil {
		b.Fatal(err)
	}
	_ = connect(b, s).Close(b.Context())
	took := time.Since(began)
	if err := cmd.Process.Signal(unix.SIGINT); err != nil {
		b.Fatal(err)
	}
	if err := cmd.Wait(); err != nil {
		b.Fatal(err)
	}
	return took
}
