package catalog_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/pgbough/pgbough"
	"github.com/pgbough/pgbough/internal/catalog"
	"github.com/pgbough/pgbough/internal/credential"
	"github.com/pgbough/pgbough/internal/operation"
)

var _ operation.Store = (*catalog.Catalog)(nil)

// childEnv names what this test binary does when a test starts it again to kill
// it; dirEnv is where.
const (
	childEnv = "PGBOUGH_TEST_CHILD"
	dirEnv   = "PGBOUGH_TEST_DIR"
)

func TestMain(m *testing.M) {
	child, ok := map[string]func(dir string) error{"write": childWrite, "run": childRun}[os.Getenv(childEnv)]
	if !ok {
		os.Exit(m.Run())
	}
	if err := child(os.Getenv(dirEnv)); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func openIn(dir string) (*catalog.Catalog, error) {
	key, err := credential.EnsureKey(filepath.Join(dir, "secret.key"))
	if err != nil {
		return nil, err
	}
	return catalog.Open(context.Background(), filepath.Join(dir, "catalog.db"), key)
}

func childCommand(t *testing.T, child, dir string, env ...string) *exec.Cmd {
	t.Helper()
	cmd := exec.Command(os.Args[0], "-test.run=^$")
	cmd.Env = append(os.Environ(), childEnv+"="+child, dirEnv+"="+dir)
	cmd.Env = append(cmd.Env, env...)
	cmd.Stderr = os.Stderr
	return cmd
}

// childWrite commits numbered projects from several goroutines and says each
// number after its commit.
func childWrite(dir string) error {
	c, err := openIn(dir)
	if err != nil {
		return err
	}
	existing, err := c.Projects(context.Background())
	if err != nil {
		return err
	}
	var out sync.Mutex
	for w := range 4 {
		go func() {
			for i := w; ; i += 4 {
				id := fmt.Sprint(len(existing) + i)
				p := pgbough.Project{ID: "round " + strconv.Itoa(len(existing)) + " " + id, Name: fmt.Sprintf("%d-%d", len(existing), i)}
				op := pgbough.Operation{ID: p.ID, Status: pgbough.OperationRunning}
				if err := c.Tx(context.Background(), func(tx *catalog.Tx) error { return errors.Join(tx.CreateProject(p), tx.SaveOperation(op)) }); err != nil {
					fmt.Fprintln(os.Stderr, err)
					os.Exit(1)
				}
				_ = c.SaveProgress(context.Background(), op)
				out.Lock()
				fmt.Println(p.ID)
				out.Unlock()
			}
		}()
	}
	select {}
}

// TestKilledWriter kills a writer again and again: what it said is there.
func TestKilledWriter(t *testing.T) {
	dir := t.TempDir()
	said := map[string]bool{}
	for round := range 5 {
		cmd := childCommand(t, "write", dir)
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		lines := bufio.NewScanner(out)
		for n := 0; lines.Scan(); n++ {
			said[lines.Text()] = true
			if n == 20+17*round { // then what is still in the pipe
				if err := cmd.Process.Kill(); err != nil {
					t.Fatal(err)
				}
			}
		}
		_ = cmd.Wait()
		if cmd.ProcessState.Sys().(syscall.WaitStatus).Signal() != syscall.SIGKILL {
			t.Fatalf("the child was not killed but ended: %v", cmd.ProcessState)
		}
		c, err := openIn(dir)
		if err != nil {
			t.Fatal(err)
		}
		for id := range said {
			_, err := c.Project(t.Context(), id)
			_, err2 := c.Operation(t.Context(), id)
			if err != nil || err2 != nil {
				t.Fatalf("round %d: %s was acknowledged and is lost: %v, %v", round, id, err, err2)
			}
		}
		projects, err := c.Projects(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		ops, err := c.Unfinished(t.Context())
		if err != nil || len(ops) != len(projects) {
			t.Fatalf("half transactions: %d projects, %d operations, %v", len(projects), len(ops), err)
		}
		if err := c.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if len(said) < 200 {
		t.Errorf("only %d rows were acknowledged", len(said))
	}
}

// things is the state of the operation in TestKilledOperation. It makes files in
// dir: whatever is killed, all three are there in the end, or none.
type things struct {
	Dir   string   `json:"dir"`
	Names []string `json:"names,omitempty"`
}

func thingsKind(final bool) operation.Kind {
	type run = operation.Run[things]
	path := func(r *run, step string) string { return filepath.Join(r.State.Dir, step+"-"+r.ID) }
	step := func(name string) operation.Step[things] {
		return operation.Step[things]{
			Name: name,
			Do: func(_ context.Context, r *run) error {
				r.State.Names = append(r.State.Names, name)
				return os.WriteFile(path(r, name), nil, 0o600)
			},
			Undo: func(_ context.Context, r *run) error {
				if err := os.Remove(path(r, name)); !errors.Is(err, os.ErrNotExist) {
					return err
				}
				return nil
			},
		}
	}
	last := step("c")
	last.Final = final
	return operation.Define("things", step("a"), step("b"), last)
}

// childRun resumes what there is, else starts one operation, and waits for it.
func childRun(dir string) error {
	c, err := openIn(dir)
	if err != nil {
		return err
	}
	failpoint, err := operation.Failpoints(os.Getenv("PGBOUGH_FAILPOINT"))
	if err != nil {
		return err
	}
	e := operation.New(c, slog.New(slog.DiscardHandler), failpoint)
	e.Register(thingsKind(os.Getenv("PGBOUGH_TEST_FINAL") != ""))
	ctx := context.Background()
	ops, err := c.Operations(ctx, "")
	if err != nil {
		return err
	}
	if err := e.Resume(ctx); err != nil {
		return err
	}
	var id string
	if len(ops) > 0 {
		id = ops[0].ID
	} else {
		p := pgbough.Project{ID: "p", Name: "p"}
		op, err := e.Start(ctx, "things", operation.Request{
			ProjectID: p.ID, BranchID: "b", State: things{Dir: filepath.Join(dir, "things")},
			Save: func(ctx context.Context, op pgbough.Operation) error {
				return c.Tx(ctx, func(tx *catalog.Tx) error { return errors.Join(tx.CreateProject(p), tx.SaveOperation(op)) })
			},
		})
		if err != nil {
			return err
		}
		id = op.ID
	}
	op, err := e.Wait(ctx, id)
	fmt.Println(op.Status, pgbough.ErrorCode(err))
	e.Close()
	return c.Close()
}

// TestKilledOperation kills the process at every failpoint of an operation, and
// lets a second process finish or undo it.
func TestKilledOperation(t *testing.T) {
	for _, final := range []bool{false, true} {
		for _, place := range thingsKind(final).Failpoints() {
			if final && !strings.HasPrefix(place, "things/c/") {
				continue // as without
			}
			t.Run(fmt.Sprintf("final=%v/%s", final, strings.ReplaceAll(place, "/", ".")), func(t *testing.T) {
				killAt(t, place, final)
			})
		}
	}
}

func killAt(t *testing.T, place string, final bool) {
	t.Helper()
	dir := t.TempDir()
	if err := os.Mkdir(filepath.Join(dir, "things"), 0o700); err != nil {
		t.Fatal(err)
	}
	faults, want, files := "", "finished ", 3
	if strings.Contains(place, "/undo/") {
		faults, want, files = ";things/c/before=error", "failed INTERNAL", 0
	}
	env := []string{}
	if final {
		env = append(env, "PGBOUGH_TEST_FINAL=1")
	}
	first := childCommand(t, "run", dir, append(env, "PGBOUGH_FAILPOINT="+place+"=kill"+faults)...)
	out, err := first.Output()
	if ws, ok := first.ProcessState.Sys().(syscall.WaitStatus); !ok || ws.Signal() != syscall.SIGKILL || strings.TrimSuffix(string(out), "\n") != "" && !strings.HasSuffix(place, "/saved") {
		t.Fatalf("the first process was not killed at %s: %v, %q", place, err, out)
	}
	began := time.Now()
	out, err = childCommand(t, "run", dir, append(env, "PGBOUGH_FAILPOINT="+strings.TrimPrefix(faults, ";"))...).Output()
	if err != nil || strings.TrimSuffix(string(out), "\n") != want {
		t.Fatalf("the second process said %q, %v; want %q (after %v)", out, err, want, time.Since(began))
	}
	left, err := os.ReadDir(filepath.Join(dir, "things"))
	if err != nil || len(left) != files {
		t.Errorf("left behind: %v, %v; want %d files", left, err, files)
	}
}

func BenchmarkSave(b *testing.B) {
	dir := b.TempDir()
	c, err := openIn(dir)
	if err != nil {
		b.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	op := pgbough.Operation{ID: "x", Kind: "create_branch", Status: pgbough.OperationRunning, State: []byte(`{"volume_id":"v12345678901"}`), Steps: make([]pgbough.StepRecord, 6)}
	if err := c.SaveOperation(b.Context(), op); err != nil {
		b.Fatal(err)
	}
	for name, save := range map[string]func(context.Context, pgbough.Operation) error{"operation": c.SaveOperation, "progress": c.SaveProgress} {
		b.Run(name, func(b *testing.B) {
			for b.Loop() {
				if err := save(b.Context(), op); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
	b.Run("read", func(b *testing.B) {
		for b.Loop() {
			if _, err := c.Operation(b.Context(), "x"); err != nil {
				b.Fatal(err)
			}
		}
	})
}
