package branch

import (
	"context"
	"time"

	"github.com/pgbough/pgbough"
	"github.com/pgbough/pgbough/internal/postgres"
	"github.com/pgbough/pgbough/internal/quarantine"
)

const (
	settlePause = 5 * time.Second // between two tries
	settleTries = 24
)

// settleLater makes a new branch cheap and clean in the background: an immediate
// checkpoint, after which a crash replays nothing (facts 17), and with it goes
// the WAL that still holds what quarantine cut out. Until then the branch is
// unsettled in the catalog, and a restarted server does it again.
func (s *Service) settleLater(p pgbough.Project, b pgbough.Branch) {
	if b.Settled {
		return
	}
	ctx, cancel := context.WithCancel(s.ctx)
	s.mu.Lock()
	if _, ok := s.settling[b.ID]; ok || s.ctx.Err() != nil {
		s.mu.Unlock()
		cancel()
		return
	}
	s.settling[b.ID] = cancel
	defer s.mu.Unlock() // Close waits for what has begun
	s.wg.Go(func() {
		defer s.unsettle(b.ID)
		pause(ctx, firstUse)
		for range settleTries {
			err := s.settle(ctx, p, b)
			if err == nil || ctx.Err() != nil {
				return
			}
			s.log.WarnContext(ctx, "a new branch cannot be settled yet", "branch", b.Name, "err", err)
			pause(ctx, settlePause)
		}
		// What keeps it may be the branch's own doing; it must not stay awake for it.
		s.log.ErrorContext(ctx, "a new branch is left unsettled until the server starts again", "branch", b.Name)
	})
}

func (s *Service) settle(ctx context.Context, p pgbough.Project, b pgbough.Branch) error {
	server, err := s.computes.Wait(ctx, b.VolumeID)
	if err != nil {
		return err
	}
	if err := quarantine.Purge(ctx, s.quarantineOptions(p, server)); err != nil {
		return err
	}
	// Its checkpointer may have learned too late that fsync is on again (hurry).
	if err := postgres.SyncAll(server.Config().DataDir); err != nil {
		return err
	}
	b, err = s.catalog.ChangeBranch(ctx, p.ID, b.ID, func(b *pgbough.Branch) error {
		b.Settled = true
		return nil
	})
	if err != nil {
		return err
	}
	if err := s.computes.Reload(b.VolumeID, s.branchSettings(p, fromNouns(b.Settings), true)); err != nil {
		s.log.WarnContext(ctx, "a branch gets the settings of a settled one at its next start", "branch", b.Name, "err", err)
	}
	return nil
}

// unsettle stops settling a branch.
func (s *Service) unsettle(branchID string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if cancel, ok := s.settling[branchID]; ok {
		cancel()
		delete(s.settling, branchID)
	}
}

func pause(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
	case <-t.C:
	}
}
