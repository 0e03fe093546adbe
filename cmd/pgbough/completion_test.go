package main

import (
	"net"
	"strings"
	"testing"
	"time"
)

// TestCompletionIsQuick: a server that does not answer holds nobody's shell up.
func TestCompletionIsQuick(t *testing.T) {
	silent, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = silent.Close() }()
	t.Setenv("PGBOUGH_API", "http://"+silent.Addr().String())
	t.Setenv("PGBOUGH_API_KEY", "k")
	began := time.Now()
	out, err := inProcess(t, "", "__complete", "url", "")
	if took := time.Since(began); err != nil || took < completeWithin || took > completeWithin+3*time.Second {
		t.Errorf("completing took %s: %v", took, err)
	}
	if !strings.HasPrefix(out, ":4\n") {
		t.Errorf("completing without an answer says %q", out)
	}
}
