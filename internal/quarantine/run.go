package quarantine

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"golang.org/x/sync/errgroup"

	"github.com/pgbough/pgbough"
)

// maxSessions is how many databases have a session at a time, and are worked on
// at the same time.
const maxSessions = 4

// Secret is a fresh password and what pg_authid stores for it. The verifier is
// computed by us, so that the password is in no statement.
type Secret struct{ Password, Verifier string }

// Options of a quarantine.
type Options struct {
	// Config is how to connect to a database of the spare over its private
	// socket, as the bootstrap superuser.
	Config func(database string) (*pgx.ConnConfig, error)
	Major  int // of the server
	// Secret makes a password for one role. SCRAM takes about a millisecond for each, so have some ready.
	Secret func() (Secret, error)
	// RewriteLater leaves it to Purge to take old versions of rows out of the
	// files of catalogs: the slowest part of Run, for it waits for the disk. Old
	// versions can be read by nobody but a superuser who reads files.
	RewriteLater bool
	Log          *slog.Logger
}

// Report is what Run did.
type Report struct {
	Roles       []pgbough.Role // all login roles, with their new passwords
	Differences []pgbough.Difference
}

// Quarantine holds sessions on one spare. Open it while the spare still
// streams, since connections and warm caches take longer than the rest.
type Quarantine struct {
	o           Options
	lockTimeout string
	main        *session
	seen        cluster // by Open or Run

	mu     sync.Mutex
	others map[string]*session

	looking sync.WaitGroup
	over    bool // there is no further LookAhead; guarded by mu

	saw   sync.Mutex          // guards what the goroutines of LookAhead have seen, which is for good
	ahead *cluster            // nil: nothing
	found map[string]contents // by database
}

// Run opens a quarantine on a promoted spare, runs it and closes it.
func Run(ctx context.Context, o Options) (Report, error) {
	q, err := Open(ctx, o)
	if err != nil {
		return Report{}, err
	}
	report, err := q.Run(ctx)
	return report, errors.Join(err, q.Close(ctx))
}

// Open connects to the spare, which may still be a standby, and looks around,
// so that Run finds warm caches. A database that cannot be looked at now is
// left to Run.
func Open(ctx context.Context, o Options) (*Quarantine, error) {
	began := time.Now()
	q, err := open(ctx, o, runLockTimeout)
	if err != nil {
		return nil, err
	}
	if err := q.look(ctx); err != nil {
		return nil, errors.Join(err, q.Close(ctx))
	}
	o.Log.DebugContext(ctx, "quarantine is open", "databases", len(q.seen.Databases), "took", time.Since(began))
	return q, nil
}

func open(ctx context.Context, o Options, lockTimeout string) (*Quarantine, error) {
	q := &Quarantine{o: o, lockTimeout: lockTimeout, others: map[string]*session{}}
	var err error
	if q.main, err = q.connect(ctx, "postgres"); hasState(err, invalidCatalogName) {
		q.main, err = q.connect(ctx, "template1")
	}
	return q, err
}

func (q *Quarantine) look(ctx context.Context) error {
	var err error
	if err := q.main.prepare(ctx); err != nil {
		return err
	}
	if q.seen, err = q.main.cluster(ctx); err != nil {
		return err
	}
	if _, err := q.main.contents(ctx); err != nil {
		return err
	}
	var g errgroup.Group
	g.SetLimit(maxSessions)
	n := 0
	for _, db := range q.seen.Databases {
		if !db.Allow || db.Name == q.main.database {
			continue
		}
		if n++; n > 2*maxSessions {
			break // the rest is connected to when it is worked on
		}
		g.Go(func() error {
			s, err := q.connect(ctx, db.Name)
			if err != nil {
				q.o.Log.DebugContext(ctx, "a database cannot be looked at yet", "database", db.Name, "err", err)
				return nil
			}
			err = s.prepare(ctx)
			if err == nil {
				_, err = s.contents(ctx)
			}
			if err != nil {
				q.o.Log.DebugContext(ctx, "a database cannot be looked at yet", "database", db.Name, "err", err)
				return s.close(ctx)
			}
			q.keep(s)
			return nil
		})
	}
	return g.Wait()
}

// LookAhead looks at everything in the background, and Run takes what it has seen
// for what is there. It is for a standby that replays nothing more: its promotion
// makes all sessions forget what they know of catalogs, and to look again takes
// longer than everything else that Run does.
func (q *Quarantine) LookAhead(ctx context.Context) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.over {
		return
	}
	q.looking.Wait() // a session does one thing at a time
	q.ahead, q.found = nil, map[string]contents{}
	look := func(s *session, also func() error) {
		q.looking.Go(func() {
			c, err := s.contents(ctx)
			if err == nil && also != nil {
				err = also()
			}
			if err != nil {
				q.o.Log.DebugContext(ctx, "a look ahead failed", "database", s.database, "err", err)
				return
			}
			q.saw.Lock()
			defer q.saw.Unlock()
			q.found[s.database] = c
		})
	}
	look(q.main, func() error {
		c, err := q.main.cluster(ctx)
		if err == nil {
			q.saw.Lock()
			defer q.saw.Unlock()
			q.ahead = &c
		}
		return err
	})
	for _, s := range q.others {
		look(s, nil)
	}
}

func (q *Quarantine) keep(s *session) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.others[s.database] = s
}

// looked waits for the last LookAhead.
func (q *Quarantine) looked() {
	q.mu.Lock()
	q.over = true
	q.mu.Unlock()
	q.looking.Wait()
}

// Close closes its sessions.
func (q *Quarantine) Close(ctx context.Context) error {
	q.looked()
	q.mu.Lock()
	defer q.mu.Unlock()
	var errs []error
	for _, s := range q.others {
		if !s.conn.IsClosed() {
			errs = append(errs, s.close(ctx))
		}
	}
	clear(q.others)
	if q.main != nil && !q.main.conn.IsClosed() {
		errs = append(errs, q.main.close(ctx))
	}
	return errors.Join(errs...)
}

// in runs fn with a session on database: the one that Open left, or a new one
// that is closed afterwards.
func (q *Quarantine) in(ctx context.Context, database string, fn func(*session) error) error {
	if database == q.main.database {
		return fn(q.main)
	}
	q.mu.Lock()
	s := q.others[database]
	q.mu.Unlock()
	// A session of the standby may have been ended by a recovery conflict.
	if s != nil && s.conn.Ping(ctx) == nil {
		return fn(s)
	}
	s, err := q.connect(ctx, database)
	if err != nil {
		return err
	}
	return errors.Join(fn(s), s.close(ctx))
}

// Run cuts everything on the promoted spare. When it returns without an error,
// nothing in the branch can act outside, all of it is durable, and, without
// RewriteLater, no catalog's file holds production's credentials. It may be
// run again, also after a crash in the middle of it; what was dropped or
// disabled before the crash is not reported again.
func (q *Quarantine) Run(ctx context.Context) (Report, error) {
	q.looked()
	clock := stopwatch{last: time.Now()}
	var report Report
	if err := q.revive(ctx); err != nil {
		return report, err
	}
	c, err := q.lookAtCluster(ctx)
	if err != nil {
		return report, err
	}
	if c.InRecovery {
		return report, pgbough.Errorf(pgbough.EInternal, "quarantine cannot run: the spare is not promoted")
	}
	q.seen = c
	add := func(d []pgbough.Difference) { report.Differences = append(report.Differences, d...) }
	dropped, err := q.openAll(ctx)
	if err != nil {
		return report, err
	}
	add(dropped)
	rolled, err := q.rollBack(ctx)
	if err != nil {
		return report, err
	}
	add(rolled)
	slots, err := q.main.dropSlots(ctx, q.seen.Slots)
	if err != nil {
		return report, err
	}
	add(slots)
	clock.lap("prepare")

	w, err := q.cutDatabases(ctx)
	if err != nil {
		return report, err
	}
	add(w.diffs)
	clock.lap("databases")
	if report.Roles, err = q.main.cutShared(ctx, q.seen, q.o.Secret); err != nil {
		return report, err
	}
	add(subscriptionDifferences(q.seen, w.subscribed))
	clock.lap("shared")
	if !q.o.RewriteLater {
		if err := q.rewrite(ctx, w.rewrite); err != nil {
			return report, err
		}
		clock.lap("rewrite")
	}
	if err := q.closeAll(ctx); err != nil {
		return report, err
	}
	clock.lap("flush")
	add(general(q.seen, report.Roles, w))
	slices.SortStableFunc(report.Differences, func(a, b pgbough.Difference) int {
		return cmp.Or(cmp.Compare(a.Kind, b.Kind), cmp.Compare(a.DB, b.DB))
	})
	q.o.Log.InfoContext(ctx, "quarantine has run", append([]any{"roles", len(report.Roles), "differences", len(report.Differences)}, clock.laps...)...)
	return report, nil
}

// lookAtCluster is what LookAhead has seen, unless there is something that a
// standby does not show, or that only a primary can have.
func (q *Quarantine) lookAtCluster(ctx context.Context) (cluster, error) {
	if q.ahead != nil {
		c := *q.ahead
		var hidden bool
		var err error
		if c.InRecovery, hidden, err = q.main.hidden(ctx); err != nil || !hidden {
			return c, err
		}
	}
	q.found = nil
	return q.main.cluster(ctx)
}

// revive connects again when the main session was ended by a recovery conflict.
func (q *Quarantine) revive(ctx context.Context) error {
	if q.main.conn.Ping(ctx) == nil {
		return nil
	}
	again, err := open(ctx, q.o, q.lockTimeout)
	if err != nil {
		return err
	}
	q.main = again.main
	return nil
}

// work is what was found and done in all databases.
type work struct {
	diffs      []pgbough.Difference
	subscribed map[string]int      // tables of a subscription
	rewrite    map[string][]string // database to catalogs
	sequences  int
}

func (q *Quarantine) cutDatabases(ctx context.Context) (work, error) {
	w := work{subscribed: map[string]int{}, rewrite: map[string][]string{}}
	var mu sync.Mutex
	add := func(database string, c contents, diffs []pgbough.Difference, tables []string) {
		mu.Lock()
		defer mu.Unlock()
		w.rewrite[database] = tables
		w.diffs = append(w.diffs, diffs...)
		for oid, n := range c.Subscribed {
			w.subscribed[oid] += n
		}
		w.sequences += c.Sequences
	}
	var left []string
	for _, name := range q.names() {
		if c, ok := q.found[name]; ok && !q.opened(name) && c.nothingToCut() {
			add(name, c, c.emptied(name), c.rewrite())
			continue
		}
		left = append(left, name)
	}
	err := q.each(ctx, left, func(ctx context.Context, s *session) error {
		c, ok := q.found[s.database]
		var err error
		if !ok {
			if c, err = s.contents(ctx); err != nil {
				return err
			}
		}
		diffs, err := s.cutDatabase(ctx, c)
		if err != nil {
			return err
		}
		tables := c.rewrite()
		if q.opened(s.database) {
			if c.Analyzed {
				tables = append(tables, "pg_statistic")
			}
			// Purge cannot connect.
			if err := s.vacuumFull(ctx, tables); err != nil {
				return err
			}
			tables = nil
		}
		add(s.database, c, diffs, tables)
		return nil
	})
	return w, err
}

func (q *Quarantine) rollBack(ctx context.Context) ([]pgbough.Difference, error) {
	prepared := map[string][]preparedTx{}
	for _, p := range q.seen.Prepared {
		prepared[p.Database] = append(prepared[p.Database], p)
	}
	var out []pgbough.Difference
	var mu sync.Mutex
	err := q.each(ctx, sortedKeys(prepared), func(ctx context.Context, s *session) error {
		diffs, err := s.rollBack(ctx, prepared[s.database])
		mu.Lock()
		defer mu.Unlock()
		out = append(out, diffs...)
		return err
	})
	return out, err
}

// each runs fn in several databases at a time.
func (q *Quarantine) each(ctx context.Context, databases []string, fn func(context.Context, *session) error) error {
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(maxSessions)
	for _, name := range databases {
		g.Go(func() error {
			return q.in(ctx, name, func(s *session) error { return fn(ctx, s) })
		})
	}
	return g.Wait()
}

// names are the databases that can be connected to.
func (q *Quarantine) names() []string {
	var out []string
	for _, d := range q.seen.Databases {
		if d.Allow {
			out = append(out, d.Name)
		}
	}
	return out
}

// general are the differences that every branch has.
func general(c cluster, roles []pgbough.Role, w work) []pgbough.Difference {
	diffs := []pgbough.Difference{{
		Kind: "password", Object: fmt.Sprintf("%d login roles", len(roles)), Action: "replaced", Reason: "production's passwords do not work in a branch, nor a branch's in production",
	}}
	if w.sequences > 0 {
		diffs = append(diffs, pgbough.Difference{
			Kind: "sequence", Object: fmt.Sprintf("%d sequences", w.sequences), Action: "may be ahead",
			Reason: "Postgres logs sequences in batches: never behind production, and at most 32 increments ahead",
		})
	}
	return diffs
}

func sortedKeys[V any](m map[string]V) []string {
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	slices.SortFunc(keys, strings.Compare)
	return keys
}

// stopwatch collects durations for the log.
type stopwatch struct {
	last time.Time
	laps []any
}

func (s *stopwatch) lap(name string) {
	now := time.Now()
	s.laps = append(s.laps, slog.Duration(name, now.Sub(s.last)))
	s.last = now
}
