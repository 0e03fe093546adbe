package main

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net/http/httptest"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/pgbough/pgbough"
	"github.com/pgbough/pgbough/internal/httpapi"
	"github.com/pgbough/pgbough/internal/httpapi/httpapitest"
)

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"pgbough": main})
}

// TestScripts runs the binary itself against the API over a Service in memory.
// Every script begins with the project shop that has the branch old.
func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir: "testdata/script",
		Setup: func(env *testscript.Env) error {
			s := httpapitest.New()
			s.AddProject("quiet-sun-12345678", "shop")
			s.AddBranch("shop", "br-calm-fox-a1b2c3d4", "old")
			s.LogText, s.LogMore = "LOG: one\n", "LOG: two\n"
			web := httptest.NewServer(httpapi.New(httpapi.Options{Service: s, Keys: s, Log: slog.New(slog.DiscardHandler)}))
			env.Defer(func() {
				web.CloseClientConnections()
				web.Close()
				s.Close()
			})
			env.Setenv("PGBOUGH_API", web.URL)
			env.Setenv("PGBOUGH_API_KEY", "k")
			env.Values["service"] = s
			return nil
		},
		Cmds: map[string]func(ts *testscript.TestScript, neg bool, args []string){
			"exits":    exits,
			"service":  service,
			"branches": branches,
		},
		RequireExplicitExec: true,
		RequireUniqueNames:  true,
	})
}

// exits CODE COMMAND ARGS... runs a command that must end with that code.
func exits(ts *testscript.TestScript, _ bool, args []string) {
	want, err := strconv.Atoi(args[0])
	ts.Check(err)
	err = ts.Exec(args[1], args[2:]...)
	got := 0
	var ended *exec.ExitError
	if errors.As(err, &ended) {
		got = ended.ExitCode()
	} else {
		ts.Check(err)
	}
	if got != want {
		ts.Fatalf("%s: exit status %d, want %d", strings.Join(args[1:], " "), got, want)
	}
}

// service WHAT [VALUE] changes the Service.
func service(ts *testscript.TestScript, _ bool, args []string) {
	s := ts.Value("service").(*httpapitest.Service)
	if args[0] == "project" {
		s.AddProject("loud-rain-87654321", args[1])
		return
	}
	s.Lock()
	defer s.Unlock()
	switch args[0] {
	case "delay":
		d, err := time.ParseDuration(args[1])
		ts.Check(err)
		s.Delay = d
	case "fails": // fails METHOD CODE
		s.Fail[args[1]] = pgbough.Errorf(pgbough.Code(args[2]), "it failed").WithHint("mend it")
	case "operations-fail":
		s.OperationError = pgbough.Errorf(pgbough.Code(args[1]), "it failed midway")
	case "operations-work":
		s.OperationError = nil
	case "unknown-volume":
		s.Unknown = []pgbough.VolumeStatus{{ID: args[1], OwnBytes: 1_500_000_000, LogicalBytes: 2_000_000}}
	case "finding":
		s.Findings = append(s.Findings, pgbough.Finding{Name: args[1], Status: pgbough.FindingStatus(args[2]), Detail: "what is there", Fix: "ALTER SYSTEM SET x = y;\nSELECT pg_reload_conf();"})
	default:
		ts.Fatalf("unknown change %s", args[0])
	}
}

// branches NAMES... demands that these are all branches; a name that ends in *
// stands for one that begins so, and one that ends in ! for one that expires.
func branches(ts *testscript.TestScript, _ bool, want []string) {
	s := ts.Value("service").(*httpapitest.Service)
	views, err := s.Branches(context.Background(), "shop")
	ts.Check(err)
	var got []string
	for _, v := range views {
		name := v.Name
		if prefix, _, random := strings.Cut(name, "run-"); random {
			name = prefix + "run-*"
		}
		if left := time.Until(v.ExpiresAt); left > 0 && left <= lease {
			name += "!"
		}
		got = append(got, name)
	}
	if !slices.Equal(got, want) {
		ts.Fatalf("branches are %v, want %v", got, want)
	}
}

// inProcess runs a command line with a terminal on which in is typed.
func inProcess(t *testing.T, in string, args ...string) (string, error) {
	t.Helper()
	var out strings.Builder
	err := execute(t.Context(), args, stdio{
		In: strings.NewReader(in), Out: &out, Err: io.MultiWriter(&out), InTerminal: true,
	})
	return out.String(), err
}

func TestConfirmation(t *testing.T) {
	s := httpapitest.New()
	s.AddProject("quiet-sun-12345678", "shop")
	web := httptest.NewServer(httpapi.New(httpapi.Options{Service: s, Keys: s, Log: slog.New(slog.DiscardHandler)}))
	defer web.Close()
	t.Setenv("PGBOUGH_API", web.URL)
	t.Setenv("PGBOUGH_API_KEY", "k")

	out, err := inProcess(t, "shoppe\n", "project", "delete", "shop")
	if exitCode(err) != exitRefused || !strings.Contains(out, "This deletes project shop with its 0 branches") {
		t.Errorf("another name typed: %v\n%s", err, out)
	}
	if s.Calls["DeleteProject"] != 0 {
		t.Error("deleted without confirmation")
	}
	if out, err := inProcess(t, "shop\n", "project", "delete", "shop"); err != nil || s.Calls["DeleteProject"] != 1 {
		t.Errorf("confirmed: %v\n%s", err, out)
	}
	s.Unknown = []pgbough.VolumeStatus{{ID: "vlost"}}
	if _, err := inProcess(t, "", "pool", "prune"); exitCode(err) != exitFailed || len(s.Unknown) != 1 {
		t.Errorf("nothing typed: %v", err)
	}
	if out, err := inProcess(t, "1\n", "pool", "prune"); err != nil || len(s.Unknown) != 0 {
		t.Errorf("confirmed: %v\n%s", err, out)
	}
}
