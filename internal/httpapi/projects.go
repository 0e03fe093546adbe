package httpapi

import (
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/pgbough/pgbough"
	"github.com/pgbough/pgbough/internal/neonapi"
)

func (a *api) listProjects(w http.ResponseWriter, r *http.Request) error {
	projects, err := a.service.Projects(r.Context())
	if err != nil {
		return err
	}
	search, key := r.URL.Query().Get("search"), keyIn(r.Context())
	projects = slices.DeleteFunc(slices.Clone(projects), func(p pgbough.Project) bool {
		return !opens(key, p.ID) || !strings.Contains(p.Name, search) && p.ID != search
	})
	o := order{}
	projects, next, err := page(r, projects, o, func(p pgbough.Project) string { return o.key(p.CreatedAt, p.ID) })
	if err != nil {
		return err
	}
	out := neonapi.ProjectList{Projects: []neonapi.Project{}, Pagination: neonapi.Pagination{Cursor: next}}
	for _, p := range projects {
		out.Projects = append(out.Projects, wireProject(p))
	}
	return writeJSON(w, http.StatusOK, out)
}

// listSharedProjects is there because Neon's command line takes a 404 for a
// failure of the whole listing.
func (a *api) listSharedProjects(w http.ResponseWriter, _ *http.Request) error {
	return writeJSON(w, http.StatusOK, neonapi.ProjectList{Projects: []neonapi.Project{}})
}

func (a *api) createProject(w http.ResponseWriter, r *http.Request) error {
	var req neonapi.CreateProjectRequest
	if err := readJSON(r, &req); err != nil {
		return err
	}
	limit, err := waitLimit(r, 0)
	if err != nil {
		return err
	}
	if req.Project.Source == nil || req.Project.Source.ConnectionString == "" {
		return pgbough.Errorf(pgbough.EInvalid, "a project follows a production Postgres, and the request names none").
			WithHint("give project.source.connection_string, or use `pgbough attach NAME --source CONNSTR`")
	}
	if err := pgbough.CheckName(req.Project.Name); err != nil {
		return err
	}
	project, op, err := a.service.Attach(r.Context(), pgbough.AttachRequest{
		Name:          req.Project.Name,
		SourceRequest: sourceRequest(*req.Project.Source),
		Role:          req.Project.Branch.RoleName,
		Database:      req.Project.Branch.DatabaseName,
		History:       retention(req.Project.HistoryRetentionSeconds),
	})
	if err != nil {
		return err
	}
	op, err = a.wait(r.Context(), op, limit)
	if err != nil {
		return err
	}
	root := pgbough.BranchView{Branch: pgbough.Branch{
		ID: project.RootBranchID, ProjectID: project.ID, Name: pgbough.RootBranchName,
		State: pgbough.BranchInit, CreatedAt: project.CreatedAt,
	}}
	return writeJSON(w, http.StatusCreated, neonapi.CreatedProject{
		Project:        wireProject(project),
		ConnectionURIs: []neonapi.ConnectionDetails{},
		Roles:          []neonapi.Role{},
		Databases:      []neonapi.Database{},
		Operations:     wireOperations(op),
		Branch:         wireBranch(root),
		Endpoints:      []neonapi.Endpoint{},
	})
}

func (a *api) getProject(w http.ResponseWriter, r *http.Request) error {
	p, err := a.service.Project(r.Context(), r.PathValue("project"))
	if err != nil {
		return err
	}
	return writeJSON(w, http.StatusOK, neonapi.ProjectResponse{Project: wireProject(p)})
}

func (a *api) updateProject(w http.ResponseWriter, r *http.Request) error {
	var req neonapi.UpdateProjectRequest
	if err := readJSON(r, &req); err != nil {
		return err
	}
	p, err := a.service.ChangeProject(r.Context(), r.PathValue("project"), pgbough.ProjectChange{History: retention(req.Project.HistoryRetentionSeconds)})
	if err != nil {
		return err
	}
	return writeJSON(w, http.StatusOK, neonapi.ProjectResponse{Project: wireProject(p), Operations: wireOperations(pgbough.Operation{})})
}

// retention reads Neon's history_retention_seconds; what is not there changes nothing.
func retention(s *float64) *time.Duration {
	if s == nil {
		return nil
	}
	d := seconds(*s)
	return &d
}

func (a *api) getHistory(w http.ResponseWriter, r *http.Request) error {
	h, err := a.service.History(r.Context(), r.PathValue("project"))
	if err != nil {
		return err
	}
	return writeJSON(w, http.StatusOK, wireHistory(h))
}

func (a *api) deleteProject(w http.ResponseWriter, r *http.Request) error {
	limit, err := waitLimit(r, defaultWait)
	if err != nil {
		return err
	}
	p, op, err := a.service.DeleteProject(r.Context(), r.PathValue("project"))
	if err != nil {
		return err
	}
	if op, err = a.waitGone(r.Context(), op, limit); err != nil {
		return err
	}
	return writeJSON(w, http.StatusOK, neonapi.ProjectResponse{Project: wireProject(p), Operations: wireOperations(op)})
}

func (a *api) setSource(w http.ResponseWriter, r *http.Request) error {
	var req neonapi.SetSourceRequest
	if err := readJSON(r, &req); err != nil {
		return err
	}
	limit, err := waitLimit(r, defaultWait)
	if err != nil {
		return err
	}
	if req.Source.ConnectionString == "" {
		return pgbough.Errorf(pgbough.EInvalid, "source.connection_string is missing")
	}
	p, op, err := a.service.SetSource(r.Context(), r.PathValue("project"), sourceRequest(req.Source))
	if err != nil {
		return err
	}
	if op, err = a.wait(r.Context(), op, limit); err != nil {
		return err
	}
	return writeJSON(w, http.StatusOK, neonapi.ProjectResponse{Project: wireProject(p), Operations: wireOperations(op)})
}

func (a *api) check(w http.ResponseWriter, r *http.Request) error {
	var req neonapi.CheckRequest
	if err := readJSON(r, &req); err != nil {
		return err
	}
	if req.Source.ConnectionString == "" {
		return pgbough.Errorf(pgbough.EInvalid, "source.connection_string is missing")
	}
	report, err := a.service.Check(r.Context(), pgbough.CheckRequest{
		SourceRequest: sourceRequest(req.Source), Role: req.Role, Database: req.Database,
	})
	if err != nil {
		return err
	}
	return writeJSON(w, http.StatusOK, wireReport(report))
}

func sourceRequest(s neonapi.SourceRequest) pgbough.SourceRequest {
	return pgbough.SourceRequest{
		ConnString:          s.ConnectionString,
		RestoreCommand:      s.RestoreCommand,
		MaxRate:             s.MaxRateBytes,
		AcceptUnlimitedSlot: s.AcceptUnlimitedSlot,
	}
}
