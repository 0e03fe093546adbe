// Package postgres is one Postgres: its binaries on this machine, its settings,
// and its life as a process that a Launcher starts in a sandbox.
package postgres

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgproto3"
	"golang.org/x/sys/unix"

	"github.com/pgbough/pgbough"
)

// Port is part of the name of every unix socket; no Postgres of ours listens
// on the network.
const Port = 5432

// maxSocketPath is sizeof(sockaddr_un.sun_path) - 1 on Linux.
const maxSocketPath = 107

// maxMessage is how long a message of a Postgres may be, which its user could
// have replaced: it comes into our memory whole. What we ask has short answers.
const maxMessage = 16 << 20

// Config is one Postgres on one volume.
type Config struct {
	ID         string // the volume's id
	Install    Installation
	DataDir    string // PGDATA on the host
	LockFile   string
	RunDir     string // ours: etc, socket, relay and log are made below it
	Superuser  string // the bootstrap superuser (oid 10), whatever its name is
	Credential Credential
	// Settings is the text of postgresql.conf, without what Start itself must fix (paths, listeners).
	Settings string
	// Standby shows the relay directory to it.
	Standby bool
	Limits  Limits
}

// SocketDir is where its unix socket is.
func (c Config) SocketDir() string { return filepath.Join(c.RunDir, "socket") }

// RelayDir is where the relay that it streams from listens.
func (c Config) RelayDir() string { return filepath.Join(c.RunDir, "relay") }

// LogFile is its log.
func (c Config) LogFile() string { return filepath.Join(c.RunDir, "log", "postgres.log") }

// Server is a running Postgres.
type Server struct {
	proc  Process
	log   *slog.Logger
	ready atomic.Bool // it has answered

	mu  sync.Mutex // guards the file of its settings
	cfg Config
}

// CheckRunDir tells whether socket paths below dir are short enough.
func CheckRunDir(dir string) error {
	path := filepath.Join(dir, pgbough.NewVolumeID(), "socket", fmt.Sprintf(".s.PGSQL.%d", Port))
	if len(path) > maxSocketPath {
		return pgbough.Errorf(pgbough.EInvalid, "the data directory's path is too long: the unix socket %s would have %d bytes, and the system allows %d", path, len(path), maxSocketPath).
			WithHint("choose a data directory at least %d bytes shorter", len(path)-maxSocketPath)
	}
	return nil
}

// Start starts a Postgres and returns as soon as its process exists; WaitReady
// waits until it answers. A second start of the same volume fails with ErrLocked.
func Start(ctx context.Context, l Launcher, cfg Config, log *slog.Logger) (*Server, error) {
	spec := cfg.spec()
	spec.Prepare = cfg.prepare
	in := l.Inside(spec)
	// What can never change for the life of this postmaster, so that no file in
	// PGDATA can say otherwise (postgresql.auto.conf beats config_file, not -c).
	spec.Args = []string{
		"-D", in.DataDir,
		"-c", "config_file=" + in.EtcDir + "/postgresql.conf",
		"-c", "hba_file=" + in.EtcDir + "/pg_hba.conf",
		"-c", "ident_file=" + in.EtcDir + "/pg_ident.conf",
		"-c", "unix_socket_directories=" + in.Socket,
		"-c", fmt.Sprintf("port=%d", Port),
		"-c", "listen_addresses=",
		"-c", "cluster_name=pgbough/" + cfg.ID,
	}
	proc, err := l.Start(ctx, spec)
	if err != nil {
		return nil, fmt.Errorf("start postgres on volume %s: %w", cfg.ID, err)
	}
	return &Server{cfg: cfg, proc: proc, log: log}, nil
}

// Adopt takes over the Postgres that an earlier run of the server left running
// on this volume, if there is one.
func Adopt(ctx context.Context, l Launcher, cfg Config, log *slog.Logger) (*Server, bool, error) {
	proc, ok, err := l.Find(ctx, cfg.ID)
	if err != nil || !ok {
		return nil, false, err
	}
	// What a start writes first: without it somebody has removed the run
	// directory, and nobody can reach this Postgres any more.
	if _, err := os.Lstat(filepath.Join(cfg.RunDir, "etc", "postgresql.conf")); errors.Is(err, os.ErrNotExist) {
		log.WarnContext(ctx, "a running Postgres has lost its run directory; it is started anew", "volume", cfg.ID)
		return nil, false, proc.Kill(ctx)
	}
	return &Server{cfg: cfg, proc: proc, log: log}, true, nil
}

func (c Config) spec() Spec {
	s := Spec{
		ID: c.ID, BinDir: c.Install.BinDir, DataDir: c.DataDir, EtcDir: filepath.Join(c.RunDir, "etc"),
		Socket: c.SocketDir(), LogFile: c.LogFile(), LockFile: c.LockFile,
		Env:    []string{"LC_ALL=C.UTF-8", "TZ=UTC", "PGDATA=", "PATH=/usr/bin:/bin"},
		Limits: c.Limits,
	}
	if c.Standby {
		s.Relay = c.RelayDir()
	}
	return s
}

// prepare makes the run directory: nothing of an earlier postmaster stays in
// its socket directory, and its configuration is written anew. The caller holds
// the volume's lock, so nothing that runs loses its socket.
func (c Config) prepare() error {
	etc := filepath.Join(c.RunDir, "etc")
	for _, dir := range []string{c.RunDir, etc, filepath.Dir(c.LogFile()), c.RelayDir()} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return err
		}
	}
	// The socket's directory may belong to a hostile branch superuser: it is
	// made new, not cleaned.
	if err := os.RemoveAll(c.SocketDir()); err != nil {
		return err
	}
	if err := os.Mkdir(c.SocketDir(), 0o700); err != nil {
		return err
	}
	if err := c.Credential.Chown(c.SocketDir()); err != nil {
		return err
	}
	if err := forgetPostmaster(c.DataDir); err != nil {
		return err
	}
	files := map[string]string{
		"postgresql.conf": c.Settings,
		// Who may connect is decided by who can reach the socket.
		"pg_hba.conf":   "local all all trust\nlocal replication all trust\n",
		"pg_ident.conf": "",
	}
	for name, text := range files {
		if err := replaceFile(filepath.Join(etc, name), text); err != nil {
			return err
		}
	}
	return nil
}

func replaceFile(path, text string) error {
	tmp := path + ".new"
	if err := os.WriteFile(tmp, []byte(text), 0o644); err != nil {
		return err
	}
	return os.Rename(tmp, path)
}

// Config is what it was started with.
func (s *Server) Config() Config { return s.cfg }

// Process is its sandbox.
func (s *Server) Process() Process { return s.proc }

// Done is closed when its last process has ended.
func (s *Server) Done() <-chan struct{} { return s.proc.Done() }

// WaitReady waits until it answers on its socket; for a standby that is when
// it is consistent. It fails when the process ends. One that has answered is
// not asked again.
func (s *Server) WaitReady(ctx context.Context) error {
	if s.ready.Load() {
		select {
		case <-s.Done():
			return s.ended()
		default:
			return nil
		}
	}
	timer := time.NewTimer(0)
	defer timer.Stop()
	said := ""
	for {
		select {
		case <-ctx.Done():
			return fmt.Errorf("wait until postgres answers: %w", context.Cause(ctx))
		case <-s.Done():
			return s.ended()
		case <-timer.C:
		}
		conn, err := s.Connect(ctx, "template1")
		if err == nil {
			err = errors.Join(s.lockSocketDir(), conn.Close(ctx))
			s.ready.Store(err == nil)
			return err
		}
		if err.Error() != said {
			said = err.Error()
			s.log.DebugContext(ctx, "postgres does not answer yet", "volume", s.cfg.ID, "err", err)
		}
		timer.Reset(4 * time.Millisecond)
	}
}

// lockSocketDir takes the directory from the branch's user, so that nothing can
// be put in the place of the socket that was seen to be its own.
func (s *Server) lockSocketDir() error {
	if err := os.Lchown(s.cfg.SocketDir(), os.Geteuid(), s.cfg.Credential.GID); err != nil {
		return err
	}
	return os.Chmod(s.cfg.SocketDir(), 0o710)
}

func (s *Server) ended() error {
	return pgbough.Errorf(pgbough.EInternal, "postgres on volume %s ended; its log says: %s", s.cfg.ID, LogTail(s.cfg.LogFile(), 3)).
		WithHint("the whole log is %s", s.cfg.LogFile())
}

// ConnConfig is how to connect to database as the bootstrap superuser over the
// private socket. The dial checks that a process of this very sandbox answers.
func (s *Server) ConnConfig(database string) (*pgx.ConnConfig, error) {
	cfg, err := pgx.ParseConfig("sslmode=disable connect_timeout=10")
	if err != nil {
		return nil, err
	}
	cfg.Host, cfg.Port = s.cfg.SocketDir(), Port
	cfg.User, cfg.Database, cfg.Password = s.cfg.Superuser, database, ""
	cfg.Fallbacks = nil
	cfg.RuntimeParams = map[string]string{"application_name": "pgbough", "search_path": "pg_catalog", "statement_timeout": "0"}
	cfg.BuildFrontend = func(r io.Reader, w io.Writer) *pgproto3.Frontend {
		f := pgproto3.NewFrontend(r, w)
		f.SetMaxBodyLen(maxMessage)
		return f
	}
	cfg.DialFunc = func(ctx context.Context, network, addr string) (net.Conn, error) { return s.dial(ctx, addr) }
	return cfg, nil
}

// Connect connects to database as the bootstrap superuser.
func (s *Server) Connect(ctx context.Context, database string) (*pgx.Conn, error) {
	cfg, err := s.ConnConfig(database)
	if err != nil {
		return nil, err
	}
	return pgx.ConnectConfig(ctx, cfg)
}

func (s *Server) dial(ctx context.Context, addr string) (net.Conn, error) {
	fi, err := os.Lstat(addr)
	if err != nil {
		return nil, err
	}
	if fi.Mode().Type() != os.ModeSocket {
		return nil, fmt.Errorf("%s is not a socket", addr)
	}
	var d net.Dialer
	conn, err := d.DialContext(ctx, "unix", addr)
	if err != nil {
		return nil, err
	}
	if err := s.checkPeer(conn.(*net.UnixConn)); err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	return conn, nil
}

// checkPeer refuses a listener that is not of this sandbox: SO_PEERCRED of a
// connected socket names the process that called listen(2).
func (s *Server) checkPeer(conn *net.UnixConn) error {
	raw, err := conn.SyscallConn()
	if err != nil {
		return err
	}
	var cred *unix.Ucred
	var credErr error
	err = raw.Control(func(fd uintptr) {
		cred, credErr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
	})
	if err = errors.Join(err, credErr); err != nil {
		return fmt.Errorf("read the socket's peer: %w", err)
	}
	if !s.proc.Owns(int(cred.Pid), int(cred.Uid)) {
		return fmt.Errorf("process %d of uid %d, which listens there, is not of this sandbox", cred.Pid, cred.Uid)
	}
	return nil
}

// Reload writes new settings and makes it read them (SIGHUP). Settings that
// need a restart keep their value.
func (s *Server) Reload(settings string) error {
	if err := s.Configure(settings); err != nil {
		return err
	}
	return s.Reread()
}

// Configure writes new settings for the next Reread. A start writes its own.
func (s *Server) Configure(settings string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := replaceFile(filepath.Join(s.cfg.RunDir, "etc", "postgresql.conf"), settings); err != nil {
		return fmt.Errorf("write settings: %w", err)
	}
	return nil
}

// Reread makes it read its settings (SIGHUP).
func (s *Server) Reread() error { return s.proc.Signal(syscall.SIGHUP) }

// Stop shuts it down cleanly (fast mode). A walsender whose peer is stuck can
// keep that from ending, so after the context's deadline it is killed: then
// its next start replays WAL. Stop reports whether the shutdown was clean.
func (s *Server) Stop(ctx context.Context) (clean bool, err error) {
	if err := s.proc.Thaw(); err != nil {
		return false, err
	}
	if err := s.proc.Signal(syscall.SIGINT); err != nil {
		return false, fmt.Errorf("stop postgres: %w", err)
	}
	select {
	case <-s.Done():
		return true, nil
	case <-ctx.Done():
	}
	s.log.WarnContext(ctx, "postgres does not stop; killing it", "volume", s.cfg.ID)
	return false, s.Kill(context.WithoutCancel(ctx))
}

// Kill ends it at once, as a crash would.
func (s *Server) Kill(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	return s.proc.Kill(ctx)
}

// LogTail is the last n lines of a log file, joined with " | ", or why it
// cannot be read. It reads at most the last 16 kB.
func LogTail(path string, n int) string { return LogTailAfter(path, 0, n) }

// LogTailAfter is LogTail of what was logged after the file had offset bytes. A
// file that is shorter has begun anew, and counts whole.
func LogTailAfter(path string, offset int64, n int) string {
	f, err := os.Open(path)
	if err != nil {
		return err.Error()
	}
	defer func() { _ = f.Close() }()
	const window = 16 << 10
	size, err := f.Seek(0, io.SeekEnd)
	if err != nil {
		return err.Error()
	}
	if offset > size {
		offset = 0
	}
	if _, err := f.Seek(max(offset, size-window), io.SeekStart); err != nil {
		return err.Error()
	}
	b, err := io.ReadAll(io.LimitReader(f, window))
	if err != nil {
		return err.Error()
	}
	lines := strings.Split(strings.TrimRight(string(b), "\n"), "\n")
	return strings.Join(lines[max(0, len(lines)-n):], " | ")
}
