package catalog

import (
	"context"
	"fmt"
	"time"

	"github.com/pgbough/pgbough"
	"github.com/pgbough/pgbough/internal/credential"
)

const endpointSelect = `SELECT e.id, e.branch_id, e.awake, e.suspend_after, e.last_active, e.restarts, e.failed_at, e.failure FROM endpoints e `

func scanEndpoint(_ *Tx, scan func(...any) error) (pgbough.Endpoint, error) {
	var e pgbough.Endpoint
	err := scan(&e.ID, &e.BranchID, &e.Awake, &e.SuspendAfter, timeColumn{&e.LastActive}, &e.Restarts, timeColumn{&e.FailedAt}, &e.Failure)
	return e, err
}

// Endpoint is the endpoint of a branch.
func (c *Catalog) Endpoint(ctx context.Context, branchID string) (pgbough.Endpoint, error) {
	tx := c.read(ctx)
	e, err := scanEndpoint(tx, tx.q.QueryRowContext(ctx, endpointSelect+"WHERE e.branch_id = ?", branchID).Scan)
	if isNoRows(err) {
		return e, noBranch(branchID)
	}
	if err != nil {
		return e, fmt.Errorf("read the endpoint of branch %s: %w", branchID, err)
	}
	return e, nil
}

// Endpoints are the endpoints of a project's branches, by branch id.
func (c *Catalog) Endpoints(ctx context.Context, projectID string) (map[string]pgbough.Endpoint, error) {
	list, err := all(c.read(ctx), scanEndpoint, endpointSelect+"JOIN branches b ON b.id = e.branch_id WHERE b.project_id = ?", projectID)
	if err != nil {
		return nil, fmt.Errorf("read the endpoints: %w", err)
	}
	out := make(map[string]pgbough.Endpoint, len(list))
	for _, e := range list {
		out[e.BranchID] = e
	}
	return out, nil
}

// SetSuspendAfter sets how long the compute of a branch may be idle.
func (tx *Tx) SetSuspendAfter(branchID string, d time.Duration) error {
	return tx.change("the endpoint of branch "+branchID, noBranch(branchID), "UPDATE endpoints SET suspend_after = ? WHERE branch_id = ?", int64(d), branchID)
}

// SetAwake records that a Postgres should run for a branch. It must be durable
// before a client reaches that Postgres: from then on the kept verifiers do not count.
func (c *Catalog) SetAwake(ctx context.Context, branchID string) error {
	return c.Tx(ctx, func(tx *Tx) error {
		return tx.change("the endpoint of branch "+branchID, noBranch(branchID), "UPDATE endpoints SET awake = 1 WHERE branch_id = ?", branchID)
	})
}

// SetAsleep records that the Postgres of a branch was cleanly shut down, what
// its pg_authid holds since, and when it was last active.
func (c *Catalog) SetAsleep(ctx context.Context, branchID string, logins []pgbough.Login, lastActive time.Time) error {
	return c.Tx(ctx, func(tx *Tx) error {
		if err := tx.change("the endpoint of branch "+branchID, noBranch(branchID),
			"UPDATE endpoints SET awake = 0, last_active = ? WHERE branch_id = ?", nanos(lastActive), branchID); err != nil {
			return err
		}
		return tx.putVerifiers(branchID, logins)
	})
}

func (tx *Tx) putVerifiers(branchID string, logins []pgbough.Login) error {
	_, err := tx.exec("DELETE FROM verifiers WHERE branch_id = ?", branchID)
	for _, l := range logins {
		if err == nil {
			_, err = tx.exec("INSERT INTO verifiers (branch_id, role, sealed_verifier, valid_until) VALUES (?, ?, ?, ?)",
				branchID, l.Role, tx.box.Seal(verifierPlace(branchID, l.Role), l.Verifier), nanos(l.ValidUntil))
		}
	}
	if err != nil {
		return fmt.Errorf("write the verifiers of branch %s: %w", branchID, err)
	}
	return nil
}

func verifierPlace(branchID, role string) credential.Place {
	return credential.Place{Table: "verifiers", Row: branchID + " " + role, Column: "verifier"}
}

// NoteFailure records that the Postgres of a branch ended by itself, and why.
func (c *Catalog) NoteFailure(ctx context.Context, branchID string, at time.Time, failure string) error {
	return c.Tx(ctx, func(tx *Tx) error {
		return tx.change("the endpoint of branch "+branchID, noBranch(branchID),
			"UPDATE endpoints SET restarts = restarts + 1, failed_at = ?, failure = ? WHERE branch_id = ?", nanos(at), failure, branchID)
	})
}

// KeptLogin is what a client must prove to be a role of a branch that sleeps; it
// has no verifier where there is no such role. It is false for a branch that is
// awake: then only its Postgres knows.
func (c *Catalog) KeptLogin(ctx context.Context, branchID, role string) (pgbough.Login, bool, error) {
	tx := c.read(ctx)
	l := pgbough.Login{BranchID: branchID, Role: role}
	var awake bool
	var sealed []byte
	row := tx.q.QueryRowContext(ctx, `SELECT e.awake, v.sealed_verifier, coalesce(v.valid_until, 0) FROM endpoints e
		LEFT JOIN verifiers v ON v.branch_id = e.branch_id AND v.role = ? WHERE e.branch_id = ?`, role, branchID)
	err := row.Scan(&awake, &sealed, timeColumn{&l.ValidUntil})
	switch {
	case isNoRows(err):
		return l, false, noBranch(branchID)
	case err != nil:
		return l, false, fmt.Errorf("read the verifier of a role of branch %s: %w", branchID, err)
	case awake || sealed == nil:
		return l, !awake, nil
	}
	l.Verifier, err = tx.box.Open(verifierPlace(branchID, role), sealed)
	return l, true, err
}

const routeSelect = `SELECT p.id, p.name, b.id, b.name, e.id, b.state, b.volume_id, p.major FROM endpoints e
	JOIN branches b ON b.id = e.branch_id JOIN projects p ON p.id = b.project_id `

func scanRoute(_ *Tx, scan func(...any) error) (pgbough.Route, error) {
	var r pgbough.Route
	err := scan(&r.ProjectID, &r.ProjectName, &r.BranchID, &r.BranchName, &r.EndpointID, &r.State, &r.VolumeID, &r.Major)
	return r, err
}

// Route finds the branch with an endpoint that a client means: by the id of its
// endpoint, its own id, PROJECT/NAME, or its name, if only one project has that.
func (c *Catalog) Route(ctx context.Context, name string) (pgbough.Route, error) {
	for _, where := range []string{
		"WHERE e.id = ?1",
		"WHERE b.id = ?1",
		"WHERE b.name = ?1 OR p.name || '/' || b.name = ?1 OR p.id || '/' || b.name = ?1",
	} {
		list, err := all(c.read(ctx), scanRoute, routeSelect+where+" ORDER BY b.name = ?1, p.name", name)
		if err != nil {
			return pgbough.Route{}, fmt.Errorf("find branch %s: %w", name, err)
		}
		switch {
		case len(list) == 1, len(list) > 1 && list[0].BranchName != name && list[1].BranchName == name:
			return list[0], nil // PROJECT/NAME says more than a name that has a slash in it
		case len(list) > 1:
			return pgbough.Route{}, pgbough.Errorf(pgbough.EConflict, "%d projects have a branch %q", len(list), name).
				WithHint("name it as %s/%s, or by its endpoint, %s", list[0].ProjectName, list[0].BranchName, list[0].EndpointID)
		}
	}
	return pgbough.Route{}, noBranch(name)
}

// CountBranches counts, by project id, the branches that can be used.
func (c *Catalog) CountBranches(ctx context.Context) (map[string]pgbough.BranchCount, error) {
	type row struct {
		project string
		count   pgbough.BranchCount
	}
	list, err := all(c.read(ctx), func(_ *Tx, scan func(...any) error) (row, error) {
		var r row
		err := scan(&r.project, &r.count.Awake, &r.count.Asleep)
		return r, err
	}, `SELECT b.project_id, sum(e.awake), sum(1 - e.awake) FROM endpoints e JOIN branches b ON b.id = e.branch_id
		WHERE b.state = ? GROUP BY b.project_id`, pgbough.BranchReady)
	if err != nil {
		return nil, fmt.Errorf("count the branches: %w", err)
	}
	out := make(map[string]pgbough.BranchCount, len(list))
	for _, r := range list {
		out[r.project] = r.count
	}
	return out, nil
}
