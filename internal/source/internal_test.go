package source

import (
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/pgbough/pgbough"
	"github.com/pgbough/pgbough/internal/pgtest"
)

func TestSyncNames(t *testing.T) {
	p := pgtest.Start(t, pgtest.Options{})
	conn := p.Conn(t, "postgres")
	for _, c := range []struct {
		value   string
		names   []string
		matches bool
		without string
	}{
		{"", nil, false, ""},
		{"a", []string{"a"}, false, `"a"`},
		{"a, b", []string{"a", "b"}, false, `"a", "b"`},
		{"*", []string{"*"}, true, `"one", "two"`},
		{`"*"`, []string{"*"}, true, `"one", "two"`},
		{"PgBough", []string{"PgBough"}, true, ""},
		{"FIRST 2 (a, pgbough, c)", []string{"a", "pgbough", "c"}, true, `FIRST 2 ("a", "c")`},
		{"any 1 ( a,* )", []string{"a", "*"}, true, `ANY 1 ("a", "one", "two")`},
		{"2 (a, b)", []string{"a", "b"}, false, `FIRST 2 ("a", "b")`},
		{`first 1 ("pg,bough", "x""y", "(")`, []string{"pg,bough", `x"y`, "("}, false, `FIRST 1 ("pg,bough", "x""y", "(")`},
		{"3 (3, 4)", []string{"3", "4"}, false, `FIRST 3 ("3", "4")`},
		{"pgbough_2", []string{"pgbough_2"}, false, `"pgbough_2"`},
	} {
		got, err := parseSyncNames(c.value)
		if err != nil {
			t.Errorf("%q: %v", c.value, err)
			continue
		}
		if !slices.Equal(got.names, c.names) || got.matches(ApplicationName) != c.matches {
			t.Errorf("%q: names %q matches %v, want %q and %v", c.value, got.names, got.matches(ApplicationName), c.names, c.matches)
		}
		without := got.without(ApplicationName, []string{"one", "two"})
		if without != c.without {
			t.Errorf("%q without us is %q, want %q", c.value, without, c.without)
		}
		for _, v := range []string{c.value, without} {
			if _, err := conn.Exec(t.Context(), "ALTER SYSTEM SET synchronous_standby_names = "+quoteLiteral(v)); err != nil {
				t.Errorf("Postgres does not take %q: %v", v, err)
			}
		}
	}
	for _, bad := range []string{`"a`, "a b", "a,", ",a", "FIRST (a)", "FIRST 1 (a", "2 (a) b", "-", "first x y (a)", "()", "1 ()"} {
		if _, err := parseSyncNames(bad); err == nil {
			t.Errorf("%q was taken", bad)
		}
		if _, err := conn.Exec(t.Context(), "ALTER SYSTEM SET synchronous_standby_names = "+quoteLiteral(bad)); err == nil {
			t.Errorf("Postgres takes %q", bad)
		}
	}
}

func FuzzSyncNames(f *testing.F) {
	f.Add(`FIRST 2 (a, "b""c", *)`)
	f.Fuzz(func(t *testing.T, value string) {
		names, err := parseSyncNames(value)
		if err != nil {
			return
		}
		if again, err := parseSyncNames(names.without(ApplicationName, nil)); err != nil || again.matches(ApplicationName) {
			t.Errorf("%q without us: %q, %v", value, names.without(ApplicationName, nil), err)
		}
	})
}

func TestLibc(t *testing.T) {
	for _, c := range []struct {
		theirs, ours string
		used         bool
		want         pgbough.FindingStatus
	}{
		{"2.36", "2.36", true, pgbough.FindingOK},
		{"2.31", "2.36", true, pgbough.FindingWarn},
		{"2.27", "2.36", true, pgbough.FindingFail},
		{"2.28", "2.36", true, pgbough.FindingWarn},
		{"2.36", "2.17", true, pgbough.FindingFail},
		{"", "2.36", true, pgbough.FindingWarn},
		{"2.17", "2.36", false, pgbough.FindingOK},
		{"2.36", "", true, pgbough.FindingWarn},
	} {
		k := &checker{}
		k.report.Facts.LibcVersion, k.report.Facts.MachineLibcVersion = c.theirs, c.ours
		if c.used {
			k.depends = []dependency{{collation: collation{name: "en_US.UTF-8", provider: "libc"}, where: "database shop"}}
		}
		k.checkLibc()
		if got := k.report.Findings[0]; got.Status != c.want {
			t.Errorf("theirs %q, ours %q, used %v: %+v, want %s", c.theirs, c.ours, c.used, got, c.want)
		}
	}
}

func TestBinaries(t *testing.T) {
	for _, c := range []struct {
		major, minor int
		want         pgbough.FindingStatus
		fix          string
	}{
		{15, 0, pgbough.FindingOK, ""},
		{15, 999, pgbough.FindingWarn, "--only-upgrade postgresql-15"},
		{97, 1, pgbough.FindingFail, "apt-get install postgresql-97"},
	} {
		k := &checker{}
		k.report.Facts.Major, k.report.Facts.Minor = c.major, c.minor
		k.checkMachine(t.Context())
		if got := k.report.Findings[0]; got.Name != "binaries" || got.Status != c.want || !strings.Contains(got.Fix, c.fix) {
			t.Errorf("%d.%d: %+v", c.major, c.minor, got)
		}
	}
}

func TestNames(t *testing.T) {
	for in, want := range map[string]string{"repl": "repl", "Repl": `"Repl"`, "user": `"user"`, `a"b`: `"a""b"`, "re-pl": `"re-pl"`, "": `""`} {
		if got := quoteIdent(in); got != want {
			t.Errorf("quoteIdent(%q) = %s, want %s", in, got, want)
		}
	}
	for in, want := range map[string]string{"repl": "repl", "all": `"all"`, "replication": `"replication"`, "a b": `"a b"`, "+x": `"+x"`} {
		if got := hbaName(in); got != want {
			t.Errorf("hbaName(%q) = %s, want %s", in, got, want)
		}
	}
	for in, want := range map[string]string{"en_US.UTF-8": "en_us.utf8", "C": "c", "de_DE.ISO8859-15@euro": "de_de.iso885915@euro", "C.utf8": "c.utf8"} {
		if got := normalLocale(in); got != want {
			t.Errorf("normalLocale(%q) = %s, want %s", in, got, want)
		}
	}
	if diff := cmp.Diff([]string{"a", "b c", `d"e`}, splitList(` a, "b c" ,"d""e",,a `)); diff != "" {
		t.Error(diff)
	}
}
