package client

import (
	"context"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/pgbough/pgbough"
)

// step is how long one request waits for an operation: the server answers at
// once when it is done, and a person who watches it sees progress so often.
const step = time.Second

func waiting(d time.Duration) url.Values { return url.Values{"wait": {d.String()}} }

// Status tells how the server and all its projects are.
func (c *Client) Status(ctx context.Context) (Status, error) {
	return ask[Status](ctx, c, http.MethodGet, "/status", nil, nil)
}

// Check looks at everything that attaching would need and changes nothing.
func (c *Client) Check(ctx context.Context, req CheckRequest) (CheckReport, error) {
	return ask[CheckReport](ctx, c, http.MethodPost, "/check", nil, req)
}

// Attach starts to make a project. It is there when its operation is finished.
func (c *Client) Attach(ctx context.Context, req CreateProjectRequest) (CreatedProject, error) {
	return ask[CreatedProject](ctx, c, http.MethodPost, "/projects", nil, req)
}

// Projects lists all projects.
func (c *Client) Projects(ctx context.Context) (ProjectList, error) {
	return ask[ProjectList](ctx, c, http.MethodGet, "/projects", nil, nil)
}

// Project finds a project.
func (c *Client) Project(ctx context.Context, project string) (ProjectResponse, error) {
	return ask[ProjectResponse](ctx, c, http.MethodGet, path("projects", project), nil, nil)
}

// DeleteProject starts to delete a project with everything in it.
func (c *Client) DeleteProject(ctx context.Context, project string) (ProjectResponse, error) {
	return ask[ProjectResponse](ctx, c, http.MethodDelete, path("projects", project), waiting(0), nil)
}

// UpdateProject changes what can be changed of a project.
func (c *Client) UpdateProject(ctx context.Context, project string, req UpdateProjectRequest) (ProjectResponse, error) {
	return ask[ProjectResponse](ctx, c, http.MethodPatch, path("projects", project), nil, req)
}

// History is how far back a project can be branched.
func (c *Client) History(ctx context.Context, project string) (History, error) {
	return ask[History](ctx, c, http.MethodGet, path("projects", project)+"/history", nil, nil)
}

// SetSource changes how a project's production is reached.
func (c *Client) SetSource(ctx context.Context, project string, req SetSourceRequest) (ProjectResponse, error) {
	return ask[ProjectResponse](ctx, c, http.MethodPatch, path("projects", project)+"/source", waiting(0), req)
}

// CreateBranch makes a branch and returns when it can be used. While that
// takes, watch is called every second.
func (c *Client) CreateBranch(ctx context.Context, project string, req CreateBranchRequest, watch func(Operation)) (out CreatedBranch, err error) {
	out, err = ask[CreatedBranch](ctx, c, http.MethodPost, path("projects", project, "branches"), waiting(step), req)
	if err != nil || out.Branch.CurrentState == string(pgbough.BranchReady) {
		return out, err
	}
	for i, op := range out.Operations {
		if out.Operations[i], err = c.WaitOperation(ctx, op, watch); err != nil {
			return out, err
		}
	}
	return c.complete(ctx, project, out)
}

// complete adds to an answer that came early what a later one would have had.
func (c *Client) complete(ctx context.Context, project string, out CreatedBranch) (CreatedBranch, error) {
	at := path("projects", project, "branches", out.Branch.ID)
	// Without sizes, as in the answer: those of many new branches take longer to measure than all else.
	branch, err := ask[BranchResponse](ctx, c, http.MethodGet, at, url.Values{"sizes": {"false"}}, nil)
	if err != nil {
		return out, err
	}
	out.Branch = branch.Branch
	endpoints, err := ask[EndpointList](ctx, c, http.MethodGet, at+"/endpoints", nil, nil)
	if err != nil {
		return out, err
	}
	out.Endpoints = endpoints.Endpoints
	roles, err := ask[RoleList](ctx, c, http.MethodGet, at+"/roles", nil, nil)
	if err != nil {
		return out, err
	}
	out.Roles = roles.Roles
	conn, err := c.Connection(ctx, project, out.Branch.ID, "", "")
	if err != nil {
		return out, err
	}
	details := ConnectionDetails{ConnectionURI: conn.URI, Libpq: conn.Libpq}
	p := &details.ConnectionParameters
	p.Database, p.Role, p.Password = conn.Libpq.DBName, conn.Libpq.User, conn.Libpq.Password
	for _, e := range out.Endpoints {
		p.Host, p.PoolerHost = e.Host, e.Host
	}
	for i := range out.Roles {
		if out.Roles[i].Name == p.Role {
			out.Roles[i].Password = p.Password
		}
	}
	out.ConnectionURIs = []ConnectionDetails{details}
	return out, nil
}

// Branches lists the branches of a project, oldest first.
func (c *Client) Branches(ctx context.Context, project string) (BranchList, error) {
	return ask[BranchList](ctx, c, http.MethodGet, path("projects", project, "branches"), nil, nil)
}

// Branch finds a branch.
func (c *Client) Branch(ctx context.Context, project, branch string) (BranchResponse, error) {
	return ask[BranchResponse](ctx, c, http.MethodGet, path("projects", project, "branches", branch), nil, nil)
}

// RenewBranch lets a branch live for ttl from now on, by the server's clock.
func (c *Client) RenewBranch(ctx context.Context, project, branch string, ttl time.Duration) (BranchResponse, error) {
	var req UpdateBranchRequest
	req.Branch.TTLSeconds = ttl.Seconds()
	return ask[BranchResponse](ctx, c, http.MethodPatch, path("projects", project, "branches", branch), nil, req)
}

// UpdateBranch changes the name of a branch, when it expires or when it sleeps.
func (c *Client) UpdateBranch(ctx context.Context, project, branch string, req UpdateBranchRequest) (BranchResponse, error) {
	return ask[BranchResponse](ctx, c, http.MethodPatch, path("projects", project, "branches", branch), nil, req)
}

// Suspend stops the Postgres of a branch until somebody connects, and returns
// when it sleeps.
func (c *Client) Suspend(ctx context.Context, project, branch string, watch func(Operation)) (EndpointResponse, error) {
	return c.turn(ctx, project, branch, "suspend", watch)
}

// Wake starts the Postgres of a branch, and returns when it answers.
func (c *Client) Wake(ctx context.Context, project, branch string, watch func(Operation)) (EndpointResponse, error) {
	return c.turn(ctx, project, branch, "start", watch)
}

func (c *Client) turn(ctx context.Context, project, branch, verb string, watch func(Operation)) (EndpointResponse, error) {
	at := path("projects", project, "endpoints", branch)
	out, err := ask[EndpointResponse](ctx, c, http.MethodPost, at+"/"+verb, waiting(step), nil)
	if err != nil {
		return out, err
	}
	waited := false
	for i, op := range out.Operations {
		waited = waited || !op.Done()
		if out.Operations[i], err = c.WaitOperation(ctx, op, watch); err != nil {
			return out, err
		}
	}
	if waited { // what came early says how it was before
		now, err := ask[EndpointResponse](ctx, c, http.MethodGet, at, nil, nil)
		out.Endpoint = now.Endpoint
		return out, err
	}
	return out, nil
}

// DeleteBranch deletes a branch, with cascade its children too, and returns
// when it is gone.
func (c *Client) DeleteBranch(ctx context.Context, project, branch string, cascade bool, watch func(Operation)) (out BranchResponse, err error) {
	q := waiting(step)
	if cascade {
		q.Set("cascade", "true")
	}
	out, err = ask[BranchResponse](ctx, c, http.MethodDelete, path("projects", project, "branches", branch), q, nil)
	for i, op := range out.Operations {
		if out.Operations[i], err = c.WaitGone(ctx, op, watch); err != nil {
			break
		}
	}
	return out, err
}

// Connection tells how to connect to a branch; an empty role or database is the
// project's default.
func (c *Client) Connection(ctx context.Context, project, branch, role, database string) (ConnectionURI, error) {
	q := url.Values{"branch_id": {branch}}
	if role != "" {
		q.Set("role_name", role)
	}
	if database != "" {
		q.Set("database_name", database)
	}
	return ask[ConnectionURI](ctx, c, http.MethodGet, path("projects", project, "connection_uri"), q, nil)
}

// Roles lists the login roles of a branch, without their passwords.
func (c *Client) Roles(ctx context.Context, project, branch string) (RoleList, error) {
	return ask[RoleList](ctx, c, http.MethodGet, path("projects", project, "branches", branch, "roles"), nil, nil)
}

// Log opens the log of a branch's Postgres; with follow it goes on until ctx
// ends.
func (c *Client) Log(ctx context.Context, project, branch string, follow bool) (io.ReadCloser, error) {
	q := url.Values{"follow": {strconv.FormatBool(follow)}}
	res, err := c.send(ctx, http.MethodGet, path("projects", project, "branches", branch, "logs"), q, nil)
	if err != nil {
		return nil, err
	}
	return res.Body, nil
}

// Operations lists the operations of a project, or of all for "", newest first.
func (c *Client) Operations(ctx context.Context, project string) (OperationList, error) {
	at := "/operations"
	if project != "" {
		at = path("projects", project, "operations")
	}
	return ask[OperationList](ctx, c, http.MethodGet, at, nil, nil)
}

// Operation finds an operation.
func (c *Client) Operation(ctx context.Context, id string) (OperationResponse, error) {
	return ask[OperationResponse](ctx, c, http.MethodGet, path("operations", id), nil, nil)
}

// WaitOperation waits until an operation is done and returns why it failed, if
// it did. watch, if there is one, is called with the operation now and every
// second.
func (c *Client) WaitOperation(ctx context.Context, op Operation, watch func(Operation)) (Operation, error) {
	for first := true; first || !op.Done(); first = false {
		if op.Status == string(pgbough.OperationFinished) {
			return op, nil
		}
		if watch != nil {
			watch(op)
		}
		out, err := ask[OperationResponse](ctx, c, http.MethodGet, path("operations", op.ID), waiting(step), nil)
		if err != nil {
			return op, err
		}
		op = out.Operation
	}
	return op, failure(op)
}

// WaitGone waits as WaitOperation does for an operation that removes something.
// Where that was still being made, the operation is the one that made it: then
// it does not matter how it ends.
func (c *Client) WaitGone(ctx context.Context, op Operation, watch func(Operation)) (Operation, error) {
	waited, err := c.WaitOperation(ctx, op, watch)
	if waited.Done() && !strings.HasPrefix(waited.Action, "delete_") {
		return waited, nil
	}
	return waited, err
}

// failure is why an operation that is done did not finish.
func failure(op Operation) error {
	switch pgbough.OperationStatus(op.Status) {
	case pgbough.OperationFinished:
		return nil
	case pgbough.OperationCancelled:
		return pgbough.Errorf(pgbough.EConflict, "the operation was cancelled").WithHint("`pgbough ops %s` shows its steps", op.ID)
	}
	err := &pgbough.Error{Code: pgbough.Code(op.ErrorCode), Message: op.Error, Hint: op.Hint}
	if err.Code == "" {
		err.Code = pgbough.EInternal
	}
	if err.Hint == "" {
		err.Hint = "`pgbough ops " + op.ID + "` shows its steps"
	}
	return err
}

// Pool tells where the bytes are.
func (c *Client) Pool(ctx context.Context) (PoolResponse, error) {
	return ask[PoolResponse](ctx, c, http.MethodGet, "/pool", nil, nil)
}

// ResizePool makes the pool's image size bytes large.
func (c *Client) ResizePool(ctx context.Context, size int64) (PoolResponse, error) {
	return ask[PoolResponse](ctx, c, http.MethodPost, "/pool/resize", nil, ResizeRequest{SizeBytes: size})
}

// Prune removes the volumes that the server's catalog does not know, or with
// dryRun only tells which.
func (c *Client) Prune(ctx context.Context, dryRun bool) (PruneResponse, error) {
	return ask[PruneResponse](ctx, c, http.MethodPost, "/pool/prune", nil, PruneRequest{DryRun: dryRun})
}

// CreateKey makes an API key.
func (c *Client) CreateKey(ctx context.Context, req CreateKeyRequest) (CreatedKey, error) {
	return ask[CreatedKey](ctx, c, http.MethodPost, "/api_keys", nil, req)
}

// Keys lists all API keys but the server's own, the oldest first.
func (c *Client) Keys(ctx context.Context) ([]APIKey, error) {
	return ask[[]APIKey](ctx, c, http.MethodGet, "/api_keys", nil, nil)
}

// RevokeKey ends an API key, by its id or name.
func (c *Client) RevokeKey(ctx context.Context, key string) (RevokedKey, error) {
	return ask[RevokedKey](ctx, c, http.MethodDelete, path("api_keys", key), nil, nil)
}
