package catalog

import (
	"context"
	"fmt"
	"strings"

	"github.com/pgbough/pgbough"
)

const (
	branchColumns = `id, project_id, name, state, parent_id, parent_lsn, parent_time, volume_id, settled, settings, differences, created_at, expires_at, protected`
	branchSelect  = branchHead + `b.settings, b.differences, ` + branchTail
	branchesOf    = branchHead + `'[]', '[]', ` + branchTail + `WHERE b.project_id = ? ORDER BY b.rowid`

	branchHead = `SELECT b.id, b.project_id, b.name, b.state, coalesce(b.parent_id, ''), b.parent_lsn, b.parent_time, b.volume_id, b.settled, `
	branchTail = `b.created_at, b.expires_at, b.protected, coalesce(e.id, '') FROM branches b LEFT JOIN endpoints e ON e.branch_id = b.id `
)

func noBranch(idOrName string) *pgbough.Error {
	return pgbough.Errorf(pgbough.ENotFound, "there is no branch %q", idOrName).WithHint("see: pgbough branch list")
}

func scanBranch(_ *Tx, scan func(...any) error) (pgbough.Branch, error) {
	var b pgbough.Branch
	err := scan(&b.ID, &b.ProjectID, &b.Name, &b.State, &b.ParentID, unsigned[pgbough.LSN]{&b.ParentLSN}, timeColumn{&b.ParentTime}, &b.VolumeID, &b.Settled,
		jsonColumn{&b.Settings}, jsonColumn{&b.Differences}, timeColumn{&b.CreatedAt}, timeColumn{&b.ExpiresAt}, &b.Protected, &b.EndpointID)
	return b, err
}

// branchValues are the values of branchColumns.
func branchValues(b pgbough.Branch) ([]any, error) {
	settings, err := list(b.Settings)
	if err != nil {
		return nil, err
	}
	differences, err := list(b.Differences)
	var parent any // NULL for the root
	if b.ParentID != "" {
		parent = b.ParentID
	}
	return []any{
		b.ID, b.ProjectID, b.Name, b.State, parent, int64(b.ParentLSN), nanos(b.ParentTime), b.VolumeID, b.Settled,
		settings, differences, nanos(b.CreatedAt), nanos(b.ExpiresAt), b.Protected,
	}, err
}

// CreateBranch adds a branch with its endpoint. A name that is taken in the
// project is an EConflict.
func (tx *Tx) CreateBranch(b pgbough.Branch) error {
	values, err := branchValues(b)
	if err == nil {
		_, err = tx.exec("INSERT INTO branches ("+branchColumns+") VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", values...)
	}
	if err == nil {
		err = tx.putEndpoint(b)
	}
	return tx.branchError(b, err)
}

// UpdateBranch replaces all that is stored of a branch but its id.
func (tx *Tx) UpdateBranch(b pgbough.Branch) error {
	values, err := branchValues(b)
	if err == nil {
		err = tx.change("branch "+b.Name, noBranch(b.ID), "UPDATE branches SET ("+branchColumns+") = (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?) WHERE id = ?", append(values, b.ID)...)
	}
	if err == nil {
		err = tx.putEndpoint(b)
	}
	return tx.branchError(b, err)
}

func (tx *Tx) putEndpoint(b pgbough.Branch) error {
	_, err := tx.exec("DELETE FROM endpoints WHERE branch_id = ? AND id <> ?", b.ID, b.EndpointID)
	if err == nil && b.EndpointID != "" {
		_, err = tx.exec("INSERT INTO endpoints (id, branch_id) VALUES (?, ?) ON CONFLICT (branch_id) DO NOTHING", b.EndpointID, b.ID)
	}
	return err
}

// branchError is err, of writing b, as its caller should see it.
func (tx *Tx) branchError(b pgbough.Branch, err error) error {
	switch {
	case err == nil || pgbough.ErrorCode(err) == pgbough.ENotFound:
		return err
	case isDuplicate(err) && strings.Contains(err.Error(), "branches.name"):
		return pgbough.Errorf(pgbough.EConflict, "there is a branch %q already", b.Name).
			WithHint("choose another name, or remove that one with `pgbough branch delete %s`", b.Name)
	case isForeignKey(err):
		return pgbough.Errorf(pgbough.ENotFound, "the project or the parent of branch %q is not there any more", b.Name).
			WithHint("see: pgbough branch list")
	}
	return fmt.Errorf("write branch %s: %w", b.Name, err)
}

// Branch finds a branch of a project by its id, that of its endpoint or, if there
// is none, by its name.
func (tx *Tx) Branch(projectID, idOrName string) (pgbough.Branch, error) {
	row := tx.q.QueryRowContext(tx.ctx, branchSelect+`WHERE b.project_id = ?1 AND (b.id = ?2 OR e.id = ?2 OR b.name = ?2)
		ORDER BY b.id = ?2 DESC, b.name = ?2 LIMIT 1`, projectID, idOrName)
	b, err := scanBranch(tx, row.Scan)
	if isNoRows(err) {
		return pgbough.Branch{}, noBranch(idOrName)
	}
	if err != nil {
		return pgbough.Branch{}, fmt.Errorf("read branch %s: %w", idOrName, err)
	}
	return b, nil
}

// Branches are all branches of a project, the oldest first: parents stand before
// their children. Their settings and differences, which are most of what is stored
// of a branch, are left out.
func (tx *Tx) Branches(projectID string) ([]pgbough.Branch, error) {
	list, err := all(tx, scanBranch, branchesOf, projectID)
	if err != nil {
		return nil, fmt.Errorf("read the branches: %w", err)
	}
	return list, nil
}

// TotalBranches is how many branches there are in all projects, but for the roots.
func (tx *Tx) TotalBranches() (n int, err error) {
	err = tx.q.QueryRowContext(tx.ctx, "SELECT count(*) FROM branches WHERE parent_id IS NOT NULL").Scan(&n)
	if err != nil {
		return 0, fmt.Errorf("count the branches: %w", err)
	}
	return n, nil
}

// DeleteBranch forgets a branch with its endpoint and roles. It does nothing if
// there is no such branch, and refuses one that has children.
func (tx *Tx) DeleteBranch(id string) error {
	_, err := tx.exec("DELETE FROM branches WHERE id = ?", id)
	if isForeignKey(err) {
		var children string
		if err := tx.q.QueryRowContext(tx.ctx, "SELECT coalesce(group_concat(name, ', '), '') FROM branches WHERE parent_id = ?", id).Scan(&children); err != nil {
			return fmt.Errorf("delete branch %s: %w", id, err)
		}
		return pgbough.Errorf(pgbough.EConflict, "the branch has children: %s", children).WithHint("delete them first, or all at once with --cascade")
	}
	if err != nil {
		return fmt.Errorf("delete branch %s: %w", id, err)
	}
	return nil
}

// CreateBranch is Tx.CreateBranch in a transaction of its own.
func (c *Catalog) CreateBranch(ctx context.Context, b pgbough.Branch) error {
	return c.Tx(ctx, func(tx *Tx) error { return tx.CreateBranch(b) })
}

// ChangeBranch applies change to a branch as it is now, and returns what it has
// become: reading and writing are one transaction, so that no other change is
// lost. An error of change leaves the branch as it is.
func (c *Catalog) ChangeBranch(ctx context.Context, projectID, id string, change func(*pgbough.Branch) error) (b pgbough.Branch, err error) {
	err = c.Tx(ctx, func(tx *Tx) error {
		if b, err = tx.Branch(projectID, id); err != nil {
			return err
		}
		if err := change(&b); err != nil {
			return err
		}
		return tx.UpdateBranch(b)
	})
	return b, err
}

// DeleteBranch is Tx.DeleteBranch in a transaction of its own.
func (c *Catalog) DeleteBranch(ctx context.Context, id string) error {
	return c.Tx(ctx, func(tx *Tx) error { return tx.DeleteBranch(id) })
}

// Branch finds a branch of a project by its id, that of its endpoint or, if there
// is none, by its name.
func (c *Catalog) Branch(ctx context.Context, projectID, idOrName string) (pgbough.Branch, error) {
	return c.read(ctx).Branch(projectID, idOrName)
}

// Branches are all branches of a project, the oldest first: parents stand before
// their children. Their settings and differences, which are most of what is stored
// of a branch, are left out.
func (c *Catalog) Branches(ctx context.Context, projectID string) ([]pgbough.Branch, error) {
	return c.read(ctx).Branches(projectID)
}
