package sandbox

import (
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"os"
	"runtime"
	"slices"
	"strings"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"

	"github.com/pgbough/pgbough"
	"github.com/pgbough/pgbough/internal/postgres"
)

// Spread is how many uids sandboxes have: those that follow the one that all
// files belong to. So many can run at a time.
const Spread = 500

// nobody and the number above it, which is -1 in 16 bits, are no uids to give away.
const nobody = 65534

// identity is who a sandbox is to the rest of the machine. On disk everything
// belongs to the Launcher's credential, as which nothing runs. The sandbox runs as
// a uid and gid of its own; inside its user namespace, and on mounts that map
// one to the other, it looks as if it ran as the credential. So no file ever
// changes its owner, and a way out of the namespaces is no way to the files or
// processes of another sandbox.
type identity struct {
	uid    int
	userns *os.File // the Launcher's
	mounts []mapped
	free   func()
}

// mapped is a copy of the mount of a directory that shows what belongs to the
// Launcher's credential as belonging to a sandbox. It is nowhere in the file
// system yet.
type mapped struct {
	dir  string
	tree *os.File
}

// newIdentity makes an identity for the sandbox of volume id, with mounts of
// dirs. It is nil where all sandboxes are the same user. The caller closes it
// when the sandbox runs as it.
func (l *Launcher) newIdentity(ctx context.Context, id string, dirs ...string) (*identity, error) {
	if l.shared != nil {
		return nil, nil
	}
	uid, err := l.takeUID(id)
	if err != nil {
		return nil, err
	}
	who := &identity{uid: uid, free: func() { l.leaveUID(uid) }}
	if who.userns, err = l.usernsOf(ctx, uid); err != nil {
		who.close()
		return nil, err
	}
	for _, dir := range dirs {
		tree, err := mapOwner(dir, who.userns)
		if err != nil {
			who.close()
			return nil, err
		}
		who.mounts = append(who.mounts, mapped{dir, tree})
	}
	return who, nil
}

// close gives back what a sandbox that runs needs no more. It may be nil.
func (who *identity) close() {
	if who == nil {
		return
	}
	for _, m := range who.mounts {
		_ = m.tree.Close() // what is attached stays
	}
	who.free()
}

// takeUID chooses a uid that no process of the machine has. It looks first at
// one that follows from the volume's id: a volume mostly gets the uid that it
// had, and servers that start sandboxes in the same instant hardly ever choose
// the same one. leaveUID says that the sandbox runs as it, or never will.
func (l *Launcher) takeUID(id string) (int, error) {
	h := fnv.New32a()
	_, _ = h.Write([]byte(id)) // cannot fail
	first := int(h.Sum32() % Spread)
	l.mu.Lock()
	defer l.mu.Unlock()
	for i := range Spread {
		uid := l.cred.UID + 1 + (first+i)%Spread
		if l.taken[uid] {
			continue
		}
		// The kernel looks through all processes for one with this real uid.
		_, err := unix.Getpriority(unix.PRIO_USER, uid)
		if errors.Is(err, unix.ESRCH) {
			l.taken[uid] = true
			return uid, nil
		}
		if err != nil {
			return 0, fmt.Errorf("look for processes of uid %d: %w", uid, err)
		}
	}
	return 0, pgbough.Errorf(pgbough.EConflict, "all %d uids of sandboxes are in use", Spread).WithHint("suspend or delete branches")
}

// usernsOf is the user namespace of sandboxes that run as uid, which the caller
// has taken. They are kept: making one takes as long as a tenth of a sandbox.
func (l *Launcher) usernsOf(ctx context.Context, uid int) (*os.File, error) {
	l.mu.Lock()
	f := l.users[uid]
	l.mu.Unlock()
	if f != nil {
		return f, nil
	}
	f, err := newUserNamespace(ctx, l.cred, postgres.Credential{UID: uid, GID: l.cred.GID + uid - l.cred.UID})
	if err != nil {
		return nil, err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return nil, errors.Join(errClosed, f.Close())
	}
	l.users[uid] = f
	return f, nil
}

func (l *Launcher) leaveUID(uid int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.taken, uid)
}

// ours tells whether a process runs as a user of sandboxes.
func (l *Launcher) ours(s status) bool {
	uid := s.uid()
	return l.cred.UID <= uid && uid <= l.cred.UID+Spread
}

// mapOwner makes a copy of the mount of dir that maps owners as userns does.
func mapOwner(dir string, userns *os.File) (*os.File, error) {
	fd, err := unix.OpenTree(unix.AT_FDCWD, dir, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_SYMLINK_NOFOLLOW)
	if err != nil {
		return nil, fmt.Errorf("copy the mount of %s: %w", dir, err)
	}
	tree := os.NewFile(uintptr(fd), dir)
	err = unix.MountSetattr(fd, "", unix.AT_EMPTY_PATH, &unix.MountAttr{Attr_set: unix.MOUNT_ATTR_IDMAP, Userns_fd: uint64(userns.Fd())})
	if err != nil {
		return nil, errors.Join(fmt.Errorf("map the owners of files in %s: %w", dir, err), tree.Close())
	}
	return tree, nil
}

// tryIdentities finds out whether sandboxes can be different users, on the file
// systems of dirs.
func (l *Launcher) tryIdentities(ctx context.Context, dirs []string) error {
	who, err := l.newIdentity(ctx, "probe", dirs...)
	if err != nil {
		return err
	}
	defer who.close()
	return l.probe(ctx, nil, who)
}

// start starts bwrap. Mapped directories are attached over those that they are
// copies of, where only it sees them: in a mount namespace that ends with it and
// the sandbox, however they end. Of all other mounts it keeps only what bwrap needs:
// one that it held could not be given up outside before the sandbox has ended.
func (r *run) start() error {
	if len(r.mounts) == 0 {
		return r.cmd.Start()
	}
	return onOwnThread(func() error {
		if err := unix.Unshare(unix.CLONE_FS | unix.CLONE_NEWNS); err != nil {
			return fmt.Errorf("make a mount namespace: %w", err)
		}
		if err := unix.Mount("", "/", "", unix.MS_SLAVE|unix.MS_REC, ""); err != nil {
			return fmt.Errorf("cut a mount namespace off: %w", err)
		}
		if err := detachUnneeded(r.cmd.Args); err != nil {
			return err
		}
		for _, m := range r.mounts {
			if err := unix.MoveMount(int(m.tree.Fd()), "", unix.AT_FDCWD, m.dir, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
				return fmt.Errorf("attach %s: %w", m.dir, err)
			}
		}
		return r.cmd.Start()
	})
}

// detachUnneeded detaches, in the mount namespace of this thread, every mount that
// neither contains nor is below what bwrap binds. Where mounts are shared with a
// slave, unmounting outside would do; in a container they mostly are private.
//
// What is mounted below such a mount goes with it: walking into one whose server
// does not answer, of NFS or FUSE, would never end.
func detachUnneeded(bwrap []string) error {
	needed := []string{"/proc", "/sys", "/dev"} // the kernel's own, which cgroups and bwrap use
	for i, arg := range bwrap[:len(bwrap)-1] {
		if arg == "--bind" || arg == "--ro-bind" || arg == "--ro-bind-try" {
			needed = append(needed, bwrap[i+1])
		}
	}
	f, err := os.Open("/proc/thread-self/mountinfo")
	if err != nil {
		return fmt.Errorf("look at mounts: %w", err)
	}
	mounts, err := mountinfo.GetMountsFromReader(f, func(m *mountinfo.Info) (skip, stop bool) {
		return slices.ContainsFunc(needed, func(path string) bool { return within(path, m.Mountpoint) || within(m.Mountpoint, path) }), false
	})
	if err := errors.Join(err, f.Close()); err != nil {
		return fmt.Errorf("look at mounts: %w", err)
	}
	byID := make(map[int]*mountinfo.Info, len(mounts))
	for _, m := range mounts {
		byID[m.ID] = m
	}
	for _, m := range slices.Backward(mounts) { // the last ones are on top
		on := byID[m.Parent]
		for on != nil && on.Mountpoint == m.Mountpoint {
			on = byID[on.Parent]
		}
		if on != nil {
			continue
		}
		err := unix.Unmount(m.Mountpoint, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
		if err != nil && !gone(err) && !errors.Is(err, unix.EINVAL) { // it went with one that it was on
			return fmt.Errorf("detach the mount of %s: %w", m.Mountpoint, err)
		}
	}
	return nil
}

// within tells whether a path is dir, or below it.
func within(path, dir string) bool {
	return path == dir || strings.HasPrefix(path, strings.TrimSuffix(dir, "/")+"/")
}

// onOwnThread runs f on a thread that ends afterwards, with whatever namespaces
// f has put it into. That is not the first thread: it lives as long as the process,
// whose /proc/self is about it.
func onOwnThread(f func() error) error {
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // for good: this is what ends the thread
		if unix.Gettid() != unix.Getpid() {
			done <- f()
			return
		}
		err := onOwnThread(f)
		runtime.UnlockOSThread()
		done <- err
	}()
	return <-done
}

// mappable are the directories of a Spec in which owners matter.
func mappable(spec postgres.Spec) []string {
	dirs := []string{spec.DataDir, spec.Socket}
	if spec.Relay != "" {
		dirs = append(dirs, spec.Relay)
	}
	return dirs
}

// checkCredential refuses users that sandboxes cannot be.
func checkCredential(c postgres.Credential) error {
	for _, id := range []int{c.UID, c.GID} {
		if id <= 0 || id <= nobody+1 && nobody <= id+Spread {
			return pgbough.Errorf(pgbough.EInvalid, "Postgres cannot run as uid %d, gid %d, or the %d after them", c.UID, c.GID, Spread).
				WithHint("give an unprivileged --uid, such as 64420, that is followed by unused ones, not root, and not just below %d", nobody)
		}
	}
	return nil
}
