package branch

import (
	"context"
	"time"

	"github.com/pgbough/pgbough"
	"github.com/pgbough/pgbough/internal/catalog"
)

// UpdateBranch changes the name of a branch, when it goes by itself, how long it
// may be idle, and whether it is protected: all of it or nothing.
func (s *Service) UpdateBranch(ctx context.Context, project, branch string, change pgbough.BranchChange) (pgbough.BranchView, error) {
	var none pgbough.BranchView
	p, b, err := s.find(ctx, project, branch)
	if err != nil {
		return none, err
	}
	err = s.catalog.Tx(ctx, func(tx *catalog.Tx) error {
		if b, err = tx.Branch(p.ID, b.ID); err != nil {
			return err
		}
		if err := allowed(p, b, change); err != nil {
			return err
		}
		if change.Name != nil {
			b.Name = *change.Name
		}
		if change.ExpiresAt != nil {
			b.ExpiresAt = *change.ExpiresAt
		}
		if change.Protected != nil {
			b.Protected = *change.Protected
		}
		if err := lasting(b); err != nil {
			return err
		}
		if err := tx.UpdateBranch(b); err != nil || change.SuspendAfter == nil {
			return err
		}
		return tx.SetSuspendAfter(b.ID, *change.SuspendAfter)
	})
	if err != nil {
		return none, err
	}
	s.computes.Rename(b.VolumeID, b.Name)
	if change.SuspendAfter != nil {
		s.computes.SetSuspendAfter(b.VolumeID, *change.SuspendAfter)
	}
	return s.view(ctx, p, b), nil
}

func allowed(p pgbough.Project, b pgbough.Branch, change pgbough.BranchChange) error {
	if b.State == pgbough.BranchDeleting {
		return pgbough.Errorf(pgbough.ENotFound, "the branch %q is being deleted", b.Name).WithHint("see: pgbough branch list")
	}
	if change.Name != nil {
		if err := pgbough.CheckName(*change.Name); err != nil {
			return err
		}
	}
	if d := change.SuspendAfter; d != nil {
		if err := checkSuspendAfter(*d); err != nil {
			return err
		}
	}
	if at := change.ExpiresAt; at != nil && !at.IsZero() && at.Before(time.Now()) {
		return pgbough.Errorf(pgbough.EInvalid, "the expiry %s is in the past", at.Format(time.RFC3339))
	}
	if b.ID != p.RootBranchID {
		return nil
	}
	switch {
	case change.Name != nil && *change.Name != b.Name:
		return pgbough.Errorf(pgbough.EConflict, "the root branch is always called %s", b.Name).WithHint("name one of its branches: pgbough branch list")
	case change.ExpiresAt != nil && !change.ExpiresAt.IsZero():
		return pgbough.Errorf(pgbough.EConflict, "the root branch cannot expire").WithHint("remove the project with: pgbough project delete %s", p.Name)
	case change.Protected != nil && *change.Protected:
		return pgbough.Errorf(pgbough.EConflict, "the root branch is there as long as its project is").WithHint("name one of its branches: pgbough branch list")
	case change.SuspendAfter != nil:
		return pgbough.Errorf(pgbough.EConflict, "the root branch follows production and does not sleep").WithHint("name one of its branches: pgbough branch list")
	}
	return nil
}

// lasting refuses what contradicts itself.
func lasting(b pgbough.Branch) error {
	if b.Protected && !b.ExpiresAt.IsZero() {
		return pgbough.Errorf(pgbough.EConflict, "a protected branch does not expire, and %s would at %s", b.Name, b.ExpiresAt.Format(time.RFC3339)).
			WithHint("first do one of: pgbough branch set %s --expires never, pgbough branch unprotect %s", b.Name, b.Name)
	}
	return nil
}

// deletable refuses a branch that is protected.
func deletable(b pgbough.Branch) error {
	if b.Protected {
		return pgbough.Errorf(pgbough.EConflict, "the branch %s is protected", b.Name).WithHint("if it may go: pgbough branch unprotect %s", b.Name)
	}
	return nil
}

// leastSuspendAfter keeps a compute from falling asleep while its client still logs in.
const leastSuspendAfter = time.Second

func checkSuspendAfter(d time.Duration) error {
	if d == pgbough.SuspendByDefault || d == pgbough.SuspendNever || d >= leastSuspendAfter {
		return nil
	}
	return pgbough.Errorf(pgbough.EInvalid, "a branch cannot sleep after %s without a client", d).
		WithHint("the shortest time is %s; 0 is never", leastSuspendAfter)
}
