package sandbox

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/opencontainers/cgroups"
	"github.com/opencontainers/cgroups/fs"
	"github.com/opencontainers/cgroups/fs2"
	"github.com/opencontainers/cgroups/fscommon"
	"golang.org/x/sys/unix"

	"github.com/pgbough/pgbough/internal/postgres"
)

const (
	// groupsName is the cgroup that the sandboxes' own are in.
	groupsName = "pgbough"
	procsFile  = "cgroup.procs"
	v2Root     = fs2.UnifiedMountpoint

	// What one cgroup may use of a CPU that others want too, compared with
	// another one. All sandboxes together count as ten processes outside.
	shareAll      = 10
	shareFavoured = 4

	cpuPeriod = 100_000 // microseconds

	// emptyTimeout bounds the wait for the last process of an earlier sandbox.
	emptyTimeout = 10 * time.Second
	// sweepAge keeps what is being made from being taken for a leftover.
	sweepAge = time.Minute
)

// controllers are those that limit a sandbox. All of them have to be there.
var controllers = [...]string{"memory", "cpu", "pids"}

// groups makes a cgroup for each sandbox, on machines with cgroup v2, v1 or
// both. With v1 they are below the server's own, with v2 beside it, where the
// rule that only leaves have processes allows no more: what limits the server
// limits them too.
type groups struct {
	parents map[string]string // directories, by v1 controller or "" for v2
}

// group is the cgroup of one sandbox. Its name is the volume's id with a suffix
// that no other has, so that a new one never meets the end of an earlier one.
type group struct {
	cgroups.Manager
}

// findGroups finds where the cgroups of sandboxes have to be.
func findGroups() (*groups, error) {
	g := &groups{parents: map[string]string{}}
	if cgroups.IsCgroup2UnifiedMode() {
		own, err := cgroups.ParseCgroupFile("/proc/self/cgroup")
		if err != nil {
			return nil, fmt.Errorf("find the server's cgroup: %w", err)
		}
		g.parents[""] = filepath.Join(v2Root, filepath.Dir(own[""]), groupsName)
		return g, nil
	}
	for _, c := range controllers {
		own, err := cgroups.GetOwnCgroupPath(c)
		if err != nil {
			return nil, fmt.Errorf("find the server's cgroup of controller %s: %w", c, err)
		}
		g.parents[c] = filepath.Join(own, groupsName)
	}
	return g, nil
}

// favour makes the kernel give all sandboxes together more than one process.
func (g *groups) favour() error {
	if dir, ok := g.parents[""]; ok {
		return cgroups.WriteFile(dir, "cpu.weight", strconv.Itoa(100*shareAll))
	}
	return cgroups.WriteFile(g.parents["cpu"], "cpu.shares", strconv.Itoa(1024*shareAll))
}

// make makes the cgroup for a sandbox on volume id.
func (g *groups) make(id string, limits postgres.Limits) (*group, error) {
	name := id + "." + strconv.FormatInt(time.Now().UnixNano(), 36)
	paths := map[string]string{}
	for c, parent := range g.parents {
		paths[c] = filepath.Join(parent, name)
	}
	out, err := open(paths)
	if err != nil {
		return nil, err
	}
	if err := out.Apply(-1); err != nil { // nobody enters yet
		return nil, errors.Join(fmt.Errorf("make a cgroup: %w", err), out.Destroy())
	}
	if err := out.limit(limits); err != nil {
		return nil, errors.Join(err, out.Destroy())
	}
	return out, nil
}

func open(paths map[string]string) (*group, error) {
	config := &cgroups.Cgroup{Resources: resources(postgres.Limits{}, false)}
	if dir, ok := paths[""]; ok {
		// What it is asked for decides which controllers it wants.
		config.Memory, config.CpuWeight = -1, 100
		m, err := fs2.NewManager(config, dir)
		return &group{m}, err
	}
	m, err := fs.NewManager(config, paths)
	return &group{m}, err
}

// limit sets what the sandbox may use. What limits leaves open stays as it is.
func (g *group) limit(limits postgres.Limits) error {
	dir := g.Path("memory") // v2 has one for all
	swap := cgroups.PathExists(filepath.Join(dir, "memory.memsw.limit_in_bytes")) || cgroups.PathExists(filepath.Join(dir, "memory.swap.max"))
	if err := g.Set(resources(limits, swap)); err != nil {
		return fmt.Errorf("limit a cgroup: %w", err)
	}
	return nil
}

func resources(limits postgres.Limits, swap bool) *cgroups.Resources {
	r := &cgroups.Resources{SkipDevices: true, CpuShares: 1024, CpuWeight: 100, Memory: limits.Memory}
	if limits.Favoured {
		r.CpuShares, r.CpuWeight = shareFavoured*r.CpuShares, shareFavoured*r.CpuWeight
	}
	if limits.Memory > 0 && swap {
		r.MemorySwap = limits.Memory // both together: none of it is swap
	}
	if limits.CPUs > 0 {
		r.CpuPeriod, r.CpuQuota = cpuPeriod, int64(limits.CPUs*cpuPeriod)
	}
	if limits.Processes > 0 {
		r.PidsLimit = &limits.Processes
	}
	return r
}

// enter is a command that joins the cgroup and then becomes argv, so that
// nothing of argv ever runs outside. The kernel takes 0 for the writer.
func (g *group) enter(argv []string) []string {
	const script = `while [ "$1" != -- ]; do echo 0 >"$1" || exit; shift; done; shift; exec "$@"`
	out := []string{"/bin/sh", "-c", script, "enter"}
	for _, dir := range g.GetPaths() {
		out = append(out, filepath.Join(dir, procsFile))
	}
	return append(append(out, "--"), argv...)
}

// remove removes the cgroup of a sandbox that has ended. There may be none.
func (g *group) remove() error {
	if g == nil {
		return nil
	}
	return g.Destroy()
}

// killed is how many processes the kernel has killed for want of memory.
func (g *group) killed() (int, error) {
	n, err := g.OOMKillCount()
	return int(n), err
}

// refused is how many processes were not started for want of a place.
func (g *group) refused() (int, error) {
	n, err := fscommon.GetValueByKey(g.Path("pids"), "pids.events", "max")
	return int(n), err
}

// of finds the cgroup of a running sandbox on volume id by the host's pid of
// one of its processes, wherever the server that started it had its own. It is
// nil when it has none.
func (g *groups) of(id string, pid int) (*group, error) {
	in, err := cgroups.ParseCgroupFile(fmt.Sprintf("/proc/%d/cgroup", pid))
	if err != nil {
		return nil, fmt.Errorf("find the cgroup of process %d: %w", pid, err)
	}
	paths := map[string]string{}
	for c := range g.parents {
		path, ours := in[c], strings.HasPrefix(filepath.Base(in[c]), id+".")
		if !ours || filepath.Base(filepath.Dir(path)) != groupsName {
			return nil, nil
		}
		mount, root := v2Root, "/"
		if c != "" {
			if mount, root, err = cgroups.FindCgroupMountpointAndRoot("", c); err != nil {
				return nil, fmt.Errorf("find the cgroups of controller %s: %w", c, err)
			}
		}
		below, err := filepath.Rel(root, path)
		if err != nil {
			return nil, fmt.Errorf("find the cgroup of process %d: %w", pid, err)
		}
		paths[c] = filepath.Join(mount, below)
	}
	return open(paths)
}

// clear removes the cgroups of earlier sandboxes on volume id. While a process
// lives in one of them, the volume is locked.
func (g *groups) clear(ctx context.Context, id string) error {
	ctx, cancel := context.WithTimeoutCause(ctx, emptyTimeout, errors.New("processes of an earlier one live on in its cgroup"))
	defer cancel()
	return g.each(func(dir string, _ os.DirEntry) error {
		if !strings.HasPrefix(filepath.Base(dir), id+".") {
			return nil
		}
		if err := waitEmpty(ctx, dir); err != nil {
			return errors.Join(locked(id), err)
		}
		return cgroups.RemovePath(dir)
	})
}

// waitEmpty waits until no process is in a cgroup, or it is gone.
func waitEmpty(ctx context.Context, dir string) error {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for wait := time.Millisecond; ; wait = min(2*wait, 50*time.Millisecond) {
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-timer.C:
		}
		switch inside, err := cgroups.GetPids(dir); {
		case gone(err) || errors.Is(err, unix.ENODEV):
			return nil
		case err != nil:
			return fmt.Errorf("look into a cgroup: %w", err)
		case len(inside) == 0:
			return nil
		}
		timer.Reset(wait)
	}
}

// sweep removes cgroups whose sandbox has ended while no server was there.
func (g *groups) sweep() error {
	return g.each(func(dir string, e os.DirEntry) error {
		fi, err := e.Info()
		if err != nil || time.Since(fi.ModTime()) < sweepAge {
			return nil // gone, or just made
		}
		if inside, err := cgroups.GetPids(dir); err != nil || len(inside) > 0 {
			return nil // gone, or in use
		}
		return cgroups.RemovePath(dir)
	})
}

// RemoveGroups removes the cgroup that those of sandboxes are in, unless some are:
// other servers of this machine have theirs there too.
func (l *Launcher) RemoveGroups() error {
	if l.groups == nil {
		return nil
	}
	var errs []error
	for _, dir := range l.groups.parents {
		err := unix.Rmdir(dir)
		if err != nil && !gone(err) && !errors.Is(err, unix.EBUSY) && !errors.Is(err, unix.ENOTEMPTY) {
			errs = append(errs, fmt.Errorf("remove cgroup %s: %w", dir, err))
		}
	}
	return errors.Join(errs...)
}

// each calls f for the cgroups of all sandboxes, for each controller.
func (g *groups) each(f func(dir string, e os.DirEntry) error) error {
	for _, parent := range g.parents {
		entries, err := os.ReadDir(parent)
		if err != nil && !gone(err) {
			return fmt.Errorf("list cgroups: %w", err)
		}
		for _, e := range entries {
			if !e.IsDir() {
				continue
			}
			if err := f(filepath.Join(parent, e.Name()), e); err != nil {
				return err
			}
		}
	}
	return nil
}
