package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// user is who a program runs as; nil is ourselves.
type user struct{ uid, gid int }

// nobody runs what needs a name in passwd, as initdb does; computes is whom the
// server runs each Postgres as.
func nobody() *user   { return &user{65534, 65534} }
func computes() *user { return &user{64420, 64420} }

func (u *user) own(path string) error { return os.Lchown(path, u.uid, u.gid) }

// attributes put a program into a process group of its own, so that a signal
// for the bench does not end it before its turn.
func attributes(u *user) *syscall.SysProcAttr {
	a := &syscall.SysProcAttr{Setpgid: true}
	if u != nil {
		a.Credential = &syscall.Credential{Uid: uint32(u.uid), Gid: uint32(u.gid)}
	}
	return a
}

func environment(extra ...string) []string {
	return append([]string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL=C.UTF-8", "TZ=UTC", "HOME=/"}, extra...)
}

// output runs a program to its end and returns what it printed.
func output(ctx context.Context, u *user, env []string, name string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Dir, cmd.Env, cmd.SysProcAttr = "/", environment(env...), attributes(u)
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	var out, errOut bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errOut
	if err := cmd.Run(); err != nil {
		return "", fmt.Errorf("%s: %w: %s", filepath.Base(name), err, last(errOut.String(), 5))
	}
	return out.String(), nil
}

// daemon is a program that runs until it is stopped.
type daemon struct {
	cmd  *exec.Cmd
	log  string
	done chan struct{}
}

// launch starts a program; log gets what it prints.
func launch(u *user, log string, name string, args ...string) (*daemon, error) {
	f, err := os.OpenFile(log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return nil, fmt.Errorf("open its log: %w", err)
	}
	defer func() { _ = f.Close() }() // the program has its own descriptor
	d := &daemon{cmd: exec.Command(name, args...), log: log, done: make(chan struct{})}
	d.cmd.Dir, d.cmd.Env, d.cmd.SysProcAttr = "/", environment(), attributes(u)
	d.cmd.Stdout, d.cmd.Stderr = f, f
	if err := d.cmd.Start(); err != nil {
		return nil, fmt.Errorf("start %s: %w", filepath.Base(name), err)
	}
	go func() {
		_ = d.cmd.Wait() // whoever waits asks for the state
		close(d.done)
	}()
	return d, nil
}

func (d *daemon) running() bool {
	if d == nil {
		return false
	}
	select {
	case <-d.done:
		return false
	default:
		return true
	}
}

// stop sends a signal and waits for the end; after limit it kills.
func (d *daemon) stop(sig syscall.Signal, limit time.Duration) error {
	if !d.running() {
		return nil
	}
	if err := d.cmd.Process.Signal(sig); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("stop %s: %w", filepath.Base(d.cmd.Path), err)
	}
	timer := time.NewTimer(limit)
	defer timer.Stop()
	select {
	case <-d.done:
		return nil
	case <-timer.C:
	}
	_ = d.cmd.Process.Kill() // it may have ended just now
	<-d.done
	return fmt.Errorf("%s did not stop within %s and was killed", filepath.Base(d.cmd.Path), limit)
}

// tail is the end of its log.
func (d *daemon) tail(n int) string {
	b, err := os.ReadFile(d.log)
	if err != nil {
		return err.Error()
	}
	return last(string(b), n)
}

func last(text string, n int) string {
	lines := strings.Split(strings.TrimRight(text, "\n"), "\n")
	return strings.Join(lines[max(0, len(lines)-n):], "\n")
}
