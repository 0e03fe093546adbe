package front

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/pgbough/pgbough/internal/link"
)

// self is this very binary, also when another lies in its place by now.
const self = "/proc/self/exe"

// What a front inherits, besides the usual three.
const (
	fdLink = 3 + iota
	fdAPI
	fdProxy
)

// environment is what a front gets of ours.
var environment = []string{"TZ", "GOMAXPROCS", "GODEBUG", "GORACE", "GOTRACEBACK"}

// User is who a front is.
type User struct{ UID, GID int }

// child is a front that was started.
type child struct {
	link    *link.Link
	caller  *link.Caller
	process *os.Process
	began   time.Time
	begun   chan struct{} // closed when it has asked how to begin
	begins  func()        // closes begun
	gone    chan struct{} // closed when it has ended, and with it all of its connections
	err     error         // why; to be read when gone is closed
}

// spawn starts a front. It may end at any time.
func (h *Host) spawn(ctx context.Context) (*child, error) {
	ours, theirs, err := link.New()
	if err != nil {
		return nil, err
	}
	files := []*os.File{theirs}
	defer func() {
		for _, f := range files {
			_ = f.Close() // duplicates
		}
	}()
	for _, l := range []interface{ File() (*os.File, error) }{h.o.APIListener, h.o.ProxyListener} {
		f, err := l.File()
		if err != nil {
			return nil, errors.Join(fmt.Errorf("hand on a port: %w", err), ours.Close())
		}
		files = append(files, f)
	}
	c := &child{
		link: ours, caller: link.NewCaller(ours), began: time.Now(),
		begun: make(chan struct{}), gone: make(chan struct{}),
	}
	c.begins = sync.OnceFunc(func() { close(c.begun) })
	if err := h.launch(context.WithoutCancel(ctx), c, files); err != nil {
		return nil, err
	}
	return c, nil
}

// launch starts the process, and watches over it until it has ended.
func (h *Host) launch(ctx context.Context, c *child, files []*os.File) error {
	cmd := exec.Command(self, append(h.o.Command, strconv.Itoa(h.o.User.UID), strconv.Itoa(h.o.User.GID))...)
	cmd.Args[0] = "pgbough"
	cmd.Env = []string{}
	for _, name := range environment {
		if v, ok := os.LookupEnv(name); ok {
			cmd.Env = append(cmd.Env, name+"="+v)
		}
	}
	cmd.Stderr = struct{ io.Writer }{h.o.Stderr} // through a pipe: the file itself is not for it
	cmd.ExtraFiles = files
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Setsid:     true, // what is typed at a terminal is for the engine
		Cloneflags: unix.CLONE_NEWNS | unix.CLONE_NEWNET | unix.CLONE_NEWPID | unix.CLONE_NEWIPC | unix.CLONE_NEWUTS,
	}
	ctx, cancel := context.WithCancel(ctx)
	started := make(chan error)
	// The kernel ends a front with the thread that has started it.
	h.serve.Go(func() {
		onOwnThread(func() {
			err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
			if err == nil {
				err = cmd.Start()
			}
			if started <- err; err != nil {
				return
			}
			c.err = ended(cmd.Wait())
		})
		cancel()
		h.lost(c)
		c.caller.Close()
		_ = c.link.Close() // its other end is gone
		close(c.gone)
	})
	if err := <-started; err != nil {
		return err
	}
	c.process = cmd.Process
	h.serve.Go(func() { h.attend(ctx, c) })
	return nil
}

func ended(err error) error {
	if err == nil {
		return errors.New("it was stopped")
	}
	return err
}

// onOwnThread runs f on a thread that ends with it, and with whatever f did to the
// thread. That is not the first one, which lives as long as the process.
func onOwnThread(f func()) {
	runtime.LockOSThread() // for good, below: this is what ends the thread
	if unix.Gettid() != unix.Getpid() {
		f()
		return
	}
	var other sync.WaitGroup
	other.Go(func() { onOwnThread(f) })
	other.Wait()
	runtime.UnlockOSThread()
}

func (c *child) ended() bool {
	select {
	case <-c.gone:
		return true
	default:
		return false
	}
}

// kill ends it and waits for that.
func (c *child) kill() {
	_ = c.process.Kill() // it may have ended
	<-c.gone
}
