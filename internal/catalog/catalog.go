// Package catalog remembers projects, branches, spares, endpoints, roles and
// operations in one SQLite file.
//
// What a method has written is durable when it returns: it survives the end of
// the process and a power cut (WAL mode, synchronous=FULL). The exception is the
// progress of an operation, which a power cut may lose.
//
// One server uses a catalog at a time; a lock file beside it sees to that. The
// file must not lie in the pool that it describes: a full pool would stop the
// operations that make room. Passwords and connection strings in it are sealed,
// so that a copy of the file alone gives no access to production.
package catalog

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"

	_ "modernc.org/sqlite" // the driver "sqlite"

	"github.com/pgbough/pgbough"
	"github.com/pgbough/pgbough/internal/credential"
)

// readers is how many reads run at the same time. Readers and the writer do not
// wait for each other.
const readers = 4

// Catalog is an open catalog. It is safe for concurrent use.
type Catalog struct {
	id   string
	box  *credential.Box
	lock *os.File

	// writing holds a token while nobody writes, so that writers queue here, where
	// the end of a context is heeded, and never meet in SQLite.
	writing chan struct{}
	writer  *sql.DB // one connection, synchronous=FULL
	lazy    *sql.DB // one connection, synchronous=NORMAL: for progress
	reader  *sql.DB
}

// Open opens the catalog in the file at path, and makes it if there is none. Its
// lock is catalog.lock in the same directory. Secrets are sealed with key; a
// catalog that was written with another key is refused, as is one of a newer
// pgbough.
func Open(ctx context.Context, path string, key *credential.Key) (_ *Catalog, err error) {
	path, err = filepath.Abs(path)
	if err != nil {
		return nil, fmt.Errorf("open the catalog: %w", err)
	}
	c := &Catalog{writing: make(chan struct{}, 1)}
	defer func() {
		if err != nil {
			_ = c.Close()
		}
	}()
	if c.box, err = key.Box("catalog"); err != nil {
		return nil, err
	}
	if c.lock, err = lockFile(filepath.Join(filepath.Dir(path), "catalog.lock")); err != nil {
		return nil, err
	}
	if err := c.connect(ctx, path); err != nil {
		return nil, err
	}
	c.writing <- struct{}{}
	if err := migrate(ctx, c.writer); err != nil {
		return nil, err
	}
	if err := c.Tx(ctx, func(tx *Tx) error { c.id, err = tx.identify(); return err }); err != nil {
		return nil, err
	}
	return c, syncDir(filepath.Dir(path))
}

// connect opens the file, after it was made readable for its owner only: SQLite
// gives its own files beside it the same mode.
func (c *Catalog) connect(ctx context.Context, path string) error {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err == nil {
		err = f.Close()
	}
	if err != nil && !errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("make the catalog: %w", err)
	}
	if c.writer, err = openFile(path, 1, "synchronous(FULL)"); err != nil {
		return err
	}
	if c.lazy, err = openFile(path, 1, "synchronous(NORMAL)"); err != nil {
		return err
	}
	if c.reader, err = openFile(path, readers, "query_only(1)"); err != nil {
		return err
	}
	var verdict string
	if err := c.writer.QueryRowContext(ctx, "PRAGMA quick_check(1)").Scan(&verdict); err != nil {
		return fmt.Errorf("open the catalog %s: %w", path, err)
	}
	if verdict != "ok" {
		return pgbough.Errorf(pgbough.EInternal, "the catalog %s is damaged: %s", path, verdict).
			WithHint("restore it from a backup; the volumes in the pool are not touched")
	}
	return nil
}

func openFile(path string, connections int, pragma string) (*sql.DB, error) {
	q := url.Values{"_pragma": {"busy_timeout(10000)", "journal_mode(WAL)", "foreign_keys(1)", pragma}, "_txlock": {"immediate"}}
	db, err := sql.Open("sqlite", "file:"+(&url.URL{Path: path}).EscapedPath()+"?"+q.Encode())
	if err != nil {
		return nil, fmt.Errorf("open the catalog: %w", err)
	}
	db.SetMaxOpenConns(connections)
	db.SetMaxIdleConns(connections)
	return db, nil
}

// ID is the catalog's own, made with it. Volumes carry it, so that a catalog
// never removes what another one made.
func (c *Catalog) ID() string { return c.id }

// Close waits for what is written and closes the catalog.
func (c *Catalog) Close() error {
	var errs []error
	for _, db := range []*sql.DB{c.reader, c.lazy, c.writer} {
		if db != nil {
			errs = append(errs, db.Close())
		}
	}
	if c.lock != nil {
		errs = append(errs, c.lock.Close())
	}
	return errors.Join(errs...)
}

// Tx is a transaction: all or nothing of what its methods wrote is there after
// it. It is used by one goroutine, and only within the function that got it.
type Tx struct {
	ctx context.Context
	box *credential.Box
	q   querier
}

type querier interface {
	ExecContext(ctx context.Context, query string, args ...any) (sql.Result, error)
	QueryContext(ctx context.Context, query string, args ...any) (*sql.Rows, error)
	QueryRowContext(ctx context.Context, query string, args ...any) *sql.Row
}

// Tx calls f with a transaction, alone among all writers, and commits it when f
// returns nil. Within f, only the methods of the Tx may be used: those of the
// Catalog that write would wait for ever.
func (c *Catalog) Tx(ctx context.Context, f func(*Tx) error) error {
	return c.write(ctx, c.writer, f)
}

func (c *Catalog) write(ctx context.Context, db *sql.DB, f func(*Tx) error) error {
	select {
	case <-c.writing:
		defer func() { c.writing <- struct{}{} }()
	case <-ctx.Done():
		return fmt.Errorf("write to the catalog: %w", context.Cause(ctx))
	}
	tx, err := db.BeginTx(ctx, nil)
	if err != nil {
		return fmt.Errorf("write to the catalog: %w", err)
	}
	defer func() { _ = tx.Rollback() }() // also after a panic; nothing after Commit
	if err := f(&Tx{ctx: ctx, box: c.box, q: tx}); err != nil {
		return err
	}
	if err := tx.Commit(); err != nil {
		return fmt.Errorf("write to the catalog: %w", err)
	}
	return nil
}

// PoolID is the pool that this catalog's volumes are in; empty until SetPoolID.
func (c *Catalog) PoolID(ctx context.Context) (string, error) {
	var id []byte
	err := c.reader.QueryRowContext(ctx, "SELECT (SELECT value FROM meta WHERE name = 'pool')").Scan(&id)
	if err != nil {
		return "", fmt.Errorf("read which pool the catalog belongs to: %w", err)
	}
	return string(id), nil
}

// SetPoolID keeps which pool this catalog belongs to, for good: another one is an EConflict.
func (c *Catalog) SetPoolID(ctx context.Context, id string) error {
	return c.Tx(ctx, func(tx *Tx) error {
		var kept []byte
		err := tx.q.QueryRowContext(tx.ctx, "INSERT INTO meta (name, value) VALUES ('pool', ?) ON CONFLICT (name) DO UPDATE SET value = value RETURNING value", []byte(id)).Scan(&kept)
		if err != nil {
			return fmt.Errorf("write which pool the catalog belongs to: %w", err)
		}
		if string(kept) != id {
			return pgbough.Errorf(pgbough.EConflict, "the catalog belongs to pool %s, not %s", kept, id).
				WithHint("use the pool that belongs to it, or another data directory")
		}
		return nil
	})
}

// Ping tells whether the catalog can be read.
func (c *Catalog) Ping(ctx context.Context) error {
	var one int
	if err := c.reader.QueryRowContext(ctx, "SELECT count(*) FROM meta").Scan(&one); err != nil {
		return fmt.Errorf("read the catalog: %w", err)
	}
	return nil
}

// read is for reads of one statement, which see what is committed.
func (c *Catalog) read(ctx context.Context) *Tx { return &Tx{ctx: ctx, box: c.box, q: c.reader} }

// identify reads who this catalog is, or makes that for a new one.
func (tx *Tx) identify() (string, error) {
	place := credential.Place{Table: "meta", Row: "key", Column: "value"}
	var id, sealed []byte
	err := tx.q.QueryRowContext(tx.ctx, "SELECT (SELECT value FROM meta WHERE name = 'id'), (SELECT value FROM meta WHERE name = 'key')").Scan(&id, &sealed)
	if err != nil {
		return "", fmt.Errorf("read the catalog's id: %w", err)
	}
	if id == nil {
		id = []byte(pgbough.NewOperationID()) // a random UUID is as good here
		_, err := tx.q.ExecContext(tx.ctx, "INSERT INTO meta (name, value) VALUES ('id', ?), ('key', ?)", id, tx.box.Seal(place, string(id)))
		if err != nil {
			return "", fmt.Errorf("write the catalog's id: %w", err)
		}
		return string(id), nil
	}
	if opened, err := tx.box.Open(place, sealed); err != nil || opened != string(id) {
		return "", pgbough.Errorf(pgbough.EInvalid, "the secret key is not the one that this catalog was written with").
			WithHint("restore secret.key from the same backup as catalog.db")
	}
	return string(id), nil
}
