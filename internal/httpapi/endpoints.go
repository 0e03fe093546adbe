package httpapi

import (
	"context"
	"net/http"

	"github.com/pgbough/pgbough"
	"github.com/pgbough/pgbough/internal/neonapi"
)

// An endpoint is named by its id; as the Service does, these routes take the
// branch's id or name too.

func (a *api) getEndpoint(w http.ResponseWriter, r *http.Request) error {
	v, err := a.service.Unsized(r.Context(), r.PathValue("project"), r.PathValue("endpoint"))
	if err != nil {
		return err
	}
	return writeEndpoint(w, v, nil)
}

func (a *api) updateEndpoint(w http.ResponseWriter, r *http.Request) error {
	var body neonapi.UpdateEndpointRequest
	if err := readJSON(r, &body); err != nil {
		return err
	}
	after, err := suspendAfter(body.Endpoint.SuspendTimeoutSeconds)
	if err != nil {
		return err
	}
	v, err := a.service.UpdateBranch(r.Context(), r.PathValue("project"), r.PathValue("endpoint"), pgbough.BranchChange{SuspendAfter: after})
	if err != nil {
		return err
	}
	return writeEndpoint(w, v, []neonapi.Operation{})
}

func (a *api) startEndpoint(w http.ResponseWriter, r *http.Request) error {
	return a.turnEndpoint(w, r, a.service.Wake)
}

func (a *api) suspendEndpoint(w http.ResponseWriter, r *http.Request) error {
	return a.turnEndpoint(w, r, a.service.Suspend)
}

func (a *api) turnEndpoint(w http.ResponseWriter, r *http.Request, turn func(context.Context, string, string) (pgbough.BranchView, pgbough.Operation, error)) error {
	limit, err := waitLimit(r, defaultWait)
	if err != nil {
		return err
	}
	ctx, project := r.Context(), r.PathValue("project")
	v, op, err := turn(ctx, project, r.PathValue("endpoint"))
	if err != nil {
		return err
	}
	if op, err = a.wait(ctx, op, limit); err != nil {
		return err
	}
	if op.Status == pgbough.OperationFinished {
		if v, err = a.service.Unsized(ctx, project, v.ID); err != nil {
			return err
		}
	}
	return writeEndpoint(w, v, wireOperations(op))
}

func writeEndpoint(w http.ResponseWriter, v pgbough.BranchView, ops []neonapi.Operation) error {
	endpoints := wireEndpoints(v)
	if len(endpoints) == 0 {
		return pgbough.Errorf(pgbough.ENotFound, "%s is the root branch, which has no endpoint", v.Name).WithHint("name a branch of it: pgbough branch list")
	}
	return writeJSON(w, http.StatusOK, neonapi.EndpointResponse{Endpoint: endpoints[0], Operations: ops})
}
