package catalog

import (
	"context"
	"crypto/subtle"
	"fmt"
	"time"

	"github.com/pgbough/pgbough"
)

const keyColumns = `k.id, k.name, coalesce(k.project_id, ''), coalesce(p.name, ''), k.metrics_only, k.created_at, k.last_used_at, k.hash
	FROM api_keys k LEFT JOIN projects p ON p.id = k.project_id `

// storedKey is an API key with the hash that it is known by.
type storedKey struct {
	pgbough.APIKey
	hash []byte
}

func scanKey(_ *Tx, scan func(...any) error) (storedKey, error) {
	var k storedKey
	err := scan(&k.ID, &k.Name, &k.ProjectID, &k.ProjectName, &k.MetricsOnly, timeColumn{&k.CreatedAt}, timeColumn{&k.LastUsedAt}, &k.hash)
	return k, err
}

// CreateAPIKey adds an API key that is known by its hash, and returns it with its
// id. A name that is taken is an EConflict.
func (c *Catalog) CreateAPIKey(ctx context.Context, k pgbough.APIKey, hash []byte) (pgbough.APIKey, error) {
	err := c.Tx(ctx, func(tx *Tx) error {
		row := tx.q.QueryRowContext(tx.ctx, `INSERT INTO api_keys (name, hash, project_id, metrics_only, created_at, last_used_at)
			VALUES (?, ?, nullif(?, ''), ?, ?, ?) RETURNING id`, k.Name, hash, k.ProjectID, k.MetricsOnly, nanos(k.CreatedAt), nanos(k.LastUsedAt))
		switch err := row.Scan(&k.ID); {
		case isDuplicate(err):
			return pgbough.Errorf(pgbough.EConflict, "there is an API key %q already", k.Name).
				WithHint("choose another name, or end that one with `pgbough key revoke %s`", k.Name)
		case isForeignKey(err):
			return noProject(k.ProjectID)
		default:
			return err
		}
	})
	if err != nil {
		return pgbough.APIKey{}, fmt.Errorf("write API key %s: %w", k.Name, err)
	}
	return k, nil
}

// APIKeyOf finds the API key with a hash, and is false if there is none. How long
// that takes tells at most how far two hashes agree, from which no key follows.
func (c *Catalog) APIKeyOf(ctx context.Context, hash []byte) (pgbough.APIKey, bool, error) {
	tx := c.read(ctx)
	k, err := scanKey(tx, tx.q.QueryRowContext(ctx, "SELECT "+keyColumns+"WHERE k.hash = ?", hash).Scan)
	if isNoRows(err) {
		return pgbough.APIKey{}, false, nil
	}
	if err != nil {
		return pgbough.APIKey{}, false, fmt.Errorf("find an API key: %w", err)
	}
	return k.APIKey, subtle.ConstantTimeCompare(k.hash, hash) == 1, nil
}

// APIKeys are all API keys, the oldest first.
func (c *Catalog) APIKeys(ctx context.Context) ([]pgbough.APIKey, error) {
	list, err := all(c.read(ctx), scanKey, "SELECT "+keyColumns+"ORDER BY k.id")
	if err != nil {
		return nil, fmt.Errorf("read the API keys: %w", err)
	}
	keys := make([]pgbough.APIKey, 0, len(list))
	for _, k := range list {
		keys = append(keys, k.APIKey)
	}
	return keys, nil
}

// DeleteAPIKey forgets an API key, by its id or, if there is none, by its name,
// and returns what it was. Nothing authenticates with it once this returns.
func (c *Catalog) DeleteAPIKey(ctx context.Context, idOrName string) (pgbough.APIKey, error) {
	var k storedKey
	err := c.Tx(ctx, func(tx *Tx) error {
		row := tx.q.QueryRowContext(tx.ctx, "SELECT "+keyColumns+"WHERE CAST(k.id AS TEXT) = ?1 OR k.name = ?1 ORDER BY CAST(k.id AS TEXT) = ?1 DESC LIMIT 1", idOrName)
		var err error
		if k, err = scanKey(tx, row.Scan); isNoRows(err) {
			return pgbough.Errorf(pgbough.ENotFound, "there is no API key %q", idOrName).WithHint("see: pgbough key list")
		}
		if err == nil {
			_, err = tx.exec("DELETE FROM api_keys WHERE id = ?", k.ID)
		}
		return err
	})
	if err != nil {
		return pgbough.APIKey{}, fmt.Errorf("delete API key %s: %w", idOrName, err)
	}
	return k.APIKey, nil
}

// NoteAPIKeyUse keeps when an API key was used. A power cut may lose it.
func (c *Catalog) NoteAPIKeyUse(ctx context.Context, id int64, at time.Time) error {
	err := c.write(ctx, c.lazy, func(tx *Tx) error {
		_, err := tx.exec("UPDATE api_keys SET last_used_at = ? WHERE id = ?", nanos(at), id)
		return err
	})
	if err != nil {
		return fmt.Errorf("note the use of an API key: %w", err)
	}
	return nil
}
