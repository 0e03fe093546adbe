package catalog

import (
	"context"
	"database/sql"
	"embed"
	"fmt"
	"io/fs"
	"time"

	"github.com/pgbough/pgbough"
)

// migrations are the formats of the catalog, each as the statements that lead to
// it from the one before. A released one never changes.
//
//go:embed migrations/*.sql
var migrations embed.FS

// migrate brings the catalog to the newest format, one transaction for each.
func migrate(ctx context.Context, db *sql.DB) error {
	steps, err := fs.Glob(migrations, "migrations/*.sql") // in the order of their names
	if err != nil {
		return fmt.Errorf("migrate the catalog: %w", err)
	}
	_, err = db.ExecContext(ctx, "CREATE TABLE IF NOT EXISTS migrations (version INTEGER PRIMARY KEY, name TEXT NOT NULL, applied_at INTEGER NOT NULL) STRICT")
	if err != nil {
		return fmt.Errorf("migrate the catalog: %w", err)
	}
	var have int
	if err := db.QueryRowContext(ctx, "SELECT coalesce(max(version), 0) FROM migrations").Scan(&have); err != nil {
		return fmt.Errorf("migrate the catalog: %w", err)
	}
	if have > len(steps) {
		return pgbough.Errorf(pgbough.EConflict, "the catalog was written by a newer pgbough (format %d, this one knows %d)", have, len(steps)).
			WithHint("run that version, or a newer one, on it; nothing was changed")
	}
	for i := have; i < len(steps); i++ {
		if err := migrateTo(ctx, db, i+1, steps[i]); err != nil {
			return fmt.Errorf("migrate the catalog to format %d: %w", i+1, err)
		}
	}
	return nil
}

func migrateTo(ctx context.Context, db *sql.DB, version int, name string) error {
	statements, err := migrations.ReadFile(name)
	if err != nil {
		return err
	}
	tx, err := db.BeginTx(ctx, nil)
	if err != nil {
		return err
	}
	defer func() { _ = tx.Rollback() }() // nothing after Commit
	if _, err := tx.ExecContext(ctx, string(statements)); err != nil {
		return err
	}
	if _, err := tx.ExecContext(ctx, "INSERT INTO migrations (version, name, applied_at) VALUES (?, ?, ?)", version, name, time.Now().UnixNano()); err != nil {
		return err
	}
	return tx.Commit()
}
