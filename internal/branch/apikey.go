package branch

import (
	"context"
	"strings"
	"time"

	"github.com/pgbough/pgbough"
	"github.com/pgbough/pgbough/internal/credential"
)

// useGrain is how exactly the last use of an API key is known, so that most
// requests write nothing.
const useGrain = time.Minute

// Authenticate finds whose API key was shown, and is false if it is nobody's. No
// answer is remembered, so a key that was revoked is refused at once.
func (s *Service) Authenticate(ctx context.Context, shown string) (pgbough.APIKey, bool, error) {
	if s.admin.Matches(shown) {
		return pgbough.APIKey{Name: "admin"}, true, nil
	}
	k, ok, err := s.catalog.APIKeyOf(ctx, credential.HashAPIKey(shown))
	if err != nil || !ok {
		return pgbough.APIKey{}, false, err
	}
	if now := time.Now().UTC(); now.Sub(k.LastUsedAt) >= useGrain {
		k.LastUsedAt = now
		if err := s.catalog.NoteAPIKeyUse(ctx, k.ID, now); err != nil {
			s.log.WarnContext(ctx, "the use of an API key cannot be noted", "key", k.Name, "err", err)
		}
	}
	return k, true, nil
}

// CreateKey makes an API key, and returns it with what is shown for it, which is
// kept nowhere.
func (s *Service) CreateKey(ctx context.Context, req pgbough.KeyRequest) (pgbough.APIKey, string, error) {
	k := pgbough.APIKey{Name: req.Name, MetricsOnly: req.MetricsOnly, CreatedAt: time.Now().UTC()}
	if err := checkKey(req); err != nil {
		return k, "", err
	}
	if req.Project != "" {
		p, err := s.catalog.Project(ctx, req.Project)
		if err != nil {
			return k, "", err
		}
		k.ProjectID, k.ProjectName = p.ID, p.Name
	}
	secret := credential.NewAPIKey().Reveal()
	k, err := s.catalog.CreateAPIKey(ctx, k, credential.HashAPIKey(secret))
	if err != nil {
		return k, "", err
	}
	s.log.InfoContext(ctx, "API key created", "key", k.Name, "id", k.ID, "project", k.ProjectName, "metrics_only", k.MetricsOnly)
	return k, secret, nil
}

func checkKey(req pgbough.KeyRequest) error {
	if err := pgbough.CheckName(req.Name); err != nil {
		return err
	}
	switch {
	case strings.Trim(req.Name, "0123456789") == "":
		return pgbough.Errorf(pgbough.EInvalid, "%q cannot be the name of an API key: it looks like the id of one", req.Name).WithHint("add a letter")
	case req.MetricsOnly && req.Project != "":
		return pgbough.Errorf(pgbough.EInvalid, "a key for the metrics opens no project").WithHint("give one of both")
	}
	return nil
}

// Keys lists all API keys but the server's own.
func (s *Service) Keys(ctx context.Context) ([]pgbough.APIKey, error) { return s.catalog.APIKeys(ctx) }

// RevokeKey ends an API key, by id or name.
func (s *Service) RevokeKey(ctx context.Context, key string) (pgbough.APIKey, error) {
	k, err := s.catalog.DeleteAPIKey(ctx, key)
	if err == nil {
		s.log.InfoContext(ctx, "API key revoked", "key", k.Name, "id", k.ID, "project", k.ProjectName)
	}
	return k, err
}
