package main

import (
	"cmp"
	"context"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// machine is what the numbers were measured on.
type machine struct {
	Cores      int    `json:"cores"`
	CPU        string `json:"cpu"`
	Memory     uint64 `json:"memory_bytes"`
	Kernel     string `json:"kernel"`
	FileSystem string `json:"file_system"`
	Postgres   string `json:"postgres"`
	Pool       string `json:"pool"`
	Pgbough    string `json:"pgbough"`
	LoadStart  string `json:"load_start"`
	LoadEnd    string `json:"load_end"`
}

func describe(ctx context.Context, dir string) (machine, error) {
	m := machine{Cores: runtime.NumCPU(), CPU: field("/proc/cpuinfo", "model name"), LoadStart: load()}
	var info unix.Sysinfo_t
	if err := unix.Sysinfo(&info); err != nil {
		return m, fmt.Errorf("ask for the memory: %w", err)
	}
	m.Memory = info.Totalram * uint64(info.Unit)
	var uts unix.Utsname
	if err := unix.Uname(&uts); err != nil {
		return m, fmt.Errorf("ask for the kernel: %w", err)
	}
	m.Kernel = unix.ByteSliceToString(uts.Release[:])
	out, err := exec.CommandContext(ctx, "findmnt", "-no", "FSTYPE", "-T", cmp.Or(dir, os.TempDir())).Output()
	if err != nil {
		return m, fmt.Errorf("ask for the file system: %w", err)
	}
	m.FileSystem = strings.TrimSpace(string(out))
	return m, nil
}

// lines describe it for people.
func (m machine) lines() []string {
	return []string{
		fmt.Sprintf("machine: %d cores (%s), %.0f GB memory, Linux %s, host file system %s", m.Cores, m.CPU, float64(m.Memory)/(1<<30), m.Kernel, m.FileSystem),
		fmt.Sprintf("software: Postgres %s, pgbough %s, pool %s", m.Postgres, m.Pgbough, m.Pool),
		fmt.Sprintf("load average at the start %s, at the end %s (the run's own production, follower and spares are in it from the start on)", m.LoadStart, m.LoadEnd),
	}
}

func load() string {
	b, err := os.ReadFile("/proc/loadavg")
	if err != nil {
		return "unknown"
	}
	return strings.Join(strings.Fields(string(b))[:3], " ")
}

// field is the first value of a name in a file of "name : value" lines.
func field(file, name string) string {
	b, err := os.ReadFile(file)
	if err != nil {
		return "unknown"
	}
	for line := range strings.Lines(string(b)) {
		if k, v, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(k) == name {
			return strings.TrimSpace(v)
		}
	}
	return "unknown"
}

// pause waits, unless ctx ends before.
func pause(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-t.C:
		return nil
	}
}

// until asks every interval until ok says yes.
func until(ctx context.Context, limit, interval time.Duration, what string, ok func() (bool, error)) error {
	deadline := time.Now().Add(limit)
	for {
		yes, err := ok()
		if err != nil || yes {
			return err
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("not within %s: %s", limit, what)
		}
		if err := pause(ctx, interval); err != nil {
			return err
		}
	}
}
