package quarantine_test

import (
	"bytes"
	"log/slog"
	"strings"
	"testing"

	"github.com/pgbough/pgbough/internal/pgtest"
	"github.com/pgbough/pgbough/internal/quarantine"
)

// A spare that a create hands on to a point is rehearsed twice, and a session can
// do one thing at a time.
func TestRehearseAgain(t *testing.T) {
	p := pgtest.Start(t, pgtest.Options{})
	p.Exec(t, "postgres", "CREATE DATABASE other")
	p.Stop(t)
	s := startSpare(t, p)
	o := s.options(t)
	var log bytes.Buffer
	o.Log = slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{Level: slog.LevelDebug}))
	q, err := quarantine.Open(t.Context(), o)
	must(t, err)
	for range 5 {
		q.Rehearse(t.Context())
	}
	must(t, q.Close(t.Context()))
	if strings.Contains(log.String(), "a rehearsal failed") {
		t.Errorf("its log says:\n%s", log.String())
	}
}
