package e2e

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/pgbough/pgbough/internal/pgtest"
)

// crowd is several sessions that commit numbered rows as fast as they can. With
// each row stands what its session knew to be committed of all the others when
// it began, so that the order of commits between sessions can be checked.
type crowd struct {
	mu    sync.Mutex
	acked []int64 // the newest acknowledged row of each session
	stop  context.CancelFunc
	ended sync.WaitGroup
	erred error
}

// startCrowd starts one session for each text, which is what it says first.
func startCrowd(t *testing.T, p *pgtest.Server, sessions ...string) *crowd {
	t.Helper()
	p.Exec(t, "postgres", `
		DROP TABLE IF EXISTS acked_by;
		CREATE TABLE acked_by (session int, n bigint, knew bigint[], PRIMARY KEY (session, n));
		ALTER TABLE acked_by OWNER TO app`)
	ctx, cancel := context.WithCancel(context.Background())
	c := &crowd{acked: make([]int64, len(sessions)), stop: cancel}
	for i, session := range sessions {
		c.ended.Go(func() {
			if err := c.write(ctx, p, i, session); err != nil && ctx.Err() == nil {
				c.mu.Lock()
				defer c.mu.Unlock()
				c.erred = fmt.Errorf("session %d: %w", i, err)
			}
		})
	}
	t.Cleanup(func() { c.end(t) })
	eventually(t, 20*time.Second, "every session has committed", func() bool { return !slices.Contains(c.known(), 0) })
	return c
}

func (c *crowd) write(ctx context.Context, p *pgtest.Server, i int, session string) error {
	conn, err := pgx.Connect(ctx, p.ConnString("postgres", "postgres"))
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close(context.Background()) }()
	if _, err := conn.Exec(ctx, session); err != nil {
		return err
	}
	for n := int64(1); ctx.Err() == nil; n++ {
		if _, err := conn.Exec(ctx, "INSERT INTO acked_by VALUES ($1, $2, $3)", i, n, c.known()); err != nil {
			return err
		}
		c.mu.Lock()
		c.acked[i] = n
		c.mu.Unlock()
	}
	return nil
}

// known is the newest acknowledged row of each session.
func (c *crowd) known() []int64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Clone(c.acked)
}

func (c *crowd) end(t *testing.T) {
	t.Helper()
	c.stop()
	c.ended.Wait()
	if c.erred != nil {
		t.Errorf("a writer of production: %v", c.erred)
	}
}

// missing tells in words what a branch lacks that was acknowledged before it was
// asked for, or that comes before something it has; empty for nothing.
func (c *crowd) missing(s *server, branch string, before []int64) string {
	s.t.Helper()
	values := make([]string, len(before))
	for i, n := range before {
		values[i] = fmt.Sprintf("(%d, %d::bigint)", i, n)
	}
	return s.query(branch, fmt.Sprintf(`
		WITH newest AS (SELECT session, count(*) AS rows, max(n) AS n FROM acked_by GROUP BY session),
		asked (session, n) AS (VALUES %s)
		SELECT format('session %%s has %%s rows up to %%s', session, rows, n) FROM newest WHERE rows <> n
		UNION ALL
		SELECT format('session %%s ends at %%s, but %%s was acknowledged', session, newest.n, asked.n)
		FROM asked LEFT JOIN newest USING (session) WHERE coalesce(newest.n, 0) < asked.n
		UNION ALL
		(SELECT format('row %%s of session %%s began after row %%s of session %%s, which is not there', a.n, a.session, k.n, k.session - 1)
		FROM acked_by a, unnest(a.knew) WITH ORDINALITY k (n, session) LEFT JOIN newest ON newest.session = k.session - 1
		WHERE k.n > coalesce(newest.n, 0) LIMIT 5)`, strings.Join(values, ", ")))
}
