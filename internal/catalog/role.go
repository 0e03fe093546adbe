package catalog

import (
	"context"
	"fmt"

	"github.com/pgbough/pgbough"
	"github.com/pgbough/pgbough/internal/credential"
)

// rolePlace needs no separator that cannot stand in a name: a branch id has none.
func rolePlace(branchID, name string) credential.Place {
	return credential.Place{Table: "roles", Row: branchID + " " + name, Column: "password"}
}

func scanRole(tx *Tx, scan func(...any) error) (pgbough.Role, error) {
	var r pgbough.Role
	err := scan(&r.BranchID, &r.Name, secretColumn{box: tx.box, v: &r.Password, place: func() credential.Place { return rolePlace(r.BranchID, r.Name) }})
	return r, err
}

// PutRoles replaces all roles of a branch.
func (tx *Tx) PutRoles(branchID string, roles []pgbough.Role) error {
	_, err := tx.exec("DELETE FROM roles WHERE branch_id = ?", branchID)
	for _, r := range roles {
		if err == nil {
			_, err = tx.exec("INSERT INTO roles (branch_id, name, sealed_password) VALUES (?, ?, ?)", branchID, r.Name, tx.box.Seal(rolePlace(branchID, r.Name), r.Password))
		}
	}
	if isForeignKey(err) {
		return noBranch(branchID)
	}
	if err != nil {
		return fmt.Errorf("write the roles of branch %s: %w", branchID, err)
	}
	return nil
}

// Roles are the roles of a branch by name, with their passwords.
func (tx *Tx) Roles(branchID string) ([]pgbough.Role, error) {
	list, err := all(tx, scanRole, "SELECT branch_id, name, sealed_password FROM roles WHERE branch_id = ? ORDER BY name", branchID)
	if err != nil {
		return nil, fmt.Errorf("read the roles of branch %s: %w", branchID, err)
	}
	return list, nil
}

// PutRoles is Tx.PutRoles in a transaction of its own.
func (c *Catalog) PutRoles(ctx context.Context, branchID string, roles []pgbough.Role) error {
	return c.Tx(ctx, func(tx *Tx) error { return tx.PutRoles(branchID, roles) })
}

// Roles are the roles of a branch by name, with their passwords.
func (c *Catalog) Roles(ctx context.Context, branchID string) ([]pgbough.Role, error) {
	return c.read(ctx).Roles(branchID)
}
