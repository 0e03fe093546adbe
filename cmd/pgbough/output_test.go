package main

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/pgbough/pgbough"
	"github.com/pgbough/pgbough/client"
)

func TestSizes(t *testing.T) {
	for bytes, want := range map[int64]string{
		0: "0 B", 999: "999 B", 1000: "1.0 kB", 1234567: "1.2 MB", 9_960_000: "10 MB", 42_000_000: "42 MB",
		999_400_000: "999 MB", 999_600_000: "1.0 GB", 1_200_000_000: "1.2 GB", -4096: "-4.1 kB", 3_000_000_000_000_000_000: "3000 PB",
	} {
		if got := size(bytes); got != want {
			t.Errorf("size(%d) = %q, want %q", bytes, got, want)
		}
	}
	for text, want := range map[string]int64{"": 0, "100": 100, "500k": 500 << 10, "100M": 100 << 20, "1.5G": 3 << 29, "50GB": 50 << 30, "2GiB": 2 << 30} {
		if got, err := parseSize(text); err != nil || got != want {
			t.Errorf("parseSize(%q) = %d, %v, want %d", text, got, err, want)
		}
	}
	for _, text := range []string{"x", "-1", "0", "1X", "9999999999T", "nan"} {
		if got, err := parseSize(text); exitCode(err) != exitUsage {
			t.Errorf("parseSize(%q) = %d, %v", text, got, err)
		}
	}
}

func TestDurations(t *testing.T) {
	for d, want := range map[time.Duration]string{
		0: "0s", 59 * time.Second: "59s", 3*time.Minute + 59*time.Second: "3m", 47 * time.Hour: "47h", 100 * time.Hour: "4d", -time.Minute: "-1m",
	} {
		if got := span(d); got != want {
			t.Errorf("span(%s) = %q, want %q", d, got, want)
		}
	}
	for text, want := range map[string]time.Duration{"": 0, "30s": 30 * time.Second, "2h30m": 150 * time.Minute, "7d": 168 * time.Hour} {
		if got, err := parseDuration("x", text); err != nil || got != want {
			t.Errorf("parseDuration(%q) = %s, %v, want %s", text, got, err, want)
		}
	}
	for _, text := range []string{"2", "-1h", "0s", "d", "1w"} {
		if got, err := parseDuration("x", text); exitCode(err) != exitUsage {
			t.Errorf("parseDuration(%q) = %s, %v", text, got, err)
		}
	}
}

func TestExitCodes(t *testing.T) {
	for code, want := range map[pgbough.Code]int{
		pgbough.EInternal: 1, pgbough.EDenied: 1, pgbough.EInvalid: 2, pgbough.ENotFound: 3,
		pgbough.EConflict: 4, pgbough.ELocked: 4, pgbough.ENoSpace: 4, pgbough.EUnreachable: 5,
	} {
		var out strings.Builder
		got := exit(&out, fmt.Errorf("wrapped: %w", pgbough.Errorf(code, "what").WithHint("do")))
		if got != want || out.String() != "pgbough: what\n  hint: do\n" {
			t.Errorf("%s: %d, %q", code, got, out.String())
		}
	}
}

// attaching is an operation that has copied so many MB.
func attaching(mb int64) client.Operation {
	return client.Operation{Progress: &pgbough.Progress{Message: "base backup", Done: mb * 1_000_000, Total: 1_000_000_000, Unit: "bytes"}}
}

func TestPlainProgress(t *testing.T) {
	var out strings.Builder
	now := time.Unix(0, 0)
	p := (&globals{io: stdio{Err: &out}}).progress("attach shop")
	p.now = func() time.Time { return now }
	p.watch(client.Operation{Steps: []client.Step{{Name: "create_slot"}}})
	for i := range int64(11) {
		p.watch(attaching(i * 20))
		now = now.Add(time.Second)
	}
	p.watch(client.Operation{Progress: &pgbough.Progress{Message: "replaying"}})
	p.close()
	want := strings.Join([]string{
		"attach shop: create slot",
		"attach shop: base backup 0 B of 1.0 GB (0%)",
		"attach shop: base backup 100 MB of 1.0 GB (10%), 20 MB/s, 45s left",
		"attach shop: base backup 200 MB of 1.0 GB (20%), 20 MB/s, 40s left",
		"attach shop: replaying",
		"",
	}, "\n")
	if diff := cmp.Diff(want, out.String()); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
}

func TestDrawnProgress(t *testing.T) {
	out := make(drawn, 1000)
	p := (&globals{io: stdio{Err: out, ErrTerminal: true}}).progress("attach shop")
	p.watch(attaching(0))
	p.watch(attaching(500))
	timeout := time.After(10 * time.Second)
	for text := ""; !strings.Contains(text, "base backup 500 MB of 1.0 GB (50%)"); {
		select {
		case text = <-out:
		case <-timeout:
			t.Fatalf("the bar was not drawn: %q", text)
		}
	}
	p.watch(client.Operation{Status: "running"})
	p.watch(attaching(1000)) // a full bar does not end it
	p.close()
	p.close()
}

// drawn takes what is written to a terminal, as far as someone reads it.
type drawn chan string

func (d drawn) Write(b []byte) (int, error) {
	select {
	case d <- string(b):
	default:
	}
	return len(b), nil
}

func TestEnvironment(t *testing.T) {
	got := environment(
		[]string{"HOME=/h", "PGHOST=prod", "PGHOSTADDR=10.0.0.1", "PGSERVICE=prod", "PGSSLMODE=verify-full", "PGAPPNAME=a", "PGPORT=6543"},
		client.Libpq{Host: "/run/x", User: "app", Password: "secret", DBName: "shop"})
	want := []string{"HOME=/h", "PGAPPNAME=a", "PGHOST=/run/x", "PGUSER=app", "PGPASSWORD=secret", "PGDATABASE=shop"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
}
