//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/pgbough/pgbough"
	"github.com/pgbough/pgbough/internal/branch"
	"github.com/pgbough/pgbough/internal/catalog"
	"github.com/pgbough/pgbough/internal/credential"
	"github.com/pgbough/pgbough/internal/front"
	"github.com/pgbough/pgbough/internal/httpapi"
	"github.com/pgbough/pgbough/internal/metrics"
	"github.com/pgbough/pgbough/internal/operation"
	"github.com/pgbough/pgbough/internal/postgres"
	"github.com/pgbough/pgbough/internal/sandbox"
	"github.com/pgbough/pgbough/internal/volume/storage"
)

const (
	defaultUID     = 64420 // of all files of Postgres, and the first of a range; needs no entry in passwd
	serverShutdown = 2 * time.Minute

	archiveReserve = 512 << 20 // what history leaves free of the data directory's disk, which the catalog needs

	leastMemory    = 256 << 20
	leastCPUs      = 0.1
	leastProcesses = 50
)

type serverCommand struct {
	data, api, pool       string
	poolSize, poolReserve string
	sparse, debug         bool
	uid                   int
	spares                spareRange
	sharedBuffers         string
	memory, disk          string
	cpus                  float64
	processes             int64
	suspendAfter          string
	maxAwake, maxBranches int
	endpoint              endpointFlags
}

// newServerCommand is `pgbough server`: all but what meets strangers, which is a
// process that it starts (newFrontCommand).
func newServerCommand() *cobra.Command {
	c := &serverCommand{}
	cmd := &cobra.Command{
		Use:   "server --data DIR",
		Short: "Run the server in the foreground",
		Long: `Runs the server in the foreground. It keeps everything below its data directory,
serves the API and, on one port for all branches, their clients, and prints "ready"
with both addresses on stdout when it does. It needs root, to mount the pool and to
start each Postgres in a sandbox as an unprivileged user. What clients say is read by
a process of its own, without rights: as user pgbough if there is one.

Both addresses are of this machine only. With --proxy 0.0.0.0:7432 other machines
reach branches too, and with --api 0.0.0.0:7420 the API, both with TLS; ca.crt in the
data directory is what they verify the server with. Clients of this machine need no
TLS wherever the server listens.

SIGTERM or SIGINT stops it and every Postgres that it runs, cleanly. A server that is
killed leaves them running; the next one takes them over.

A disk without a copy-on-write file system is no obstacle: the pool is then made in
an image file (--pool-size) that is taken from the disk at once, so that it cannot run
out below the branches.

Sizes are such as 500M or 20GB, in powers of 1024.`,
		Example: `  pgbough server --data /var/lib/pgbough --pool-size 200GB
  pgbough server --data /var/lib/pgbough --proxy 0.0.0.0:7432 --api 0.0.0.0:7420
  pgbough server --data /var/lib/pgbough --pool reflink:/srv/xfs/pgbough --spares 2..6`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return c.run(cmd.Context(), cmd) },
	}
	f := cmd.Flags()
	f.StringVar(&c.data, "data", envOr("PGBOUGH_DATA", "/var/lib/pgbough"), "data directory (PGBOUGH_DATA)")
	f.StringVar(&c.api, "api", envOr("PGBOUGH_LISTEN", "127.0.0.1:7420"), "address of the API (PGBOUGH_LISTEN)")
	f.StringVar(&c.pool, "pool", "auto", "auto, btrfs, reflink or copy, with :PATH for a directory that is on such a file system; or zfs:POOL/DATASET (experimental)")
	f.StringVar(&c.poolSize, "pool-size", "", "size of a new pool image, such as 50GB (default: half of what the disk has free)")
	f.StringVar(&c.poolReserve, "pool-reserve", "", "what branches may not use of the pool, so that the followers can go on (default: 5% of it)")
	f.BoolVar(&c.sparse, "pool-sparse", false, "do not take a new image's whole size from the disk at once")
	f.IntVar(&c.uid, "uid", defaultUID, fmt.Sprintf("user and group id that the files of each Postgres belong to; of the %d after it, each Postgres runs as one of its own, and the one after those speaks with clients, unless there is a user %s", sandbox.Spread, frontUser))
	c.spares = spareRange{1, 4}
	f.Var(&c.spares, "spares", "how many spares each project has ready: more while branches are made soon after one another; one number is always so many")
	f.StringVar(&c.sharedBuffers, "shared-buffers", "128MB", "shared_buffers of each Postgres")
	f.StringVar(&c.memory, "branch-memory", "2GB", "memory of each branch, shared_buffers and its part of the page cache included; empty for no limit")
	f.StringVar(&c.disk, "branch-disk", "", "how much a branch may hold of its own, such as 20GB; empty for no limit but the pool's")
	f.Float64Var(&c.cpus, "branch-cpus", 0, "how many CPUs a branch may use at most, such as 1.5; 0 for no limit")
	f.Int64Var(&c.processes, "branch-pids", 2000, "how many processes a branch may have; 0 for no limit")
	f.StringVar(&c.suspendAfter, "suspend-after", "5m", "stop the Postgres of a branch after so long without work, until somebody connects, where the branch was not told otherwise; 0 or never: not at all")
	f.IntVar(&c.maxBranches, "max-branches", 0, "how many branches there may be in all projects together; 0 for no limit")
	f.IntVar(&c.maxAwake, "max-awake", 0, "how many branches may be awake at a time (default: what half of the machine's memory is enough for)")
	c.endpoint.add(cmd)
	f.BoolVar(&c.debug, "debug", false, "log more")
	return cmd
}

func envOr(name, otherwise string) string {
	if v := os.Getenv(name); v != "" {
		return v
	}
	return otherwise
}

func (c *serverCommand) run(ctx context.Context, cmd *cobra.Command) error {
	if os.Geteuid() != 0 {
		return pgbough.Errorf(pgbough.EInvalid, "the server needs root: it mounts the pool and starts Postgres in sandboxes as another user").
			WithHint("run it with sudo, or from the systemd unit")
	}
	if c.maxBranches < 0 {
		return pgbough.Errorf(pgbough.EInvalid, "--max-branches %d is not a number of branches", c.maxBranches).WithHint("give 0 for no limit")
	}
	level := slog.LevelInfo
	if c.debug {
		level = slog.LevelDebug
	}
	log := slog.New(slog.NewTextHandler(cmd.ErrOrStderr(), &slog.HandlerOptions{Level: level}))
	// A stop that comes while the server still starts ends that start.
	ctx, stop := signal.NotifyContext(ctx, syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	s, err := c.open(ctx, cmd.ErrOrStderr(), log)
	if err != nil {
		return err
	}
	err = s.serve(ctx, cmd, log)
	return errors.Join(err, s.close(context.WithoutCancel(ctx), log))
}

// server is all that an open server holds, in the order in which it was opened.
type server struct {
	catalog  *catalog.Catalog
	storage  *storage.Storage
	poolLock *os.File
	launcher *sandbox.Launcher
	service  *branch.Service
	listener *net.TCPListener // of the API
	clients  *net.TCPListener // of the proxy
	front    *front.Host      // which has both listeners
}

func (c *serverCommand) open(ctx context.Context, stderr io.Writer, log *slog.Logger) (_ *server, err error) {
	s := &server{}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.close(context.WithoutCancel(ctx), log))
		}
	}()
	if err := c.endpoint.check(); err != nil {
		return nil, err
	}
	data, err := filepath.Abs(c.data)
	if err != nil {
		return nil, err
	}
	runDir := filepath.Join(data, "run")
	if err := postgres.CheckRunDir(runDir); err != nil {
		return nil, err
	}
	for _, dir := range []string{data, runDir} {
		if err := os.MkdirAll(dir, 0o711); err != nil {
			return nil, fmt.Errorf("make the data directory: %w", err)
		}
	}
	failpoint, err := operation.Failpoints(os.Getenv("PGBOUGH_FAILPOINT"))
	if err != nil {
		return nil, err
	}
	key, err := credential.EnsureKey(filepath.Join(data, "secret.key"))
	if err != nil {
		return nil, err
	}
	admin, err := credential.EnsureAPIKey(filepath.Join(data, "admin.key"))
	if err != nil {
		return nil, err
	}
	if s.catalog, err = catalog.Open(ctx, filepath.Join(data, "catalog.db"), key); err != nil {
		return nil, err
	}
	limits, err := c.limits()
	if err != nil {
		return nil, err
	}
	disk, err := parseSize(c.disk)
	if err != nil {
		return nil, err
	}
	size, err := parseSize(c.poolSize)
	if err != nil {
		return nil, err
	}
	reserve, err := parseSize(c.poolReserve)
	if err != nil {
		return nil, err
	}
	suspendAfter, maxAwake, err := c.sleep()
	if err != nil {
		return nil, err
	}
	poolID, err := s.catalog.PoolID(ctx)
	if err != nil {
		return nil, err
	}
	s.storage, err = storage.Open(ctx, storage.Config{
		DataDir: data, Want: c.pool, Size: size, Sparse: c.sparse, CatalogID: s.catalog.ID(), PoolID: poolID, Reserve: reserve,
		UID: c.uid, GID: c.uid, Log: log,
	})
	if err != nil {
		return nil, err
	}
	// From now on no other pool is taken for this one, and none is made in its place.
	if err := s.catalog.SetPoolID(ctx, s.storage.Pool.ID()); err != nil {
		return nil, err
	}
	if s.poolLock, err = lockPool(s.storage.Pool.Dir()); err != nil {
		return nil, err
	}
	cred := postgres.Credential{UID: c.uid, GID: c.uid}
	if s.launcher, err = sandbox.New(sandbox.Options{Credential: cred, Dirs: []string{s.storage.Pool.Dir(), runDir}, Log: log}); err != nil {
		return nil, err
	}
	// The ports are taken before anything is started: two servers do not get in each other's way.
	if s.listener, err = listenTCP(ctx, c.api); err != nil {
		return nil, pgbough.Errorf(pgbough.EConflict, "the API cannot listen on %s: %w", c.api, err).
			WithHint("another server may run; choose another address with --api")
	}
	if s.clients, err = c.endpoint.listen(ctx); err != nil {
		return nil, err
	}
	endpoint, err := c.endpoint.endpoint(s.clients)
	if err != nil {
		return nil, err
	}
	options, err := c.endpoint.options(data, key, log, s.listener, s.clients)
	if err != nil {
		return nil, err
	}
	who, err := frontUserBeside(c.uid)
	if err != nil {
		return nil, err
	}
	image := ""
	if s.storage.Image != nil {
		image = s.storage.Image.File
	}
	figures := metrics.New(version)
	s.service, err = branch.Open(ctx, branch.Options{
		Catalog: s.catalog, Pool: s.storage.Pool, Launcher: s.launcher, Credential: cred, RunDir: runDir,
		Archive: filepath.Join(data, "archive"), Reserve: archiveReserve,
		Memory: branch.Memory{SharedBuffers: c.sharedBuffers}, Limits: limits, Disk: disk, Notes: machineNotes(s.launcher), Spares: c.spares.least, MostSpares: c.spares.most, Image: image, Resize: s.storage.Resize, Version: version, Log: log,
		SuspendAfter: suspendAfter, MaxAwake: maxAwake, MaxBranches: c.maxBranches, Endpoint: endpoint, Failpoint: failpoint, Admin: admin, Observe: figures.Observe,
	})
	if err != nil {
		return s, err
	}
	options.Service, options.User, options.Debug, options.Stderr = s.service, who, c.debug, stderr
	options.Command = []string{frontName, data}
	options.API = httpapi.New(httpapi.Options{Service: s.service, Keys: s.service, Log: log, Metrics: figures.Handler(
		s.service, func() metrics.Clients { return metrics.Clients(s.front.Stats()) }, log)})
	s.front = front.New(options)
	s.service.SetClients(s.front)
	return s, nil
}

// limits are what each branch may use.
func (c *serverCommand) limits() (postgres.Limits, error) {
	memory, err := parseSize(c.memory)
	if err != nil {
		return postgres.Limits{}, err
	}
	if memory != 0 && memory < leastMemory || c.cpus < 0 || c.cpus != 0 && c.cpus < leastCPUs || c.processes < 0 || c.processes != 0 && c.processes < leastProcesses {
		return postgres.Limits{}, pgbough.Errorf(pgbough.EInvalid, "a Postgres does not work with %s of memory, %v CPUs and %d processes", c.memory, c.cpus, c.processes).
			WithHint("give each branch at least 256MB, 0.1 CPUs and 50 processes; an empty --branch-memory, and 0 for the others, is no limit")
	}
	return postgres.Limits{Memory: memory, CPUs: c.cpus, Processes: c.processes}, nil
}

// machineNotes tell what the machine cannot do.
func machineNotes(l *sandbox.Launcher) []string {
	var notes []string
	if err := l.Unlimited(); err != nil {
		notes = append(notes, "the memory, CPUs and processes of branches are not limited: "+err.Error())
	}
	if err := l.Shared(); err != nil {
		notes = append(notes, "all branches run as one operating system user, kept apart by namespaces alone: "+err.Error())
	}
	return notes
}

// apiURL is what PGBOUGH_API has to be to reach the API, as far as it is known here.
func apiURL(l net.Listener) string {
	host, port, err := net.SplitHostPort(l.Addr().String())
	if err != nil {
		return l.Addr().String()
	}
	if net.ParseIP(host).IsLoopback() {
		return "http://" + l.Addr().String()
	}
	return "https://" + net.JoinHostPort(named(host), port)
}

// serve serves clients until ctx ends.
func (s *server) serve(ctx context.Context, cmd *cobra.Command, log *slog.Logger) error {
	ready := func() {
		_, _ = fmt.Fprintf(cmd.OutOrStdout(), "ready api=%s proxy=%s\n", apiURL(s.listener), s.clients.Addr())
		log.InfoContext(ctx, "server ready", "api", s.listener.Addr().String(), "proxy", s.clients.Addr().String(), "version", version)
	}
	return s.front.Run(ctx, ready)
}

// close stops what was opened, the last first.
func (s *server) close(ctx context.Context, log *slog.Logger) error {
	ctx, cancel := context.WithTimeout(ctx, serverShutdown)
	defer cancel()
	var errs []error
	if s.service != nil {
		log.InfoContext(ctx, "stopping every Postgres")
		errs = append(errs, s.service.Close(ctx, true))
	}
	for _, l := range []*net.TCPListener{s.listener, s.clients} {
		if l != nil {
			_ = l.Close() // closed already, unless it never served
		}
	}
	if s.launcher != nil {
		errs = append(errs, s.launcher.Close())
	}
	if s.poolLock != nil {
		_ = s.poolLock.Close() // it has no content; open, it would keep the pool mounted
	}
	if s.storage != nil && s.poolLock != nil { // without the lock another server may use what is mounted
		errs = append(errs, s.storage.Close(ctx))
	}
	if s.catalog != nil {
		errs = append(errs, s.catalog.Close())
	}
	return errors.Join(errs...)
}

// Beside its shared buffers a Postgres at rest has some 40 MB of its own, and its
// sessions need more.
const ownMemory = 64 << 20

// leastAwake is allowed on any machine.
const leastAwake = 4

// sleep is when branches sleep, and how many may be awake.
func (c *serverCommand) sleep() (after time.Duration, awake int, err error) {
	timeout, err := parseSuspendAfter(c.suspendAfter)
	switch {
	case err != nil:
		return 0, 0, err
	case timeout == nil || *timeout == 0:
		return 0, 0, pgbough.Errorf(pgbough.EInvalid, "--suspend-after %q is not a duration such as 5m, 0 or never", c.suspendAfter)
	case *timeout > 0:
		after = time.Duration(*timeout * float64(time.Second))
	}
	if c.maxAwake != 0 {
		if c.maxAwake < 1 {
			return 0, 0, pgbough.Errorf(pgbough.EInvalid, "--max-awake %d would let no branch run", c.maxAwake)
		}
		return after, c.maxAwake, nil
	}
	var info unix.Sysinfo_t
	if err := unix.Sysinfo(&info); err != nil {
		return 0, 0, fmt.Errorf("ask how much memory there is: %w", err)
	}
	buffers, err := parseSize(c.sharedBuffers)
	if err != nil {
		return 0, 0, err
	}
	return after, max(leastAwake, int(int64(info.Totalram)*int64(info.Unit)/2/(buffers+ownMemory))), nil
}
