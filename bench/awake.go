package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// settling is how long branches that are awake are left alone before their
// memory is measured: what follows a create is over then.
const settling = 20 * time.Second

// awake measures the memory of branches that are awake and that nobody uses.
func (g *rig) awake(ctx context.Context) (err error) {
	var names []string
	defer func() { err = errors.Join(err, g.removeAll(context.WithoutCancel(ctx), names)) }()
	if names, err = g.lay(ctx, g.atWork); err != nil {
		return err
	}
	for _, name := range names {
		if _, err := g.server.client.Wake(ctx, project, name, nil); err != nil {
			return err
		}
	}
	if err := pause(ctx, settling); err != nil {
		return err
	}
	running, err := sandboxes()
	if err != nil {
		return err
	}
	var share, private, charged sample
	for _, name := range names {
		b, err := g.server.client.Branch(ctx, project, name)
		if err != nil {
			return err
		}
		pids := running[filepath.Base(b.Branch.Path)]
		if len(pids) == 0 {
			return fmt.Errorf("branch %s is not awake", name)
		}
		m := memoryOf(pids)
		share, private = append(share, m.share), append(private, m.private)
		if m.charged > 0 {
			charged = append(charged, m.charged)
		}
	}
	what := fmt.Sprintf("%d branches awake, at rest: ", len(names))
	g.report.add(
		newRow("awake_memory", what+"unshared memory of each", g.size, unitBytes, share).barred(bar{Text: "p50 <= 40 MB", Limit: 40 << 20, Of: "p50"}).
			noted("what one of its processes alone maps is %s", show(private.median(), unitBytes)),
		newRow("awake_charged", what+"charged to its cgroup, its part of the page cache included", g.size, unitBytes, charged))
	return nil
}

// memory is what the processes of one sandbox take, in bytes.
type memory struct {
	share   float64 // of each page that n processes map, the nth part (Pss): what they share with one another counts once
	private float64 // of that, what only one of them maps
	charged float64 // to their cgroup; 0 without one
}

// memoryOf sums smaps_rollup (proc_pid_smaps(5)).
func memoryOf(pids []int) (m memory) {
	for _, pid := range pids {
		f := kilobytes(fmt.Sprintf("/proc/%d/smaps_rollup", pid))
		m.share += f["Pss"]
		m.private += f["Private_Clean"] + f["Private_Dirty"]
		m.charged = max(m.charged, chargedTo(pid))
	}
	return m
}

// kilobytes reads lines such as "Pss:   12 kB".
func kilobytes(path string) map[string]float64 {
	out := map[string]float64{}
	for line := range strings.Lines(readText(path)) {
		name, rest, _ := strings.Cut(line, ":")
		if fields := strings.Fields(rest); len(fields) == 2 {
			n, _ := strconv.ParseFloat(fields[0], 64)
			out[name] = n * 1024
		}
	}
	return out
}

// chargedTo is what the cgroup of a process is charged for, of v1 or v2.
func chargedTo(pid int) float64 {
	for line := range strings.Lines(readText(fmt.Sprintf("/proc/%d/cgroup", pid))) {
		parts := strings.SplitN(strings.TrimSpace(line), ":", 3)
		if len(parts) < 3 || !strings.Contains(parts[2], "/pgbough/") {
			continue
		}
		file := filepath.Join("/sys/fs/cgroup", parts[2], "memory.current")
		if parts[1] == "memory" {
			file = filepath.Join("/sys/fs/cgroup/memory", parts[2], "memory.usage_in_bytes")
		}
		if n, err := strconv.ParseFloat(strings.TrimSpace(readText(file)), 64); err == nil {
			return n
		}
	}
	return 0
}

// readText is a file of the kernel's; empty when what it is about is gone.
func readText(path string) string {
	b, err := os.ReadFile(path)
	if err != nil {
		return ""
	}
	return string(b)
}
