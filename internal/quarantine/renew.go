package quarantine

import (
	"context"
	"errors"
	"fmt"

	"github.com/pgbough/pgbough"
)

// Renew gives every login role a password of its own in a clone of a Postgres
// that Run and Purge are through with. What the roles had there nobody knows, so
// nothing has to be purged after it. It is durable when it returns, and may be
// run again: then the passwords are newer.
func Renew(ctx context.Context, o Options) ([]pgbough.Role, error) {
	q, err := open(ctx, o, runLockTimeout)
	if err != nil {
		return nil, err
	}
	roles, err := q.renew(ctx)
	return roles, errors.Join(err, q.Close(ctx))
}

func (q *Quarantine) renew(ctx context.Context) ([]pgbough.Role, error) {
	var err error
	if q.seen, err = q.main.cluster(ctx); err != nil {
		return nil, err
	}
	if q.seen.InRecovery || len(q.seen.Prepared) > 0 || len(q.seen.Subscriptions) > 0 || len(q.seen.Slots) > 0 {
		return nil, pgbough.Errorf(pgbough.EInternal, "this is no clone of a Postgres in quarantine: there are %d prepared transactions, %d subscriptions and %d replication slots (in recovery: %t)",
			len(q.seen.Prepared), len(q.seen.Subscriptions), len(q.seen.Slots), q.seen.InRecovery)
	}
	roles, err := q.main.cutShared(ctx, q.seen, q.o.Secret)
	if err != nil {
		return nil, err
	}
	if err := q.closeAll(ctx); err != nil {
		return nil, fmt.Errorf("renew the passwords: %w", err)
	}
	return roles, nil
}
