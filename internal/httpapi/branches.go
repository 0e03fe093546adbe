package httpapi

import (
	"crypto/rand"
	"encoding/json"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/pgbough/pgbough"
	"github.com/pgbough/pgbough/internal/neonapi"
)

func (a *api) listBranches(w http.ResponseWriter, r *http.Request) error {
	views, err := a.service.Branches(r.Context(), r.PathValue("project"))
	if err != nil {
		return err
	}
	search := r.URL.Query().Get("search")
	views = slices.DeleteFunc(slices.Clone(views), func(v pgbough.BranchView) bool {
		return !strings.Contains(v.Name, search) && v.ID != search
	})
	o := order{}
	views, next, err := page(r, views, o, func(v pgbough.BranchView) string { return o.key(v.CreatedAt, v.ID) })
	if err != nil {
		return err
	}
	out := neonapi.BranchList{
		Branches:    []neonapi.Branch{},
		Annotations: map[string]neonapi.Annotation{},
		Pagination:  neonapi.Pagination{Next: next, SortBy: "created_at", SortOrder: "asc"},
	}
	for _, v := range views {
		b := wireBranch(v)
		b.Differences, b.Path = nil, ""
		out.Branches = append(out.Branches, b)
	}
	return writeJSON(w, http.StatusOK, out)
}

func (a *api) createBranch(w http.ResponseWriter, r *http.Request) error {
	var body neonapi.CreateBranchRequest
	if err := readJSON(r, &body); err != nil {
		return err
	}
	limit, err := waitLimit(r, defaultWait)
	if err != nil {
		return err
	}
	req, err := createRequest(body)
	if err != nil {
		return err
	}
	ctx, project := r.Context(), r.PathValue("project")
	created, err := a.service.CreateBranch(ctx, project, req)
	if err != nil {
		return err
	}
	op, err := a.wait(ctx, created.Operation, limit)
	if err != nil {
		return err
	}
	out := neonapi.CreatedBranch{
		Operations:     wireOperations(op),
		Roles:          []neonapi.Role{},
		Databases:      []neonapi.Database{},
		ConnectionURIs: []neonapi.ConnectionDetails{},
	}
	view, status := created.Branch, http.StatusCreated
	if op.ID == "" {
		status = http.StatusOK // it was there already
	}
	if op.ID == "" || op.Status == pgbough.OperationFinished {
		if view, err = a.service.Unsized(ctx, project, view.ID); err != nil {
			return err
		}
	}
	if view.State == pgbough.BranchReady {
		if err := a.addConnection(r, view, &out); err != nil {
			return err
		}
	}
	out.Branch, out.Endpoints = wireBranch(view), wireEndpoints(view)
	return writeJSON(w, status, out)
}

// addConnection adds what is needed to use a branch that is ready.
func (a *api) addConnection(r *http.Request, view pgbough.BranchView, out *neonapi.CreatedBranch) error {
	project := r.PathValue("project")
	roles, err := a.service.Roles(r.Context(), project, view.ID)
	if err != nil {
		return err
	}
	for _, role := range roles {
		out.Roles = append(out.Roles, wireRole(view, role, true))
	}
	conn, err := a.service.Connection(r.Context(), project, view.ID, "", "")
	if err != nil {
		// It was made, whatever keeps it from being used: that is told to who asks for a way to connect to it.
		a.log.WarnContext(r.Context(), "a branch that was made has no way to connect to it", "branch", view.Name, "err", err)
		return nil
	}
	out.ConnectionURIs = append(out.ConnectionURIs, wireConnection(view, conn))
	return nil
}

// createRequest reads what is wanted, and refuses what this version cannot do:
// a branch that is not what was asked for would be worse than none.
func createRequest(body neonapi.CreateBranchRequest) (pgbough.CreateRequest, error) {
	b := body.Branch
	switch {
	case b.ParentLSN != "" && b.ParentTimestamp != nil:
		return pgbough.CreateRequest{}, pgbough.Errorf(pgbough.EInvalid, "parent_lsn and parent_timestamp are two moments; give one")
	case b.InitSource != "" && b.InitSource != "parent-data":
		return pgbough.CreateRequest{}, notYet("init_source " + b.InitSource)
	case body.MaxLagSeconds < 0 || b.TTLSeconds < 0:
		return pgbough.CreateRequest{}, pgbough.Errorf(pgbough.EInvalid, "a duration is less than nothing")
	}
	var timeout *float64
	for _, e := range body.Endpoints {
		if e.Type != "" && e.Type != "read_write" {
			return pgbough.CreateRequest{}, notYet("an endpoint of type " + e.Type)
		}
		timeout = e.SuspendTimeoutSeconds
	}
	req := pgbough.CreateRequest{
		Name:   b.Name,
		Parent: b.ParentID,
		MaxLag: seconds(body.MaxLagSeconds),
		Reuse:  body.Reuse,

		Protected: b.Protected,
	}
	if b.ParentTimestamp != nil {
		req.At.Time = *b.ParentTimestamp
	}
	if b.ParentLSN != "" {
		lsn, err := pgbough.ParseLSN(b.ParentLSN)
		if err != nil || lsn == 0 {
			return req, pgbough.Errorf(pgbough.EInvalid, "parent_lsn %q is not an LSN such as 16/B374D848", b.ParentLSN)
		}
		req.At.LSN = lsn
	}
	if req.Name == "" {
		req.Name = "branch-" + strings.ToLower(rand.Text()[:8])
	}
	if err := pgbough.CheckName(req.Name); err != nil {
		return pgbough.CreateRequest{}, err
	}
	var err error
	if req.SuspendAfter, err = suspendAfter(timeout); err != nil {
		return req, err
	}
	req.ExpiresAt, err = expiry(b.ExpiresAt, b.TTLSeconds)
	return req, err
}

// suspendAfter reads Neon's suspend_timeout_seconds: 0 is the server's default, -1 never.
func suspendAfter(timeout *float64) (*time.Duration, error) {
	if timeout == nil {
		return nil, nil
	}
	d := seconds(*timeout)
	switch {
	case *timeout == 0:
		d = pgbough.SuspendByDefault
	case *timeout == neverSuspend:
		d = pgbough.SuspendNever
	case d <= 0:
		return nil, pgbough.Errorf(pgbough.EInvalid, "suspend_timeout_seconds %g is not a time; -1 is never, 0 the server's default", *timeout)
	}
	return &d, nil
}

func notYet(what string) error {
	return pgbough.Errorf(pgbough.EInvalid, "%s is not in this version of pgbough", what)
}

func seconds(s float64) time.Duration { return time.Duration(s * float64(time.Second)) }

// expiry is when a branch goes, of a time or of a time to live.
func expiry(at *time.Time, ttl float64) (time.Time, error) {
	switch {
	case ttl > 0:
		return time.Now().Add(seconds(ttl)).UTC(), nil
	case at == nil:
		return time.Time{}, nil
	case !at.After(time.Now()):
		return time.Time{}, pgbough.Errorf(pgbough.EInvalid, "expires_at %s is in the past", at.Format(time.RFC3339))
	default:
		return at.UTC(), nil
	}
}

func (a *api) getBranch(w http.ResponseWriter, r *http.Request) error {
	look := a.service.Branch
	if r.URL.Query().Get("sizes") == "false" {
		look = a.service.Unsized
	}
	v, err := look(r.Context(), r.PathValue("project"), r.PathValue("branch"))
	if err != nil {
		return err
	}
	return writeJSON(w, http.StatusOK, neonapi.BranchResponse{
		Branch: wireBranch(v),
		Annotation: &neonapi.Annotation{
			Object: neonapi.AnnotationObject{Type: "console/branch", ID: v.ID},
			Value:  map[string]string{},
		},
	})
}

func (a *api) updateBranch(w http.ResponseWriter, r *http.Request) error {
	var body neonapi.UpdateBranchRequest
	if err := readJSON(r, &body); err != nil {
		return err
	}
	b := body.Branch
	if b.TTLSeconds < 0 {
		return pgbough.Errorf(pgbough.EInvalid, "ttl_interval_seconds is less than nothing")
	}
	change := pgbough.BranchChange{Name: b.Name, Protected: b.Protected}
	if b.ExpiresAt != nil || b.TTLSeconds != 0 {
		var at *time.Time
		if b.ExpiresAt != nil { // null leaves at nil, which is never
			if err := json.Unmarshal(b.ExpiresAt, &at); err != nil {
				return pgbough.Errorf(pgbough.EInvalid, "expires_at %s is not a time such as 2027-01-31T12:00:00Z", b.ExpiresAt)
			}
		}
		expires, err := expiry(at, b.TTLSeconds)
		if err != nil {
			return err
		}
		change.ExpiresAt = &expires
	}
	var err error
	if change.SuspendAfter, err = suspendAfter(b.SuspendTimeoutSeconds); err != nil {
		return err
	}
	view, err := a.service.UpdateBranch(r.Context(), r.PathValue("project"), r.PathValue("branch"), change)
	if err != nil {
		return err
	}
	return writeJSON(w, http.StatusOK, neonapi.BranchResponse{Branch: wireBranch(view), Operations: []neonapi.Operation{}})
}

func (a *api) deleteBranch(w http.ResponseWriter, r *http.Request) error {
	limit, err := waitLimit(r, defaultWait)
	if err != nil {
		return err
	}
	cascade, err := boolOf(r, "cascade")
	if err != nil {
		return err
	}
	view, op, err := a.service.DeleteBranch(r.Context(), r.PathValue("project"), r.PathValue("branch"), cascade)
	if err != nil {
		return err
	}
	if op, err = a.waitGone(r.Context(), op, limit); err != nil {
		return err
	}
	return writeJSON(w, http.StatusOK, neonapi.BranchResponse{Branch: wireBranch(view), Operations: wireOperations(op)})
}
