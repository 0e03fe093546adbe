package httpapi

import (
	"net/http"

	"github.com/pgbough/pgbough"
	"github.com/pgbough/pgbough/internal/neonapi"
)

func (a *api) listOperations(w http.ResponseWriter, r *http.Request) error {
	ops, err := a.service.Operations(r.Context(), r.PathValue("project"))
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
	op, err := a.service.Operation(r.Context(), r.PathValue("operation"))
	if err != nil {
		return err
	}
	if project := r.PathValue("project"); project != "" && project != op.ProjectID {
		p, err := a.service.Project(r.Context(), project) // it may be the name
		if err != nil {
			return err
		}
		if p.ID != op.ProjectID {
			return pgbough.Errorf(pgbough.ENotFound, "project %s has no operation %s", p.Name, op.ID)
		}
	}
	waited, failure := a.wait(r.Context(), op, limit)
	if waited.ID == "" {
		return failure
	}
	return writeJSON(w, http.StatusOK, neonapi.OperationResponse{Operation: wireFailure(waited, failure)})
}
