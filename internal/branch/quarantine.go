package branch

import (
	"context"
	"slices"

	"github.com/pgbough/pgbough"
	"github.com/pgbough/pgbough/internal/credential"
	"github.com/pgbough/pgbough/internal/postgres"
	"github.com/pgbough/pgbough/internal/quarantine"
)

// openQuarantine connects to a spare while it still catches up, so that its
// quarantine finds connections and warm caches. It returns nil when one is open
// already, or cannot be opened, which is no failure.
func (s *Service) openQuarantine(ctx context.Context, projectID string, server *postgres.Server) *quarantine.Quarantine {
	if _, ok := s.opened.Load(server.Config().ID); ok {
		return nil
	}
	p, err := s.catalog.Project(ctx, projectID)
	if err != nil {
		return nil
	}
	q, err := quarantine.Open(ctx, s.quarantineOptions(p, server))
	if err != nil {
		s.log.DebugContext(ctx, "quarantine cannot look at the spare yet", "err", err)
		return nil
	}
	if _, ok := s.opened.LoadOrStore(server.Config().ID, q); ok { // two at a time
		_ = q.Close(ctx)
		return nil
	}
	return q
}

// warm opens the quarantine of a ready spare, so that a create need not.
func (s *Service) warm(ctx context.Context, sp pgbough.Spare) {
	f, err := s.followerOf(sp.ProjectID)
	if err != nil {
		return
	}
	spare, ok := f.Spare(sp.VolumeID)
	if !ok {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, short)
	defer cancel()
	q := s.openQuarantine(ctx, sp.ProjectID, spare.Server)
	if q == nil {
		return
	}
	spares, err := s.catalog.Spares(ctx, sp.ProjectID)
	still := func(now pgbough.Spare) bool { return now.VolumeID == sp.VolumeID && now.State == pgbough.SpareReady }
	if err != nil || !slices.ContainsFunc(spares, still) {
		if s.opened.CompareAndDelete(sp.VolumeID, q) { // taken or discarded meanwhile, and not used
			_ = q.Close(ctx)
		}
	}
}

func (s *Service) closeQuarantine(ctx context.Context, volumeID string) {
	if q, ok := s.opened.LoadAndDelete(volumeID); ok {
		_ = q.(*quarantine.Quarantine).Close(ctx) // its sessions end with its server at the latest
	}
}

// runQuarantine runs the quarantine that was opened before, or a new one where
// there is none or its connections have died.
func (s *Service) runQuarantine(ctx context.Context, p pgbough.Project, server *postgres.Server) (quarantine.Report, error) {
	if q, ok := s.opened.LoadAndDelete(server.Config().ID); ok {
		q := q.(*quarantine.Quarantine)
		report, err := q.Run(ctx)
		s.wg.Go(func() { _ = q.Close(s.ctx) }) // each of its backends takes some milliseconds to end
		if err == nil {
			return report, nil
		}
		s.log.InfoContext(ctx, "quarantine runs again with new connections", "err", err)
	}
	return quarantine.Run(ctx, s.quarantineOptions(p, server))
}

// lookAhead lets the quarantine that was opened before look at a spare that has
// replayed all that it ever will.
func (s *Service) lookAhead(ctx context.Context, volumeID string) {
	if q, ok := s.opened.Load(volumeID); ok {
		q.(*quarantine.Quarantine).LookAhead(ctx)
	}
}

// quarantineOptions leave old versions of what was cut to Purge, which takes
// them out of the files with the WAL that holds them anyway: seconds later.
func (s *Service) quarantineOptions(p pgbough.Project, server *postgres.Server) quarantine.Options {
	return quarantine.Options{Config: server.ConnConfig, Major: p.Source.Major, Secret: s.secret, RewriteLater: true, Log: s.log}
}

// secret is a fresh password with its verifier.
func (s *Service) secret() (quarantine.Secret, error) {
	select {
	case secret := <-s.secrets:
		return secret, nil
	default:
		return newSecret()
	}
}

func newSecret() (quarantine.Secret, error) {
	password := credential.NewPassword()
	verifier, err := credential.NewSCRAM(password, scramIterations)
	return quarantine.Secret{Password: password, Verifier: verifier}, err
}

// makeSecrets has passwords ready: each costs about a millisecond of hashing,
// which a branch with many roles should not wait for.
func (s *Service) makeSecrets() {
	for {
		secret, err := newSecret()
		if err != nil {
			s.log.ErrorContext(s.ctx, "a password cannot be made", "err", err)
			return
		}
		select {
		case s.secrets <- secret:
		case <-s.ctx.Done():
			return
		}
	}
}
