// Package clients runs programs that connect to a branch with drivers of other
// languages. scripts/setup --tools installs what they need.
package clients

import (
	_ "embed"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

var (
	//go:embed Try.java
	java []byte
	//go:embed try.js
	node []byte
)

// driver is Debian's JDBC driver.
const driver = "/usr/share/java/postgresql.jar"

// JDBC connects with Java's driver to url, jdbc:postgresql://... With a SQLSTATE
// the connection must be refused with it.
func JDBC(t testing.TB, url string, state ...string) {
	t.Helper()
	program := write(t, "Try.java", java)
	run(t, exec.CommandContext(t.Context(), "java", append([]string{"-cp", driver, program, url}, state...)...))
}

// Node connects with node-postgres to uri. With a SQLSTATE the connection must
// be refused with it.
func Node(t testing.TB, uri string, state ...string) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "node", append([]string{write(t, "try.js", node), uri}, state...)...)
	cmd.Env = append(os.Environ(), "NODE_PATH="+filepath.Join(root(t), ".tools", "clients", "node_modules"))
	run(t, cmd)
}

func run(t testing.TB, cmd *exec.Cmd) {
	t.Helper()
	out, err := cmd.CombinedOutput()
	if err != nil || strings.TrimSpace(string(out)) != "ok" {
		t.Errorf("%s: %v (scripts/setup --tools installs what it needs):\n%s", filepath.Base(cmd.Path), err, out)
	}
}

func write(t testing.TB, name string, program []byte) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, program, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// root is the directory of the module.
func root(t testing.TB) string {
	t.Helper()
	dir, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	for ; dir != "/"; dir = filepath.Dir(dir) {
		if _, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil {
			return dir
		}
	}
	t.Fatal("no go.mod above the working directory")
	return ""
}
