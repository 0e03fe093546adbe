// Command bench measures pgbough against what a team would otherwise do, on this
// machine and in one run: `make bench`. It prints one table and writes it as
// Markdown and JSON.
//
// Words used throughout:
//
//   - A rig is one production Postgres under load with a pgbough server attached
//     to it, for one size of data.
//   - Bare is the control that nothing can beat: the time from the exec of
//     postgres to the first answered query, on a cleanly stopped copy of the same
//     data with the same settings, as an unprivileged user on the host's file
//     system and without any sandbox.
//   - Recover is the control that copy-on-write tools usually are: clone the
//     follower, take its standby.signal away, start Postgres, which replays all
//     WAL since production's last checkpoint before it answers.
//   - Stock is the control of a refill: the same clone of the follower, started
//     with Postgres's default settings as a standby, until it has caught up.
//   - Debt is the WAL that production has written since its last checkpoint.
//   - The first query is the same everywhere: one row of pgbench_accounts by key.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// options are what the command line says.
type options struct {
	binary     string
	pool       string
	poolSize   string
	serverArgs []string
	dir        string
	out        string
	doc        string
	sizes      []float64 // GB
	mainSize   float64   // the one that has all rows
	rows       []string  // empty: all
	samples    int
	recovers   int
	debt       int64 // bytes
	rate       int   // transactions a second
	slice      time.Duration
	repeats    int
	window     time.Duration
	arrivals   time.Duration
	atRest     int // branches
	atWork     int // branches that are awake
	keep       bool
}

// rowNames are what --rows may choose, in the order in which they are measured.
// What is not the create row is measured at the main size only.
func rowNames() []string {
	return []string{"create", "burst", "arrivals", "refill", "bytes", "lag", "production", "pgbench", "pools", "proxy", "compare", "wake", "depth", "awake", "rest"}
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, os.Args[1:])
	stop()
	switch {
	case errors.Is(err, flag.ErrHelp):
		os.Exit(2)
	case err != nil:
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func parse(args []string) (options, error) {
	var o options
	var sizes, rows, serverArgs string
	var quick bool
	f := flag.NewFlagSet("bench", flag.ContinueOnError)
	f.StringVar(&o.binary, "binary", "bin/pgbough", "the pgbough that is measured")
	f.StringVar(&o.pool, "pool", "auto", "`kind` of pool, as of pgbough server --pool")
	f.StringVar(&o.poolSize, "pool-size", "", "size of the pool's image (default: 16 GB and 2.5 times the data)")
	f.StringVar(&serverArgs, "server-args", "", "further arguments of pgbough server, separated by spaces")
	f.StringVar(&o.dir, "dir", "", "where everything is made and removed again (default: the system's temporary directory)")
	f.StringVar(&o.out, "out", "bench-out", "directory for benchmarks.md and benchmarks.json")
	f.StringVar(&o.doc, "doc", "", "a Markdown file whose part between the lines `"+docBegin+"` and "+docEnd+" is replaced by the table: docs/benchmarks.md")
	f.StringVar(&sizes, "sizes", "0.1,1", "sizes of data in GB; 10 is the third of the project's own table")
	f.Float64Var(&o.mainSize, "main", 1, "the size in GB at which all rows are measured")
	f.StringVar(&rows, "rows", "", "only these rows: "+strings.Join(rowNames(), ","))
	f.IntVar(&o.samples, "samples", 20, "branches that are created at each size")
	f.IntVar(&o.recovers, "recovers", 3, "runs of the control recover")
	f.Int64Var(&o.debt, "debt", 850, "MB of WAL that production has written since its checkpoint")
	f.IntVar(&o.rate, "rate", 300, "transactions a second on production")
	f.DurationVar(&o.slice, "slice", 15*time.Second, "length of one pgbench run")
	f.IntVar(&o.repeats, "repeats", 3, "pgbench runs of each kind and side")
	f.DurationVar(&o.window, "window", time.Minute, "how long the lag and what production pays are watched")
	f.DurationVar(&o.arrivals, "arrivals", 15*time.Minute, "how long branches are asked for at random, every 30 s in the mean")
	f.IntVar(&o.atRest, "at-rest", 1000, "branches that are there, asleep, while creating and listing are measured")
	f.IntVar(&o.atWork, "awake", 50, "branches that are awake while their memory is measured")
	f.BoolVar(&quick, "quick", false, "a smoke run of a few minutes: 0.1 GB, few samples, little debt; its numbers mean nothing")
	f.BoolVar(&o.keep, "keep", false, "leave the directory with all logs there")
	if err := f.Parse(args); err != nil {
		return o, errors.Join(flag.ErrHelp, err)
	}
	if quick {
		sizes, o.mainSize, o.samples, o.recovers, o.debt = "0.1", 0.1, 3, 1, 100
		o.slice, o.repeats, o.window, o.arrivals = 4*time.Second, 1, 10*time.Second, 40*time.Second
		o.atRest, o.atWork = 2*few, 4
	}
	o.debt <<= 20
	o.serverArgs = strings.Fields(serverArgs)
	for _, s := range strings.Split(sizes, ",") {
		gb, err := strconv.ParseFloat(s, 64)
		if err != nil || gb <= 0 {
			return o, fmt.Errorf("--sizes: %q is no size in GB", s)
		}
		o.sizes = append(o.sizes, gb)
	}
	if !slices.Contains(o.sizes, o.mainSize) {
		o.mainSize = o.sizes[len(o.sizes)-1]
	}
	for _, r := range strings.FieldsFunc(rows, func(c rune) bool { return c == ',' }) {
		if !slices.Contains(rowNames(), r) {
			return o, fmt.Errorf("--rows: there is no row %q; there are %s", r, strings.Join(rowNames(), ", "))
		}
		o.rows = append(o.rows, r)
	}
	if o.atRest <= few || o.atWork < 1 {
		return o, fmt.Errorf("--at-rest is more than %d, --awake at least 1", few)
	}
	if o.samples < 1 || o.recovers < 1 || o.repeats < 3 && !quick {
		return o, errors.New("--samples and --recovers are at least 1, --repeats at least 3")
	}
	return o, nil
}

// measures tells whether a row is measured at a size.
func (o options) measures(row string, size float64) bool {
	return (len(o.rows) == 0 || slices.Contains(o.rows, row)) && (row == "create" || size == o.mainSize)
}

func run(ctx context.Context, args []string) error {
	o, err := parse(args)
	if err != nil {
		return err
	}
	if os.Geteuid() != 0 {
		return errors.New("the server that is measured needs root: run it with sudo")
	}
	if _, err := os.Stat(o.binary); err != nil {
		return fmt.Errorf("find pgbough: %w (make build makes it)", err)
	}
	r := &report{Started: time.Now().UTC(), Options: strings.Join(args, " ")}
	if r.Machine, err = describe(ctx, o.dir); err != nil {
		return err
	}
	var failures []error
	for _, size := range o.sizes {
		if ctx.Err() != nil {
			break
		}
		if !slices.ContainsFunc(rowNames(), func(row string) bool { return o.measures(row, size) }) {
			continue
		}
		if err := measure(ctx, o, size, r); err != nil {
			failures = append(failures, fmt.Errorf("at %s: %w", gigabytes(size), err))
			r.Failures = append(r.Failures, fmt.Sprintf("%s: %v", gigabytes(size), err))
		}
	}
	if ctx.Err() != nil {
		failures = append(failures, errors.New("interrupted: the table is not complete"))
	}
	r.scaling(o.sizes)
	r.finish()
	return errors.Join(append(failures, r.write(os.Stdout, o.out, o.doc))...)
}

// say tells on stderr how far it is.
func say(format string, args ...any) {
	fmt.Fprintf(os.Stderr, time.Now().Format("15:04:05 ")+format+"\n", args...)
}
