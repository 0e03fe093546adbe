package quarantine

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/pgbough/pgbough"
)

// cluster is what all databases share.
type cluster struct {
	InRecovery    bool           `json:"in_recovery"`
	Databases     []database     `json:"databases"`
	Prepared      []preparedTx   `json:"prepared"`
	Roles         []role         `json:"roles"`
	Subscriptions []subscription `json:"subscriptions"`
	Slots         []slot         `json:"slots"`
	// SubscriptionPages tells that pg_subscription has pages on disk.
	SubscriptionPages bool `json:"subscription_pages"`
}

type database struct {
	Name  string `json:"name"`
	Allow bool   `json:"allow"` // datallowconn
	Limit int    `json:"limit"` // datconnlimit
}

type preparedTx struct {
	GID      string `json:"gid"`
	Owner    string `json:"owner"`
	Database string `json:"database"`
}

// role is one that can log in or has a password.
type role struct {
	OID   string `json:"oid"`
	Name  string `json:"name"`
	Login bool   `json:"login"`
}

type subscription struct {
	OID          string   `json:"oid"`
	Name         string   `json:"name"`
	Database     string   `json:"database"`
	Enabled      bool     `json:"enabled"`
	Slot         string   `json:"slot"`
	Publications []string `json:"publications"`
}

type slot struct {
	Name     string `json:"name"`
	Type     string `json:"type"`
	Database string `json:"database"`
}

const clusterSQL = `SELECT json_build_object(
  'in_recovery', pg_is_in_recovery(),
  'databases', (SELECT json_agg(json_build_object('name', datname, 'allow', datallowconn, 'limit', datconnlimit) ORDER BY datname) FROM pg_database),
  'prepared', (SELECT json_agg(json_build_object('gid', gid, 'owner', owner, 'database', database)) FROM pg_prepared_xacts),
  'roles', (SELECT json_agg(json_build_object('oid', oid::text, 'name', rolname, 'login', rolcanlogin) ORDER BY rolname)
     FROM pg_authid WHERE rolcanlogin OR rolpassword IS NOT NULL),
  'subscriptions', (SELECT json_agg(json_build_object('oid', s.oid::text, 'name', s.subname, 'database', d.datname, 'enabled', s.subenabled,
     'slot', coalesce(s.subslotname::text, ''), 'publications', s.subpublications)) FROM pg_subscription s JOIN pg_database d ON d.oid = s.subdbid),
  'slots', (SELECT json_agg(json_build_object('name', slot_name, 'type', slot_type, 'database', coalesce(database::text, '')))
     FROM pg_replication_slots WHERE NOT temporary),
  'subscription_pages', pg_relation_size('pg_subscription') > 0
)::text`

func (s *session) cluster(ctx context.Context) (cluster, error) {
	var text string
	var c cluster
	if err := s.conn.QueryRow(ctx, s.statement(lookAtCluster, clusterSQL)).Scan(&text); err != nil {
		return c, fmt.Errorf("look for what to cut: %w", err)
	}
	if err := json.Unmarshal([]byte(text), &c); err != nil {
		return c, fmt.Errorf("read what is to be cut: %w", err)
	}
	return c, nil
}

// hidden tells whether there are prepared transactions, which a standby does not
// show, or slots. It looks at no catalog.
func (s *session) hidden(ctx context.Context) (inRecovery, hidden bool, err error) {
	err = s.conn.QueryRow(ctx, "SELECT pg_is_in_recovery(), EXISTS (SELECT FROM pg_prepared_xact()) OR EXISTS (SELECT FROM pg_get_replication_slots())").Scan(&inRecovery, &hidden)
	if err != nil {
		err = fmt.Errorf("look for what a standby does not show: %w", err)
	}
	return inRecovery, hidden, err
}

// dropSlots drops all replication slots; nobody can stream from a branch.
func (s *session) dropSlots(ctx context.Context, slots []slot) ([]pgbough.Difference, error) {
	var diffs []pgbough.Difference
	for _, sl := range slots {
		if _, err := s.conn.Exec(ctx, "SELECT pg_drop_replication_slot($1::text::name)", sl.Name); err != nil {
			return nil, fmt.Errorf("drop the replication slot %q: %w", sl.Name, err)
		}
		diffs = append(diffs, pgbough.Difference{
			Kind: "replication_slot", Object: sl.Name, DB: sl.Database, Action: "dropped", Reason: "its consumer follows production, and it would keep WAL for ever", Detail: sl.Type,
		})
	}
	return diffs, nil
}

// cutShared gives every login role a password of its own, takes the passwords
// of the others away, and removes all subscriptions, in one transaction. The
// publishers of the subscriptions are not spoken to.
func (s *session) cutShared(ctx context.Context, c cluster, secret func() (Secret, error)) ([]pgbough.Role, error) {
	var roles []pgbough.Role
	var oids, verifiers []string
	for _, r := range c.Roles {
		verifier := "" // none
		if r.Login {
			sec, err := secret()
			if err != nil {
				return nil, fmt.Errorf("make a password: %w", err)
			}
			verifier = sec.Verifier
			roles = append(roles, pgbough.Role{Name: r.Name, Password: sec.Password})
		}
		oids, verifiers = append(oids, r.OID), append(verifiers, verifier)
	}
	var b pgx.Batch
	b.Queue(`UPDATE pg_authid a SET rolpassword = nullif(v.verifier, '')
		FROM unnest($1::text[]::oid[], $2::text[]) AS v(oid, verifier) WHERE a.oid = v.oid`, oids, verifiers)
	if len(c.Subscriptions) > 0 {
		var subs []string
		for _, sub := range c.Subscriptions {
			subs = append(subs, sub.OID)
		}
		// What DROP SUBSCRIPTION removes (subscriptioncmds.c), except for the
		// slots on the publishers.
		b.Queue("SELECT pg_replication_origin_drop(roname) FROM pg_replication_origin WHERE roname ~ $1::text", "^pg_("+strings.Join(subs, "|")+")(_[0-9]+)?$")
		b.Queue("DELETE FROM pg_shdepend WHERE classid = 'pg_subscription'::regclass AND objid = ANY ($1::text[]::oid[])", subs)
		b.Queue("DELETE FROM pg_shdescription WHERE classoid = 'pg_subscription'::regclass AND objoid = ANY ($1::text[]::oid[])", subs)
		b.Queue("DELETE FROM pg_shseclabel WHERE classoid = 'pg_subscription'::regclass AND objoid = ANY ($1::text[]::oid[])", subs)
		b.Queue("DELETE FROM pg_subscription WHERE oid = ANY ($1::text[]::oid[])", subs)
	}
	if err := s.batch(ctx, &b); err != nil {
		return nil, fmt.Errorf("replace passwords and remove subscriptions: %w", err)
	}
	return roles, nil
}

func subscriptionDifferences(c cluster, tables map[string]int) []pgbough.Difference {
	var diffs []pgbough.Difference
	for _, s := range c.Subscriptions {
		state := "disabled"
		if s.Enabled {
			state = "enabled"
		}
		diffs = append(diffs, pgbough.Difference{
			Kind: "subscription", Object: s.Name, DB: s.Database, Action: "dropped", Reason: "it would take over production's slot at the publisher",
			Detail: fmt.Sprintf("%s, publications %s, slot %s, %d tables", state, strings.Join(s.Publications, ", "), s.Slot, tables[s.OID]),
		})
	}
	return diffs
}
