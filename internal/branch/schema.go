package branch

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"

	"github.com/jackc/pgx/v5/pgconn"
	"golang.org/x/sync/errgroup"

	"github.com/pgbough/pgbough"
	"github.com/pgbough/pgbough/internal/schema"
)

// Schema writes the schema of a database of a branch as DDL. A branch that sleeps
// is woken; the root branch is asked as its follower is now.
func (s *Service) Schema(ctx context.Context, project, branch, database string) (string, error) {
	p, b, err := s.find(ctx, project, branch)
	if err != nil {
		return "", err
	}
	db, err := s.schemaOf(ctx, p, b, cmp.Or(database, p.DefaultDatabase))
	if err != nil {
		return "", err
	}
	return db.DDL(), nil
}

// CompareSchema tells how the schema of a branch differs from that of its base.
func (s *Service) CompareSchema(ctx context.Context, project string, c pgbough.Comparison) (pgbough.SchemaComparison, error) {
	var out pgbough.SchemaComparison
	p, b, err := s.find(ctx, project, c.Branch)
	if err != nil {
		return out, err
	}
	base, notes, err := s.baseOf(ctx, p, b, c.Base)
	if err != nil {
		return out, err
	}
	out.Branch, out.Base, out.Database, out.Notes = b.Name, base.Name, cmp.Or(c.Database, p.DefaultDatabase), notes
	var before, now *schema.Database
	both, reading := errgroup.WithContext(ctx)
	both.Go(func() (err error) { before, err = s.schemaOf(reading, p, base, out.Database); return err })
	both.Go(func() (err error) { now, err = s.schemaOf(reading, p, b, out.Database); return err })
	if err := both.Wait(); err != nil {
		return out, err
	}
	out.SchemaDiff = schema.Diff(before, now, base.Name+"/"+out.Database, b.Name+"/"+out.Database)
	return out, nil
}

// baseOf is the branch that another is compared with.
func (s *Service) baseOf(ctx context.Context, p pgbough.Project, b pgbough.Branch, base string) (pgbough.Branch, []string, error) {
	if base != "" {
		other, err := s.catalog.Branch(ctx, p.ID, base)
		return other, nil, err
	}
	if b.ParentID == "" {
		return b, nil, pgbough.Errorf(pgbough.EConflict, "%s is the root branch and has no parent to be compared with", b.Name).
			WithHint("name a branch to compare it with")
	}
	parent, err := s.catalog.Branch(ctx, p.ID, b.ParentID)
	note := fmt.Sprintf("%s is compared as it is now, not as it was when %s was cut from it", parent.Name, b.Name)
	return parent, []string{note}, err
}

func (s *Service) schemaOf(ctx context.Context, p pgbough.Project, b pgbough.Branch, database string) (*schema.Database, error) {
	dial := func(ctx context.Context) (net.Conn, error) { return s.Connect(ctx, b.ID) }
	if b.ID == p.RootBranchID {
		f, err := s.followerOf(p.ID)
		if err != nil {
			return nil, err
		}
		dial = f.Connect
	}
	db, err := schema.Load(ctx, dial, p.Source.Superuser, database)
	var refused *pgconn.PgError
	if errors.As(err, &refused) && refused.Code == "3D000" { // invalid_catalog_name
		return nil, pgbough.Errorf(pgbough.ENotFound, "branch %s has no database %q: %w", b.Name, database, err)
	}
	if err != nil {
		return nil, fmt.Errorf("read the schema of branch %s: %w", b.Name, err)
	}
	return db, nil
}
