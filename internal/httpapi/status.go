package httpapi

import (
	"net/http"
	"slices"

	"github.com/pgbough/pgbough"
	"github.com/pgbough/pgbough/internal/neonapi"
)

func (a *api) getStatus(w http.ResponseWriter, r *http.Request) error {
	status, err := a.service.Status(r.Context())
	if err != nil {
		return err
	}
	if key := keyIn(r.Context()); key.ProjectID != "" {
		status.Projects = slices.DeleteFunc(status.Projects, func(p pgbough.ProjectStatus) bool { return !opens(key, p.Project.ID) })
		status.Notes = nil // they may be about other projects
	}
	return writeJSON(w, http.StatusOK, wireStatus(status))
}

func (a *api) getPool(w http.ResponseWriter, r *http.Request) error {
	pool, err := a.service.Pool(r.Context())
	if err != nil {
		return err
	}
	out := wirePool(pool)
	out.Volumes = wireVolumes(pool.Volumes)
	return writeJSON(w, http.StatusOK, neonapi.PoolResponse{Pool: out})
}

func (a *api) prunePool(w http.ResponseWriter, r *http.Request) error {
	var req neonapi.PruneRequest
	if err := readJSON(r, &req); err != nil {
		return err
	}
	volumes, err := a.service.Prune(r.Context(), req.DryRun)
	if err != nil {
		return err
	}
	return writeJSON(w, http.StatusOK, neonapi.PruneResponse{DryRun: req.DryRun, Volumes: wireVolumes(volumes)})
}

func (a *api) resizePool(w http.ResponseWriter, r *http.Request) error {
	var req neonapi.ResizeRequest
	if err := readJSON(r, &req); err != nil {
		return err
	}
	if req.SizeBytes <= 0 {
		return pgbough.Errorf(pgbough.EInvalid, "size_bytes must be the size of the pool in bytes")
	}
	pool, err := a.service.ResizePool(r.Context(), req.SizeBytes)
	if err != nil {
		return err
	}
	return writeJSON(w, http.StatusOK, neonapi.PoolResponse{Pool: wirePool(pool)})
}

func (a *api) getAuth(w http.ResponseWriter, _ *http.Request) error {
	return writeJSON(w, http.StatusOK, neonapi.Auth{AccountID: neonapi.OwnerID, AuthMethod: "api_key_user", AuthData: neonapi.OwnerID})
}

func (a *api) getUser(w http.ResponseWriter, _ *http.Request) error {
	const unlimited = 1 << 30
	return writeJSON(w, http.StatusOK, neonapi.User{
		ID: neonapi.OwnerID, Login: neonapi.OwnerID, Name: neonapi.OwnerID,
		ProjectsLimit: unlimited, BranchesLimit: unlimited, AuthAccounts: []string{}, Plan: "free",
	})
}

func (a *api) listOrganizations(w http.ResponseWriter, _ *http.Request) error {
	return writeJSON(w, http.StatusOK, neonapi.OrganizationList{Organizations: []struct{}{}})
}

func (a *api) listRegions(w http.ResponseWriter, _ *http.Request) error {
	return writeJSON(w, http.StatusOK, neonapi.RegionList{Regions: []neonapi.Region{{
		RegionID: neonapi.RegionID, Name: "the pgbough server's own machine", Default: true, GeoLat: "0", GeoLong: "0",
	}}})
}
