package quarantine_test

import (
	"context"
	"syscall"
	"testing"

	"github.com/pgbough/pgbough"
	"github.com/pgbough/pgbough/internal/quarantine"
)

// A clone of what Run and Purge are through with gets passwords of its own, each
// time anew; what is no such clone is refused.
func TestRenew(t *testing.T) {
	ctx := context.Background()
	w := newWorld(t, 15)
	s := w.spare(t)
	o := s.options(t)
	if _, err := quarantine.Renew(ctx, o); pgbough.ErrorCode(err) != pgbough.EInternal {
		t.Errorf("a standby: %v", err)
	}
	s.promote(t)
	if _, err := quarantine.Renew(ctx, o); pgbough.ErrorCode(err) != pgbough.EInternal {
		t.Errorf("one that is not in quarantine: %v", err)
	}
	report, err := quarantine.Run(ctx, o)
	must(t, err)
	must(t, quarantine.Purge(ctx, o))
	verifiers := "SELECT string_agg(rolname || ' ' || rolpassword, ' ' ORDER BY rolname) FROM pg_authid WHERE rolcanlogin"
	seen := map[string]bool{s.value(t, "postgres", verifiers): true}
	passwords := map[string]bool{}
	for _, r := range report.Roles {
		passwords[r.Password] = true
	}
	for range 2 {
		roles, err := quarantine.Renew(ctx, o)
		must(t, err)
		if len(roles) != len(report.Roles) || len(roles) == 0 {
			t.Fatalf("%d roles, of which Run knew %d", len(roles), len(report.Roles))
		}
		for i, r := range roles {
			if r.Name != report.Roles[i].Name {
				t.Errorf("role %s, want %s", r.Name, report.Roles[i].Name)
			}
			passwords[r.Password] = true
		}
		s.end(t, syscall.SIGQUIT) // it is durable: a crash takes nothing back
		s.start(t)
		seen[s.value(t, "postgres", verifiers)] = true
	}
	if len(seen) != 3 || len(passwords) != 3*len(report.Roles) {
		t.Errorf("after two times there were %d sets of verifiers and %d passwords of %d roles", len(seen), len(passwords), len(report.Roles))
	}
	if n := s.value(t, "postgres", "SELECT count(*) FROM pg_authid WHERE NOT rolcanlogin AND rolpassword IS NOT NULL"); n != "0" {
		t.Errorf("%s roles that cannot log in have passwords", n)
	}
}
