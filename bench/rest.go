package main

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"
)

const (
	few     = 10 // branches at rest that the others are compared with
	lists   = 20 // that are timed at each number of branches
	makers  = 4  // create at the same time
	restLag = 24 * time.Hour
)

// resting is what was measured beside a number of branches at rest.
type resting struct {
	create, lagged, list, cli sample
	start                     time.Duration // of the server, until it serves
	processes                 int           // of the branches
}

// rest measures whether branches at rest are in the way: with many of them there,
// creating and listing must not be slower than with few.
func (g *rig) rest(ctx context.Context) (err error) {
	var names []string
	defer func() { err = errors.Join(err, g.removeAll(context.WithoutCancel(ctx), names)) }()
	var found [2]resting
	for i, n := range []int{few, g.atRest} {
		began := time.Now()
		more, err := g.lay(ctx, n-len(names))
		if names = append(names, more...); err != nil {
			return err
		}
		if i > 0 {
			g.report.note("%s: %d branches were made of a clean point and suspended in %.0f s", gigabytes(g.size), len(more), time.Since(began).Seconds())
		}
		if found[i], err = g.beside(ctx, names); err != nil {
			return err
		}
	}
	g.restRows(found[0], found[1])
	return nil
}

func (g *rig) restRows(with10, withAll resting) {
	no := bar{Text: fmt.Sprintf("p50 <= 1.5 x with %d", few), Limit: 1.5, Of: "ratio"}
	beside := fmt.Sprintf("with %d branches at rest: ", g.atRest)
	control := fmt.Sprintf("with %d", few)
	r := func(key, measure string, of func(resting) sample) row {
		return newRow(key, beside+measure, g.size, unitMS, of(withAll)).against(control, of(with10).median())
	}
	var begun sample
	begun.add(withAll.start)
	g.report.add(
		newRow("rest_processes", beside+"processes of theirs", g.size, unitCount, sample{float64(withAll.processes)}).barred(bar{Text: "0", Limit: 0, Of: "p50"}),
		r("rest_create", "create now, request to first answered query", func(f resting) sample { return f.create }).barred(no),
		r("rest_max_lag", "create with --max-lag from a clean point", func(f resting) sample { return f.lagged }).barred(no),
		r("rest_list", "the API lists them", func(f resting) sample { return f.list }).barred(no).noted("the answer has %d times as many branches", g.atRest/few),
		r("rest_cli", "pgbough branch list", func(f resting) sample { return f.cli }).barred(no),
		newRow("rest_start", beside+"start of the server, until it serves", g.size, unitMS, begun).against(control, float64(with10.start.Milliseconds())))
}

// lay makes n branches that share a clean point, and suspends them.
func (g *rig) lay(ctx context.Context, n int) (names []string, err error) {
	if err := g.server.spare(ctx); err != nil {
		return nil, err
	}
	for range n {
		names = append(names, g.name())
	}
	work, ctx := errgroup.WithContext(ctx)
	work.SetLimit(makers)
	for _, name := range names {
		work.Go(func() error { return g.layOne(ctx, name) })
	}
	return names, work.Wait()
}

func (g *rig) layOne(ctx context.Context, name string) error {
	if _, _, err := g.branch(ctx, name, restLag); err != nil {
		return err
	}
	_, err := g.server.client.Suspend(ctx, project, name, nil)
	return err
}

// beside measures what branches at rest may be in the way of.
func (g *rig) beside(ctx context.Context, names []string) (f resting, err error) {
	if f.processes, err = g.processesOf(ctx, names); err != nil {
		return f, err
	}
	for range min(g.samples, 10) {
		for _, way := range []struct {
			lag time.Duration
			to  *sample
		}{{0, &f.create}, {restLag, &f.lagged}} {
			if err := errors.Join(g.server.spare(ctx), pause(ctx, quiet)); err != nil {
				return f, err
			}
			b, _, err := g.branch(ctx, g.name(), way.lag)
			if err = errors.Join(err, g.server.remove(ctx, b.name)); err != nil {
				return f, err
			}
			way.to.add(b.total)
		}
	}
	if err := errors.Join(g.server.spare(ctx), pause(ctx, quiet)); err != nil {
		return f, err
	}
	for range lists {
		if err := g.list(ctx, len(names), &f); err != nil {
			return f, err
		}
	}
	f.start, err = g.restart(ctx)
	return f, err
}

// list lists the branches twice, over the API and as a person does.
func (g *rig) list(ctx context.Context, n int, f *resting) error {
	began := time.Now()
	all, err := g.server.client.Branches(ctx, project)
	f.list.add(time.Since(began))
	if err != nil || len(all.Branches) < n {
		return errors.Join(err, fmt.Errorf("%d branches are listed, of %d", len(all.Branches), n))
	}
	began = time.Now()
	_, err = g.server.cli(ctx, "branch", "list")
	f.cli.add(time.Since(began))
	return err
}

// restart stops the server and its computes, and starts it again.
func (g *rig) restart(ctx context.Context) (time.Duration, error) {
	if err := g.server.process.stop(syscall.SIGTERM, 2*time.Minute); err != nil {
		return 0, err
	}
	began := time.Now()
	err := g.server.start(ctx)
	took := time.Since(began)
	return took, errors.Join(err, g.server.spare(ctx))
}

// processesOf counts the processes of branches.
func (g *rig) processesOf(ctx context.Context, names []string) (n int, err error) {
	running, err := sandboxes()
	if err != nil {
		return 0, err
	}
	for _, name := range names {
		b, err := g.server.client.Branch(ctx, project, name)
		if err != nil {
			return 0, err
		}
		n += len(running[filepath.Base(b.Branch.Path)])
	}
	return n, nil
}

// removeAll deletes branches, several at a time, and all that it can. Its error is
// the first.
func (g *rig) removeAll(ctx context.Context, names []string) error {
	var work errgroup.Group
	work.SetLimit(makers)
	for _, name := range names {
		work.Go(func() error { return g.server.remove(ctx, name) })
	}
	return work.Wait()
}

// sandboxes are the processes of each sandbox on this machine, by volume id: its
// postmaster, what that descends from up to bwrap, and all that descend from bwrap.
func sandboxes() (map[string][]int, error) {
	stats, err := filepath.Glob("/proc/[0-9]*/stat")
	if err != nil {
		return nil, err
	}
	parents, children := map[int]int{}, map[int][]int{}
	for _, path := range stats {
		pid, ppid := parentOf(path)
		parents[pid] = ppid
		children[ppid] = append(children[ppid], pid)
	}
	found := map[string][]int{}
	for pid := range parents {
		if id := clusterOf(pid); id != "" {
			found[id] = descendants(children, outermost(parents, pid))
		}
	}
	return found, nil
}

// outermost is the bwrap around a postmaster: its parent is the sandbox's init,
// whose parent is bwrap, if that was not killed.
func outermost(parents map[int]int, pid int) int {
	for range 2 {
		up := parents[pid]
		if comm := strings.TrimSpace(readText(fmt.Sprintf("/proc/%d/comm", up))); comm != "sh" && comm != "bwrap" {
			break
		}
		pid = up
	}
	return pid
}

func descendants(children map[int][]int, pid int) []int {
	all := []int{pid}
	for _, child := range children[pid] {
		all = append(all, descendants(children, child)...)
	}
	return all
}

// parentOf reads the pid and the parent's pid of a process (proc_pid_stat(5)).
func parentOf(path string) (pid, ppid int) {
	head, tail, _ := strings.Cut(readText(path), " (")
	pid, _ = strconv.Atoi(head) // 0 for one that has ended
	if fields := strings.Fields(tail[strings.LastIndexByte(tail, ')')+1:]); len(fields) > 1 {
		ppid, _ = strconv.Atoi(fields[1])
	}
	return pid, ppid
}

// clusterOf is the volume that a process is the postmaster of.
func clusterOf(pid int) string {
	args := strings.Split(strings.TrimRight(readText(fmt.Sprintf("/proc/%d/cmdline", pid)), "\x00"), "\x00")
	if filepath.Base(args[0]) != "postgres" {
		return ""
	}
	_, id, _ := strings.Cut(args[len(args)-1], "cluster_name=pgbough/")
	return id
}
