package branch

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// A log that has become too long goes on in the same file, with its end beside it.
func TestCapLog(t *testing.T) {
	path := filepath.Join(t.TempDir(), "postgres.log")
	must(t, capLog(path, 10))
	log, err := os.OpenFile(path, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	must(t, err)
	defer func() { _ = log.Close() }()
	reader, err := os.Open(path)
	must(t, err)
	follow := &tail{ctx: t.Context(), file: reader}
	defer func() { _ = follow.Close() }()
	for _, step := range []struct{ write, log, old string }{
		{"0123456789", "0123456789", ""},
		{"abc", "", "3456789abc"},
		{"new", "new", "3456789abc"},
	} {
		_, err := log.WriteString(step.write)
		must(t, err)
		b := make([]byte, 100)
		n, err := follow.Read(b)
		must(t, err)
		if got := string(b[:n]); !strings.HasSuffix(got, step.write) {
			t.Errorf("who follows the log reads %q", got)
		}
		must(t, capLog(path, 10))
		now, err := os.ReadFile(path)
		must(t, err)
		old, _ := os.ReadFile(path + ".1")
		if string(now) != step.log || string(old) != step.old {
			t.Errorf("after %q: %q, and before that %q", step.write, now, old)
		}
	}
}
