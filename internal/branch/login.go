package branch

import (
	"context"
	"fmt"

	"github.com/pgbough/pgbough"
)

// Login is what a client must prove to be a role of a branch, which it names by
// the id of its endpoint, its own id, its name where no other project has that,
// or PROJECT/NAME. It starts nothing: while the branch is awake its own pg_authid
// is read, while it sleeps what was kept of it. While the branch is being made,
// it waits.
func (s *Service) Login(ctx context.Context, branch, role string) (pgbough.Login, error) {
	r, err := s.lead(ctx, branch)
	if err != nil {
		return pgbough.Login{}, err
	}
	for {
		l, awake, err := s.computes.Login(ctx, r.VolumeID, role)
		if err == nil && !awake {
			// What is recorded decides: it may wake in this very moment.
			var asleep bool
			if l, asleep, err = s.catalog.KeptLogin(ctx, r.BranchID, role); err == nil && !asleep {
				if err = ctx.Err(); err == nil {
					continue
				}
			}
		}
		l.BranchID, l.Role, l.Major = r.BranchID, role, r.Major
		return l, err
	}
}

// lead tells where a client's name for a branch leads to, once the branch can be used.
func (s *Service) lead(ctx context.Context, name string) (pgbough.Route, error) {
	for {
		r, err := s.catalog.Route(ctx, name)
		switch {
		case err != nil:
			return r, err
		case r.State == pgbough.BranchReady && s.computes.Knows(r.VolumeID):
			return r, nil
		case s.whyStopped(r.VolumeID) != nil:
			return r, pgbough.Errorf(pgbough.ENoSpace, "branch %s is stopped because it took too much of the pool", r.BranchName).
				WithHint("pgbough branch get %s says more, and pgbough branch wake %s starts it again if there is room", r.BranchName, r.BranchName)
		case r.State == pgbough.BranchDeleting:
			return r, pgbough.Errorf(pgbough.ENotFound, "the branch %q is being deleted", r.BranchName).WithHint("see: pgbough branch list")
		}
		making, err := s.making(ctx, r)
		if err != nil {
			return r, err
		}
		// How it ends is seen by looking again.
		switch op, err := s.engine.Wait(ctx, making.ID); {
		case ctx.Err() != nil:
			return r, fmt.Errorf("wait for branch %s: %w", r.BranchName, context.Cause(ctx))
		case err != nil && !op.Status.Done():
			return r, fmt.Errorf("wait for branch %s: %w", r.BranchName, err)
		}
	}
}

// making is the operation that makes a branch.
func (s *Service) making(ctx context.Context, r pgbough.Route) (pgbough.Operation, error) {
	ops, err := s.catalog.Unfinished(ctx)
	if err != nil {
		return pgbough.Operation{}, err
	}
	for _, op := range ops {
		if op.BranchID == r.BranchID && op.Kind == "create_branch" {
			return op, nil
		}
	}
	if again, err := s.catalog.Route(ctx, r.BranchID); err != nil {
		return pgbough.Operation{}, err
	} else if again.State == pgbough.BranchReady && s.computes.Knows(again.VolumeID) {
		return pgbough.Operation{}, nil // it has just become ready
	}
	return pgbough.Operation{}, pgbough.Errorf(pgbough.EInternal, "branch %s cannot be used", r.BranchName).
		WithHint("the log of the server says why; a restart of it tries again")
}
