package catalog

import (
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	sqlite "modernc.org/sqlite"
	sqlite3 "modernc.org/sqlite/lib"

	"github.com/pgbough/pgbough"
	"github.com/pgbough/pgbough/internal/credential"
)

// nanos is t as it is stored.
func nanos(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.UnixNano()
}

// timeColumn scans what nanos stored.
type timeColumn struct{ t *time.Time }

func (c timeColumn) Scan(v any) error {
	n, ok := v.(int64)
	if !ok {
		return fmt.Errorf("%T is not a time", v)
	}
	*c.t = time.Time{}
	if n != 0 {
		*c.t = time.Unix(0, n).UTC()
	}
	return nil
}

// unsigned scans 64 bits that are stored as a signed integer.
type unsigned[T ~uint64] struct{ v *T }

func (c unsigned[T]) Scan(v any) error {
	n, ok := v.(int64)
	if !ok {
		return fmt.Errorf("%T is not an integer", v)
	}
	*c.v = T(n)
	return nil
}

// list is v as JSON.
func list(v any) (string, error) {
	b, err := json.Marshal(v)
	return string(b), err
}

// jsonColumn scans what list made.
type jsonColumn struct{ v any }

func (c jsonColumn) Scan(v any) error {
	s, ok := v.(string)
	if !ok {
		return fmt.Errorf("%T is not JSON text", v)
	}
	return json.Unmarshal([]byte(s), c.v)
}

// secretColumn scans what Box.Seal made for place, which may name columns that
// stand before it in the same row.
type secretColumn struct {
	box   *credential.Box
	place func() credential.Place
	v     *string
}

func (c secretColumn) Scan(v any) error {
	b, ok := v.([]byte)
	if !ok {
		return fmt.Errorf("%T is not a sealed secret", v)
	}
	s, err := c.box.Open(c.place(), b)
	*c.v = s
	return err
}

// all reads the rows of a query, each with scan.
func all[T any](tx *Tx, scan func(*Tx, func(...any) error) (T, error), query string, args ...any) ([]T, error) {
	rows, err := tx.q.QueryContext(tx.ctx, query, args...)
	if err != nil {
		return nil, err
	}
	defer func() { _ = rows.Close() }()
	var list []T
	for rows.Next() {
		v, err := scan(tx, rows.Scan)
		if err != nil {
			return nil, err
		}
		list = append(list, v)
	}
	return list, rows.Err()
}

// exec runs a statement and tells how many rows it changed.
func (tx *Tx) exec(query string, args ...any) (int64, error) {
	res, err := tx.q.ExecContext(tx.ctx, query, args...)
	if err != nil {
		return 0, err
	}
	return res.RowsAffected()
}

// change runs a statement that must change one row; missing is the error when it
// changed none. what completes "write ..." for other errors.
func (tx *Tx) change(what string, missing *pgbough.Error, query string, args ...any) error {
	n, err := tx.exec(query, args...)
	if err != nil {
		return fmt.Errorf("write %s: %w", what, err)
	}
	if n == 0 {
		return missing
	}
	return nil
}

// violates tells whether err is SQLite's refusal for one of the given reasons.
func violates(err error, codes ...int) bool {
	var e *sqlite.Error
	if !errors.As(err, &e) {
		return false
	}
	for _, code := range codes {
		if e.Code() == code {
			return true
		}
	}
	return false
}

func isDuplicate(err error) bool {
	return violates(err, sqlite3.SQLITE_CONSTRAINT_UNIQUE, sqlite3.SQLITE_CONSTRAINT_PRIMARYKEY)
}

func isForeignKey(err error) bool {
	// RESTRICT is carried out by a trigger.
	return violates(err, sqlite3.SQLITE_CONSTRAINT_FOREIGNKEY, sqlite3.SQLITE_CONSTRAINT_TRIGGER)
}

func isNoRows(err error) bool { return errors.Is(err, sql.ErrNoRows) }
