package branch

import (
	"context"

	"github.com/pgbough/pgbough"
	"github.com/pgbough/pgbough/internal/catalog"
	"github.com/pgbough/pgbough/internal/operation"
)

type deleteState struct {
	VolumeID string `json:"volume_id,omitempty"`
}

type deleteRun = operation.Run[deleteState]

// deleteKind removes a branch. Once it is marked, that is never undone: what
// fails is tried again.
func (s *Service) deleteKind() operation.Kind {
	return operation.Define("delete_branch",
		operation.Step[deleteState]{Name: "mark", Do: s.markDeleting, Undo: s.unmarkDeleting},
		operation.Step[deleteState]{Name: "destroy", Final: true, Do: s.destroyBranch},
		operation.Step[deleteState]{Name: "forget", Final: true, Do: s.forgetBranch},
	)
}

func (s *Service) markDeleting(ctx context.Context, r *deleteRun) error {
	b, err := s.catalog.ChangeBranch(ctx, r.ProjectID, r.BranchID, func(b *pgbough.Branch) error {
		if b.State == pgbough.BranchDeleting {
			return nil
		}
		b.State = pgbough.BranchDeleting
		return deletable(*b) // it may have become so since it was asked for
	})
	r.State.VolumeID = b.VolumeID
	return err
}

// unmarkDeleting is also where a refusal of markDeleting ends, which has marked nothing.
func (s *Service) unmarkDeleting(ctx context.Context, r *deleteRun) error {
	_, err := s.catalog.ChangeBranch(ctx, r.ProjectID, r.BranchID, func(b *pgbough.Branch) error {
		b.State = pgbough.BranchReady
		return nil
	})
	if pgbough.ErrorCode(err) == pgbough.ENotFound {
		return nil
	}
	return err
}

func (s *Service) destroyBranch(ctx context.Context, r *deleteRun) error {
	s.unsettle(r.BranchID)
	if r.State.VolumeID == "" {
		return nil
	}
	return s.destroy(ctx, r.State.VolumeID)
}

func (s *Service) forgetBranch(ctx context.Context, r *deleteRun) error {
	return s.catalog.Tx(ctx, func(tx *catalog.Tx) error { return tx.DeleteBranch(r.BranchID) })
}
