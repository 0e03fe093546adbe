// Package sandbox runs Postgres cut off from its machine, with bubblewrap.
//
// A sandbox is one PID namespace with everything that runs in it: its init,
// the postmaster, and their descendants. The init is pid 1, a shell that
// starts the postmaster as pid 2, waits for it and ends; when pid 1 ends, the
// kernel ends the rest, so nothing outlives the postmaster. (The postmaster is
// not pid 1 itself: it would become the parent of every orphan, and
// postmaster.c takes an unknown child that ends with a signal, or a status other
// than 0 or 1, for a crashed backend and ends every session.)
//
// It runs in a cgroup of its own, if the machine has cgroups, with a limit of
// memory, CPUs and processes.
//
// What is inside:
//
//   - Own network (only a loopback of its own), PID, IPC, UTS, cgroup and mount
//     namespaces. They belong to the host's user namespace; the processes live
//     in another one, in which only their own uid exists, which owns no other
//     namespace and may have no children. So even every capability in it would
//     be good for nothing. Machines without user namespaces go without it.
//   - One unprivileged uid and gid, which no other sandbox has (see identity), no
//     supplementary groups, no capability in any set, no new privileges.
//   - A seccomp filter (see filter) against new namespaces, kernel keyrings, and
//     kinds of sockets that a network namespace does not confine, such as vsock.
//   - A read-only root made of /usr, what the loader, the time zone and text search
//     need, and generated files for user names; an empty /tmp and /dev/shm; the
//     volume, its configuration, its socket directory, and the relay's directory.
//     Nothing else of the host: no /run, /tmp, /home, /var or /sys.
//
// A sandbox belongs to no process of ours. It goes on when the server dies,
// and a later server finds it by its uid, one of ours, and by a file in its root
// that says which volume it runs on, and that no process inside can change. It holds the volume's lock
// file with flock(2) through an inherited descriptor as long as any process of
// it lives. A start that the server did not live to see finished undoes itself.
package sandbox

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/pgbough/pgbough"
	"github.com/pgbough/pgbough/internal/postgres"
)

// Where the directories of a Spec are inside.
const (
	insideData   = "/pgdata"
	insideEtc    = "/etc/pgbough"
	insideSocket = "/run/pgbough/socket"
	insideRelay  = "/run/pgbough/relay"
)

// Options of a Launcher.
type Options struct {
	Credential postgres.Credential // what all files belong to; the Spread uids and gids after it are the sandboxes'
	Dirs       []string            // on each file system that the directories of a Spec are on
	Log        *slog.Logger
}

// Launcher starts and finds sandboxes. It is a postgres.Launcher.
type Launcher struct {
	cred    postgres.Credential
	log     *slog.Logger
	bwrap   string
	setpriv string
	filter  []byte
	userns  *os.File // nil where there are no user namespaces
	groups  *groups  // nil where there are no cgroups
	noLimit error    // why
	shared  error    // why all sandboxes are one user, if they are

	watch    sync.WaitGroup
	mu       sync.Mutex
	closed   bool
	taken    map[int]bool     // uids of sandboxes that are being started
	users    map[int]*os.File // their user namespaces, by uid
	starting map[string]bool
	running  map[string]*process
}

var _ postgres.Launcher = (*Launcher)(nil)

// probeTimeout bounds the trial run of New; it takes 20 ms on an idle machine.
const probeTimeout = 20 * time.Second

// New makes a Launcher and tries it out: it fails where sandboxes cannot work.
// It marks every file that this process inherited as not to be inherited
// further, so that none of them gets into a sandbox. Close frees what it holds.
func New(o Options) (*Launcher, error) {
	if os.Geteuid() != 0 {
		return nil, pgbough.Errorf(pgbough.EDenied, "only root can start Postgres in a sandbox").WithHint("run the server as root; Postgres itself runs as uid %d", o.Credential.UID)
	}
	if err := checkCredential(o.Credential); err != nil {
		return nil, err
	}
	l := &Launcher{cred: o.Credential, log: o.Log, taken: map[int]bool{}, users: map[int]*os.File{}, starting: map[string]bool{}, running: map[string]*process{}}
	var err error
	if l.bwrap, err = program("bwrap", "bubblewrap"); err != nil {
		return nil, err
	}
	if l.setpriv, err = program("setpriv", "util-linux"); err != nil {
		return nil, err
	}
	if l.filter, err = filter(); err != nil {
		return nil, err
	}
	if err := unix.CloseRange(fdLock, math.MaxUint32, unix.CLOSE_RANGE_CLOEXEC); err != nil {
		l.log.Warn("files that the server inherited may be seen in sandboxes", "err", err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), probeTimeout)
	defer cancel()
	if l.userns, err = newUserNamespace(ctx, l.cred, l.cred); err == nil {
		if err = l.probe(ctx, nil, nil); err == nil {
			l.openGroups(ctx)
			l.openIdentities(ctx, o.Dirs)
			return l, nil
		}
		_ = l.userns.Close() // only read
		l.userns = nil
	}
	l.shared = err
	l.log.Warn("sandboxes go without a user namespace of their own", "err", err)
	if err := l.probe(ctx, nil, nil); err != nil {
		return nil, pgbough.Errorf(pgbough.EInternal, "bubblewrap does not work on this machine: %w", err).
			WithHint("the server must be root with CAP_SYS_ADMIN, not in an unprivileged container")
	}
	l.openGroups(ctx)
	return l, nil
}

// openGroups tries cgroups out. Without them sandboxes have no limits.
func (l *Launcher) openGroups(ctx context.Context) {
	l.groups, l.noLimit = l.tryGroups(ctx)
	if l.noLimit != nil {
		l.log.WarnContext(ctx, "the memory, CPU and processes of sandboxes are not limited", "err", l.noLimit)
	}
}

func (l *Launcher) tryGroups(ctx context.Context) (*groups, error) {
	gs, err := findGroups()
	if err != nil {
		return nil, err
	}
	g, err := gs.make("probe", postgres.Limits{Memory: 64 << 20, CPUs: 1, Processes: 64, Favoured: true})
	if err != nil {
		return nil, err
	}
	err = l.probe(ctx, g, nil)
	if err = errors.Join(err, g.Destroy()); err != nil {
		return nil, err
	}
	if err := errors.Join(gs.favour(), gs.sweep()); err != nil {
		l.log.WarnContext(ctx, "cgroups of earlier sandboxes, or their weights, are not as they should be", "err", err)
	}
	return gs, nil
}

// openIdentities tries out whether each sandbox can be a user of its own.
func (l *Launcher) openIdentities(ctx context.Context, dirs []string) {
	if l.shared = l.tryIdentities(ctx, dirs); l.shared != nil {
		l.log.WarnContext(ctx, "all sandboxes run as one user", "err", l.shared)
	}
}

// Shared tells why all sandboxes run as one user; nil when each has its own.
func (l *Launcher) Shared() error { return l.shared }

// Unlimited tells why the sandboxes have no limits; nil when they have.
func (l *Launcher) Unlimited() error { return l.noLimit }

// Close stops watching the running sandboxes, and leaves them running. The
// Done channel of a process closes no more. Calling it again does nothing.
func (l *Launcher) Close() error {
	l.mu.Lock()
	if l.closed {
		l.mu.Unlock()
		return nil
	}
	l.closed = true
	for _, p := range l.running {
		p.unwatch()
	}
	l.mu.Unlock()
	l.watch.Wait()
	for _, f := range l.users {
		_ = f.Close() // a namespace: nothing to lose
	}
	if l.userns == nil {
		return nil
	}
	return l.userns.Close()
}

// Inside tells the paths that Args and configuration files must use.
func (l *Launcher) Inside(s postgres.Spec) postgres.Inside {
	in := postgres.Inside{DataDir: insideData, EtcDir: insideEtc, Socket: insideSocket}
	if s.Relay != "" {
		in.Relay = insideRelay
	}
	return in
}

// probe runs the shell of an empty sandbox, in a cgroup and as somebody if they
// are given.
func (l *Launcher) probe(ctx context.Context, g *group, who *identity) error {
	var errs strings.Builder
	r, err := l.command(ctx, g, root{id: "probe", who: who}, []string{"/bin/sh", "-c", ":"}, nil, &errs)
	if err != nil {
		return err
	}
	defer r.close()
	err = r.start()
	if err == nil {
		err = r.cmd.Wait()
	}
	if err != nil {
		return fmt.Errorf("try out a sandbox: %w: %s", err, strings.TrimSpace(errs.String()))
	}
	return nil
}

// run is a bwrap command with the files that it inherits.
type run struct {
	cmd    *exec.Cmd
	files  []*os.File
	mounts []mapped
}

func (r *run) close() {
	for _, f := range r.files {
		_ = f.Close() // pipes and duplicates: nothing to lose
	}
}

// Descriptors that the inside sees until the init script has closed them. A
// shell can only name single digits.
const (
	fdLock   = 3 // stays open for the whole life of the sandbox
	fdHello  = 4
	fdUserns = 5
	fdFirst  = 6 // of those that only bwrap reads
)

// command is bwrap around argv as the unprivileged user. extra become the
// descriptors from fdLock on. With g all of it runs in that cgroup. The caller
// closes the result.
func (l *Launcher) command(ctx context.Context, g *group, r root, argv []string, extra []*os.File, stderr io.Writer) (*run, error) {
	out := &run{}
	files := append([]*os.File{}, extra...)
	for len(files) < fdUserns-fdLock {
		files = append(files, nil)
	}
	userns := l.userns
	if r.who != nil {
		userns, out.mounts = r.who.userns, r.who.mounts
	}
	files = append(files, userns)
	pass := func(content []byte) (int, error) {
		f, err := content2pipe(content)
		if err != nil {
			return 0, err
		}
		files = append(files, f)
		out.files = append(out.files, f)
		return fdLock + len(files) - 1, nil
	}
	args, err := r.args(l.cred, pass)
	if err != nil {
		out.close()
		return nil, err
	}
	fd, err := pass(l.filter)
	if err != nil {
		out.close()
		return nil, err
	}
	args = append(args, "--seccomp", fmt.Sprint(fd))
	if userns != nil {
		args = append(args, "--userns2", fmt.Sprint(fdUserns))
	}
	id := func(n int) string { return fmt.Sprint(n) }
	args = append(args,
		// What setpriv needs to become the user and then give up the rest.
		"--cap-drop", "ALL", "--cap-add", "CAP_SETUID", "--cap-add", "CAP_SETGID", "--cap-add", "CAP_SETPCAP",
		"--", l.setpriv, "--reuid", id(l.cred.UID), "--regid", id(l.cred.GID), "--clear-groups",
		"--bounding-set=-all", "--inh-caps=-all", "--ambient-caps=-all", "--no-new-privs", "--")
	whole := append(append([]string{l.bwrap}, args...), argv...)
	if g != nil {
		whole = g.enter(whole)
	}
	out.cmd = exec.CommandContext(ctx, whole[0], whole[1:]...)
	out.cmd.Dir = "/"
	out.cmd.Env = []string{}
	out.cmd.Stderr = stderr
	out.cmd.ExtraFiles = files
	// A session of its own: a Ctrl-C in the server's terminal is not for it.
	out.cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	return out, nil
}

// content2pipe is a pipe that holds content and then ends. Pipes take 64 kB
// before a write blocks (pipe(7)).
func content2pipe(content []byte) (*os.File, error) {
	r, w, err := os.Pipe()
	if err != nil {
		return nil, fmt.Errorf("make a pipe: %w", err)
	}
	_, err = w.Write(content)
	if cerr := w.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		_ = r.Close()
		return nil, fmt.Errorf("fill a pipe: %w", err)
	}
	return r, nil
}

func program(name, pkg string) (string, error) {
	path, err := exec.LookPath(name)
	if err != nil {
		return "", pgbough.Errorf(pgbough.EConflict, "the program %s is not installed; Postgres runs in a sandbox made with it: %w", name, err).
			WithHint("install it (Debian, Ubuntu: apt-get install %s)", pkg)
	}
	return path, nil
}
