package branch

import (
	"context"
	"errors"

	"github.com/pgbough/pgbough"
	"github.com/pgbough/pgbough/internal/credential"
	"github.com/pgbough/pgbough/internal/postgres"
	"github.com/pgbough/pgbough/internal/quarantine"
)

// openQuarantine connects to a spare while it still catches up, so that its
// quarantine finds connections and warm caches. That it cannot is no failure.
func (s *Service) openQuarantine(ctx context.Context, projectID string, server *postgres.Server) {
	p, err := s.catalog.Project(ctx, projectID)
	if err != nil {
		return
	}
	q, err := quarantine.Open(ctx, s.quarantineOptions(p, server))
	if err != nil {
		s.log.DebugContext(ctx, "quarantine cannot look at the spare yet", "err", err)
		return
	}
	s.closeQuarantine(ctx, server.Config().ID) // of an earlier try
	s.opened.Store(server.Config().ID, q)
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
		err = errors.Join(err, q.Close(context.WithoutCancel(ctx)))
		if err == nil {
			return report, nil
		}
		s.log.InfoContext(ctx, "quarantine runs again with new connections", "err", err)
	}
	return quarantine.Run(ctx, s.quarantineOptions(p, server))
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
