package httpapi

import (
	"net/http"

	"github.com/pgbough/pgbough"
	"github.com/pgbough/pgbough/internal/neonapi"
)

func (a *api) createKey(w http.ResponseWriter, r *http.Request) error {
	var req neonapi.CreateKeyRequest
	if err := readJSON(r, &req); err != nil {
		return err
	}
	key, secret, err := a.service.CreateKey(r.Context(), pgbough.KeyRequest{
		Name: req.KeyName, Project: req.ProjectID, MetricsOnly: req.MetricsOnly,
	})
	if err != nil {
		return err
	}
	return writeJSON(w, http.StatusOK, neonapi.CreatedKey{Key: secret, APIKey: wireKey(key)})
}

// listKeys answers with a bare list, as Neon does.
func (a *api) listKeys(w http.ResponseWriter, r *http.Request) error {
	keys, err := a.service.Keys(r.Context())
	if err != nil {
		return err
	}
	out := []neonapi.APIKey{}
	for _, k := range keys {
		out = append(out, wireKey(k))
	}
	return writeJSON(w, http.StatusOK, out)
}

func (a *api) revokeKey(w http.ResponseWriter, r *http.Request) error {
	key, err := a.service.RevokeKey(r.Context(), r.PathValue("key"))
	if err != nil {
		return err
	}
	return writeJSON(w, http.StatusOK, neonapi.RevokedKey{APIKey: wireKey(key), Revoked: true})
}

func wireKey(k pgbough.APIKey) neonapi.APIKey {
	return neonapi.APIKey{
		ID: k.ID, Name: k.Name, CreatedAt: k.CreatedAt.UTC(), LastUsedAt: k.LastUsedAt.UTC(),
		CreatedBy: neonapi.KeyCreator{ID: neonapi.OwnerID, Name: neonapi.OwnerID},
		ProjectID: k.ProjectID, ProjectName: k.ProjectName, MetricsOnly: k.MetricsOnly,
	}
}
