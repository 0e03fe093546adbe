package catalog

import (
	"context"
	"fmt"

	"github.com/pgbough/pgbough"
	"github.com/pgbough/pgbough/internal/credential"
)

const projectColumns = `id, name, state, root_branch_id, default_role, default_database, system_id, major, version,
	timeline, superuser, slot, max_rate, accept_unlimited_slot, settings, created_at, history, sealed_conn_string, sealed_restore_command`

func projectPlace(id, column string) credential.Place {
	return credential.Place{Table: "projects", Row: id, Column: column}
}

func noProject(idOrName string) *pgbough.Error {
	return pgbough.Errorf(pgbough.ENotFound, "there is no project %q", idOrName).WithHint("see: pgbough project list")
}

func scanProject(tx *Tx, scan func(...any) error) (pgbough.Project, error) {
	var p pgbough.Project
	s := &p.Source
	secret := func(v *string, column string) secretColumn {
		return secretColumn{box: tx.box, v: v, place: func() credential.Place { return projectPlace(p.ID, column) }}
	}
	err := scan(&p.ID, &p.Name, &p.State, &p.RootBranchID, &p.DefaultRole, &p.DefaultDatabase, unsigned[uint64]{&s.SystemID}, &s.Major, &s.Version,
		&s.Timeline, &s.Superuser, &s.Slot, &s.MaxRate, &s.AcceptUnlimitedSlot, jsonColumn{&s.Settings}, timeColumn{&p.CreatedAt}, &p.History,
		secret(&s.ConnString, "conn_string"), secret(&s.RestoreCommand, "restore_command"))
	return p, err
}

// projectValues are the values of projectColumns.
func (tx *Tx) projectValues(p pgbough.Project) ([]any, error) {
	s := p.Source
	settings, err := list(s.Settings)
	return []any{
		p.ID, p.Name, p.State, p.RootBranchID, p.DefaultRole, p.DefaultDatabase, int64(s.SystemID), s.Major, s.Version,
		s.Timeline, s.Superuser, s.Slot, s.MaxRate, s.AcceptUnlimitedSlot, settings, nanos(p.CreatedAt), int64(p.History),
		tx.box.Seal(projectPlace(p.ID, "conn_string"), s.ConnString), tx.box.Seal(projectPlace(p.ID, "restore_command"), s.RestoreCommand),
	}, err
}

// CreateProject adds a project. A name that is taken is an EConflict.
func (tx *Tx) CreateProject(p pgbough.Project) error {
	values, err := tx.projectValues(p)
	if err == nil {
		_, err = tx.exec("INSERT INTO projects ("+projectColumns+") VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", values...)
	}
	if isDuplicate(err) {
		return pgbough.Errorf(pgbough.EConflict, "there is a project %q already", p.Name).
			WithHint("choose another name, or remove that one with `pgbough project delete %s`", p.Name)
	}
	if err != nil {
		return fmt.Errorf("write project %s: %w", p.Name, err)
	}
	return nil
}

// UpdateProject replaces all that is stored of a project but its id.
func (tx *Tx) UpdateProject(p pgbough.Project) error {
	values, err := tx.projectValues(p)
	if err != nil {
		return fmt.Errorf("write project %s: %w", p.Name, err)
	}
	err = tx.change("project "+p.Name, noProject(p.ID), "UPDATE projects SET ("+projectColumns+") = (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?) WHERE id = ?", append(values, p.ID)...)
	if isDuplicate(err) {
		return pgbough.Errorf(pgbough.EConflict, "there is a project %q already", p.Name).WithHint("choose another name")
	}
	return err
}

// Project finds a project by its id or, if there is none, by its name.
func (tx *Tx) Project(idOrName string) (pgbough.Project, error) {
	row := tx.q.QueryRowContext(tx.ctx, "SELECT "+projectColumns+" FROM projects WHERE id = ?1 OR name = ?1 ORDER BY id = ?1 DESC LIMIT 1", idOrName)
	p, err := scanProject(tx, row.Scan)
	if isNoRows(err) {
		return pgbough.Project{}, noProject(idOrName)
	}
	if err != nil {
		return pgbough.Project{}, fmt.Errorf("read project %s: %w", idOrName, err)
	}
	return p, nil
}

// Projects are all projects by name.
func (tx *Tx) Projects() ([]pgbough.Project, error) {
	list, err := all(tx, scanProject, "SELECT "+projectColumns+" FROM projects ORDER BY name")
	if err != nil {
		return nil, fmt.Errorf("read the projects: %w", err)
	}
	return list, nil
}

// DeleteProject forgets a project and its root branch. It does nothing if there
// is no such project, and refuses one that has other branches or spares: their
// volumes would be forgotten.
func (tx *Tx) DeleteProject(id string) error {
	var branches, spares, points, past int
	err := tx.q.QueryRowContext(tx.ctx, `SELECT
		(SELECT count(*) FROM branches WHERE project_id = ?1 AND id <> (SELECT root_branch_id FROM projects WHERE id = ?1)),
		(SELECT count(*) FROM spares WHERE project_id = ?1), (SELECT count(*) FROM points WHERE project_id = ?1),
		(SELECT count(*) FROM past_points WHERE project_id = ?1)`, id).Scan(&branches, &spares, &points, &past)
	if err == nil && branches+spares+points+past > 0 {
		return pgbough.Errorf(pgbough.EConflict, "project %s still has %d branches, %d spares and %d points", id, branches, spares, points+past).
			WithHint("remove it with all it has: pgbough project delete %s", id)
	}
	if err == nil {
		_, err = tx.exec("DELETE FROM branches WHERE project_id = ?", id)
	}
	if err == nil {
		_, err = tx.exec("DELETE FROM projects WHERE id = ?", id)
	}
	if err != nil {
		return fmt.Errorf("delete project %s: %w", id, err)
	}
	return nil
}

// CreateProject is Tx.CreateProject in a transaction of its own.
func (c *Catalog) CreateProject(ctx context.Context, p pgbough.Project) error {
	return c.Tx(ctx, func(tx *Tx) error { return tx.CreateProject(p) })
}

// ChangeProject is as ChangeBranch, for a project.
func (c *Catalog) ChangeProject(ctx context.Context, id string, change func(*pgbough.Project) error) (p pgbough.Project, err error) {
	err = c.Tx(ctx, func(tx *Tx) error {
		if p, err = tx.Project(id); err != nil {
			return err
		}
		if err := change(&p); err != nil {
			return err
		}
		return tx.UpdateProject(p)
	})
	return p, err
}

// DeleteProject is Tx.DeleteProject in a transaction of its own.
func (c *Catalog) DeleteProject(ctx context.Context, id string) error {
	return c.Tx(ctx, func(tx *Tx) error { return tx.DeleteProject(id) })
}

// Project finds a project by its id or, if there is none, by its name.
func (c *Catalog) Project(ctx context.Context, idOrName string) (pgbough.Project, error) {
	return c.read(ctx).Project(idOrName)
}

// Projects are all projects by name.
func (c *Catalog) Projects(ctx context.Context) ([]pgbough.Project, error) {
	return c.read(ctx).Projects()
}
