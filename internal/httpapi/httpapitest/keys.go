package httpapitest

import (
	"context"
	"crypto/rand"
	"slices"
	"strconv"

	"github.com/pgbough/pgbough"
	"github.com/pgbough/pgbough/internal/httpapi"
)

// Admin is the key that opens everything.
const Admin = "k"

// storedKey is an API key with what is shown for it.
type storedKey struct {
	pgbough.APIKey
	shown string
}

var _ httpapi.Keys = (*Service)(nil)

// Authenticate implements httpapi.Keys.
func (s *Service) Authenticate(_ context.Context, shown string) (pgbough.APIKey, bool, error) {
	s.Lock()
	defer s.Unlock()
	if shown == Admin {
		return pgbough.APIKey{Name: "admin"}, true, s.Fail["Authenticate"]
	}
	i := slices.IndexFunc(s.keys, func(k storedKey) bool { return k.shown == shown })
	if i < 0 {
		return pgbough.APIKey{}, false, s.Fail["Authenticate"]
	}
	s.keys[i].LastUsedAt = s.now()
	return s.keys[i].APIKey, true, s.Fail["Authenticate"]
}

// CreateKey implements httpapi.Service.
func (s *Service) CreateKey(_ context.Context, req pgbough.KeyRequest) (pgbough.APIKey, string, error) {
	err := s.enter("CreateKey")
	defer s.Unlock()
	if err == nil {
		err = pgbough.CheckName(req.Name)
	}
	if err != nil {
		return pgbough.APIKey{}, "", err
	}
	if slices.ContainsFunc(s.keys, func(k storedKey) bool { return k.Name == req.Name }) {
		return pgbough.APIKey{}, "", pgbough.Errorf(pgbough.EConflict, "there is an API key %q already", req.Name).WithHint("choose another name")
	}
	s.lastKey++
	k := storedKey{pgbough.APIKey{ID: s.lastKey, Name: req.Name, MetricsOnly: req.MetricsOnly, CreatedAt: s.now()}, "pgbough_" + rand.Text()}
	if req.Project != "" {
		p, err := s.project(req.Project)
		if err != nil {
			return pgbough.APIKey{}, "", err
		}
		k.ProjectID, k.ProjectName = p.ID, p.Name
	}
	s.keys = append(s.keys, k)
	return k.APIKey, k.shown, nil
}

// Keys implements httpapi.Service.
func (s *Service) Keys(context.Context) ([]pgbough.APIKey, error) {
	err := s.enter("Keys")
	defer s.Unlock()
	var out []pgbough.APIKey
	for _, k := range s.keys {
		out = append(out, k.APIKey)
	}
	return out, err
}

// RevokeKey implements httpapi.Service.
func (s *Service) RevokeKey(_ context.Context, key string) (pgbough.APIKey, error) {
	err := s.enter("RevokeKey")
	defer s.Unlock()
	if err != nil {
		return pgbough.APIKey{}, err
	}
	i := slices.IndexFunc(s.keys, func(k storedKey) bool { return strconv.FormatInt(k.ID, 10) == key || k.Name == key })
	if i < 0 {
		return pgbough.APIKey{}, pgbough.Errorf(pgbough.ENotFound, "there is no API key %q", key).WithHint("see: pgbough key list")
	}
	gone := s.keys[i].APIKey
	s.keys = slices.Delete(s.keys, i, i+1)
	return gone, nil
}

// Healthy implements httpapi.Service.
func (s *Service) Healthy(context.Context) error {
	err := s.enter("Healthy")
	defer s.Unlock()
	return err
}
