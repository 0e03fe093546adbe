// Package shop is a small shop's database and its customers: what the demo and
// the tests have for a production.
//
// An order is acknowledged when the server has said that the transaction which
// placed it is committed. The number of an acknowledged order must never be
// lost.
package shop

import (
	"context"
	_ "embed" // the SQL
	"fmt"
	"strconv"

	"github.com/jackc/pgx/v5"
)

//go:embed schema.sql
var schema string

//go:embed data.sql
var data string

//go:embed rules.sql
var rules string

// Load makes the schema and its data in the empty database of conn. Scale 1 is
// about 200 MB; the same scale gives the same rows every time.
func Load(ctx context.Context, conn *pgx.Conn, scale float64) error {
	if _, err := conn.Exec(ctx, "SELECT set_config('shop.scale', $1, false)", strconv.FormatFloat(scale, 'f', -1, 64)); err != nil {
		return fmt.Errorf("set the scale of the shop: %w", err)
	}
	tx, err := conn.Begin(ctx)
	if err != nil {
		return fmt.Errorf("load the shop: %w", err)
	}
	defer func() { _ = tx.Rollback(ctx) }() // after a commit it does nothing
	for _, part := range []struct{ name, sql string }{{"schema", schema}, {"data", data}, {"rules", rules}} {
		if _, err := tx.Exec(ctx, part.sql); err != nil {
			return fmt.Errorf("load the %s of the shop: %w", part.name, err)
		}
	}
	if err := tx.Commit(ctx); err != nil {
		return fmt.Errorf("load the shop: %w", err)
	}
	return nil
}
