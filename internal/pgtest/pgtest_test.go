package pgtest

import "testing"

func TestServer(t *testing.T) {
	s := Start(t, Options{Conf: map[string]string{"work_mem": "7MB"}})
	s.Exec(t, "postgres", "CREATE TABLE t AS SELECT 1 AS a")
	s.Restart(t)
	if got := s.Value(t, "postgres", "SELECT a FROM t"); got != "1" {
		t.Errorf("after a restart: got %q, want 1", got)
	}
	if got := s.Value(t, "postgres", "SELECT current_setting('work_mem')"); got != "7MB" {
		t.Errorf("work_mem: got %q, want 7MB", got)
	}
}
