package httpapi

import (
	"net/http"

	"github.com/pgbough/pgbough"
	"github.com/pgbough/pgbough/internal/neonapi"
)

func (a *api) listOperations(w http.ResponseWriter, r *http.Request) error {
	project := r.PathValue("project")
	if project == "" {
		project = keyIn(r.Context()).ProjectID
	}
	ops, err := a.service.Operations(r.Context(), project)
	if err != nil {
		return err
	}
	o := order{newestFirst: true}
	ops, next, err := page(r, ops, o, func(op pgbough.Operation) string { return o.key(op.CreatedAt, op.ID) })
	if err != nil {
		return err
	}
	out := neonapi.OperationList{Operations: []neonapi.Operation{}, Pagination: neonapi.Pagination{Cursor: next}}
	for _, op := range ops {
		out.Operations = append(out.Operations, wireOperation(op))
	}
	return writeJSON(w, http.StatusOK, out)
}

// getOperation answers also for an operation whose project is gone: the one
// that deleted it. With wait it answers when the operation is done, or then.
func (a *api) getOperation(w http.ResponseWriter, r *http.Request) error {
	limit, err := waitLimit(r, 0)
	if err != nil {
		return err
	}
	op, err := a.operation(r)
	if err != nil {
		return err
	}
	waited, failure := a.wait(r.Context(), op, limit)
	if waited.ID == "" {
		return failure
	}
	return writeJSON(w, http.StatusOK, neonapi.OperationResponse{Operation: wireFailure(waited, failure)})
}

// operation is the one in the path, if it belongs to the project in the path, if
// there is one, and to what the key opens. One that does not, and one that there
// never was, are told in the same words.
func (a *api) operation(r *http.Request) (pgbough.Operation, error) {
	ctx, id, project := r.Context(), r.PathValue("operation"), r.PathValue("project")
	op, err := a.service.Operation(ctx, id)
	if err != nil && pgbough.ErrorCode(err) != pgbough.ENotFound {
		return op, err
	}
	if err == nil && project != "" && project != op.ProjectID {
		p, err := a.service.Project(ctx, project) // it may be the name
		if err != nil {
			return op, err
		}
		project = p.ID
	}
	if err != nil || project != "" && project != op.ProjectID || !opens(keyIn(ctx), op.ProjectID) {
		return pgbough.Operation{}, pgbough.Errorf(pgbough.ENotFound, "there is no operation %q", id).
			WithHint("`pgbough ops` shows those that are remembered")
	}
	return op, nil
}
