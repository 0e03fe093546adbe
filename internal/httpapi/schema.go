package httpapi

import (
	"net/http"

	"github.com/pgbough/pgbough"
	"github.com/pgbough/pgbough/internal/neonapi"
)

func (a *api) getSchema(w http.ResponseWriter, r *http.Request) error {
	if err := onlyNow(r, "lsn", "timestamp"); err != nil {
		return err
	}
	sql, err := a.service.Schema(r.Context(), r.PathValue("project"), r.PathValue("branch"), r.URL.Query().Get("db_name"))
	if err != nil {
		return err
	}
	return writeJSON(w, http.StatusOK, neonapi.Schema{SQL: sql})
}

func (a *api) compareSchema(w http.ResponseWriter, r *http.Request) error {
	if err := onlyNow(r, "lsn", "timestamp", "base_lsn", "base_timestamp"); err != nil {
		return err
	}
	q := r.URL.Query()
	c, err := a.service.CompareSchema(r.Context(), r.PathValue("project"), pgbough.Comparison{
		Branch: r.PathValue("branch"), Base: q.Get("base_branch_id"), Database: q.Get("db_name"),
	})
	if err != nil {
		return err
	}
	out := neonapi.SchemaComparison{
		Diff: c.Unified, Branch: c.Branch, BaseBranch: c.Base, Database: c.Database,
		Changes: []neonapi.SchemaChange{}, Notes: append([]string{}, c.Notes...),
	}
	for _, change := range c.Changes {
		out.Changes = append(out.Changes, neonapi.SchemaChange{
			Kind: change.Kind, Name: change.Name, Change: string(change.Change), From: change.From, To: change.To,
		})
	}
	return writeJSON(w, http.StatusOK, out)
}

// onlyNow refuses to answer for another moment than the one that was asked for.
func onlyNow(r *http.Request, moments ...string) error {
	for _, name := range moments {
		if r.URL.Query().Get(name) != "" {
			return notYet("the schema of a past moment (" + name + ")")
		}
	}
	return nil
}
