package replication

import (
	"context"

	"github.com/jackc/pgx/v5/pgconn"
)

// EnsureSlot makes the physical slot name if there is none of that name. One
// that is there stays as it is, with the WAL that it keeps.
func EnsureSlot(ctx context.Context, conn *pgconn.PgConn, name string) error {
	create, err := createSlotCommand(conn, name)
	if err != nil {
		return err
	}
	_, err = command(ctx, conn, create, 1)
	if sqlState(err) == "42710" { // duplicate_object
		return nil
	}
	return slotError(name, "create", err)
}
