package httpapi

import (
	"errors"
	"io"
	"net/http"
	"time"

	"github.com/pgbough/pgbough"
	"github.com/pgbough/pgbough/internal/neonapi"
)

func (a *api) listBranchEndpoints(w http.ResponseWriter, r *http.Request) error {
	v, err := a.service.Branch(r.Context(), r.PathValue("project"), r.PathValue("branch"))
	if err != nil {
		return err
	}
	return writeJSON(w, http.StatusOK, neonapi.EndpointList{Endpoints: wireEndpoints(v)})
}

func (a *api) listEndpoints(w http.ResponseWriter, r *http.Request) error {
	views, err := a.service.Branches(r.Context(), r.PathValue("project"))
	if err != nil {
		return err
	}
	out := neonapi.EndpointList{Endpoints: []neonapi.Endpoint{}}
	for _, v := range views {
		out.Endpoints = append(out.Endpoints, wireEndpoints(v)...)
	}
	return writeJSON(w, http.StatusOK, out)
}

func (a *api) listRoles(w http.ResponseWriter, r *http.Request) error {
	view, roles, err := a.roles(r)
	if err != nil {
		return err
	}
	out := neonapi.RoleList{Roles: []neonapi.Role{}}
	for _, role := range roles {
		out.Roles = append(out.Roles, wireRole(view, role, false))
	}
	return writeJSON(w, http.StatusOK, out)
}

func (a *api) getRole(w http.ResponseWriter, r *http.Request) error {
	view, role, err := a.role(r)
	if err != nil {
		return err
	}
	return writeJSON(w, http.StatusOK, neonapi.RoleResponse{Role: wireRole(view, role, false)})
}

func (a *api) revealPassword(w http.ResponseWriter, r *http.Request) error {
	_, role, err := a.role(r)
	if err != nil {
		return err
	}
	return writeJSON(w, http.StatusOK, neonapi.Password{Password: role.Password})
}

func (a *api) roles(r *http.Request) (pgbough.BranchView, []pgbough.Role, error) {
	project, branch := r.PathValue("project"), r.PathValue("branch")
	view, err := a.service.Branch(r.Context(), project, branch)
	if err != nil {
		return pgbough.BranchView{}, nil, err
	}
	roles, err := a.service.Roles(r.Context(), project, view.ID)
	return view, roles, err
}

func (a *api) role(r *http.Request) (pgbough.BranchView, pgbough.Role, error) {
	view, roles, err := a.roles(r)
	if err != nil {
		return pgbough.BranchView{}, pgbough.Role{}, err
	}
	name := r.PathValue("role")
	for _, role := range roles {
		if role.Name == name {
			return view, role, nil
		}
	}
	return pgbough.BranchView{}, pgbough.Role{}, pgbough.Errorf(pgbough.ENotFound, "branch %s has no login role %q", view.Name, name)
}

func (a *api) getConnectionURI(w http.ResponseWriter, r *http.Request) error {
	q := r.URL.Query()
	branch := q.Get("branch_id")
	if branch == "" {
		return pgbough.Errorf(pgbough.EInvalid, "branch_id is missing, and the root branch cannot be connected to")
	}
	conn, err := a.service.Connection(r.Context(), r.PathValue("project"), branch, q.Get("role_name"), q.Get("database_name"))
	if err != nil {
		return err
	}
	return writeJSON(w, http.StatusOK, neonapi.ConnectionURI{URI: conn.URI, Libpq: wireLibpq(conn)})
}

// streamLog copies the log of a branch's Postgres as it is, and flushes after
// every piece so that a follower sees it at once.
func (a *api) streamLog(w http.ResponseWriter, r *http.Request) error {
	follow, err := boolOf(r, "follow")
	if err != nil {
		return err
	}
	ctx, stop := a.whileGood(r)
	defer stop()
	log, err := a.service.Log(ctx, r.PathValue("project"), r.PathValue("branch"), follow)
	if err != nil {
		return err
	}
	defer func() { _ = log.Close() }() // it was only read
	control := http.NewResponseController(w)
	_ = control.SetWriteDeadline(time.Time{}) // not every server has one
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.WriteHeader(http.StatusOK)
	_ = control.Flush() // an error shows at the next write
	buf := make([]byte, 32<<10)
	for {
		n, err := log.Read(buf)
		if n > 0 {
			if _, err := w.Write(buf[:n]); err != nil {
				return nil // the client is gone
			}
			_ = control.Flush()
		}
		if err == nil {
			continue
		}
		if !errors.Is(err, io.EOF) && ctx.Err() == nil {
			a.log.ErrorContext(ctx, "log of branch cannot be read", "request_id", w.Header().Get(requestIDHeader), "error", err)
			panic(http.ErrAbortHandler) // so that the client sees that something is missing
		}
		return nil
	}
}
