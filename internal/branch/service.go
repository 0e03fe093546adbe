// Package branch holds what can be done with projects and their branches: one
// file for each operation, and the keeper that has spares ready. It drives the
// catalog, the pool, the followers and the computes, and keeps no state of its
// own: after a restart everything follows from the catalog and from what runs.
package branch

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"syscall"
	"time"

	"github.com/pgbough/pgbough"
	"github.com/pgbough/pgbough/internal/catalog"
	"github.com/pgbough/pgbough/internal/compute"
	"github.com/pgbough/pgbough/internal/credential"
	"github.com/pgbough/pgbough/internal/follower"
	"github.com/pgbough/pgbough/internal/operation"
	"github.com/pgbough/pgbough/internal/postgres"
	"github.com/pgbough/pgbough/internal/quarantine"
	"github.com/pgbough/pgbough/internal/replication"
	"github.com/pgbough/pgbough/internal/source"
	"github.com/pgbough/pgbough/internal/volume"
)

// Options of a Service.
type Options struct {
	Catalog    *catalog.Catalog
	Pool       *volume.Pool
	Launcher   postgres.Launcher
	Credential postgres.Credential
	RunDir     string // holds a directory for each running Postgres
	Memory     Memory
	Limits     postgres.Limits                             // of each branch; its spare has them too
	Disk       int64                                       // bytes that each branch may hold of its own; zero is no limit
	Notes      []string                                    // what the status should tell of the machine
	Spares     int                                         // how many a project should have ready at least
	MostSpares int                                         // and at most, when creates come close together
	Resize     func(ctx context.Context, size int64) error // of the pool, in bytes
	// SuspendAfter is how long a compute may be idle that was not told otherwise.
	SuspendAfter time.Duration
	MaxAwake     int      // how many computes may be awake; 0 is any number
	MaxBranches  int      // how many branches there may be, roots aside; 0 is any number
	Endpoint     Endpoint // where clients reach all branches
	Image        string   // the pool's image file, for the status
	Version      string
	Log          *slog.Logger
	Failpoint    func(string)
	Archive      string                  // directory of the history of all lineages; empty: none is kept
	Reserve      int64                   // bytes that history leaves free of its disk
	Admin        credential.APIKey       // opens all of the API; the zero key opens nothing
	Observe      func(pgbough.Operation) // is told of each operation that has ended; may be nil
}

// Endpoint is where the proxy serves the clients of all branches.
type Endpoint struct {
	Host, Port string
	Domain     string // a branch is at <endpoint id>.Domain; empty: at Host, named by an option
}

// Service carries out what the API asks for.
type Service struct {
	catalog    *catalog.Catalog
	pool       *volume.Pool
	launcher   postgres.Launcher
	credential postgres.Credential
	runDir     string
	memory     Memory
	limits     postgres.Limits
	disk       int64
	machine    []string
	wanted     int // spares of each project, at least
	most       int // at most
	image      string
	resize     func(ctx context.Context, size int64) error
	version    string
	suspend    time.Duration
	branches   int // how many there may be; 0 is any number
	endpoint   Endpoint
	engine     *operation.Engine
	computes   *compute.Computes
	log        *slog.Logger
	admin      credential.APIKey
	archive    string
	reserve    int64

	life      string       // names this run of the server
	failpoint func(string) // as of Options, but never nil

	stuck error // operations that could not be resumed; fixed by reconcile

	ctx    context.Context // the life of the service's own goroutines
	cancel context.CancelFunc
	wg     sync.WaitGroup

	mu        sync.Mutex
	followers map[string]*follower.Follower // by project id
	wake      map[string]chan struct{}      // wakes the keeper of a project
	ready     map[string]chan struct{}      // closed when a spare of the project becomes ready
	settling  map[string]context.CancelFunc // by branch id
	trouble   map[string]trouble            // by project id: refills that failed since the last that did not
	crowds    map[string]*crowd             // by project id
	demands   map[string]*demand            // by project id
	aheads    map[string]*ahead             // by project id
	histories map[string]*history           // by lineage

	knownSettings map[postgres.Installation]postgres.Known
	installations postgres.Finder

	secrets chan quarantine.Secret // made ahead
	opened  sync.Map               // *quarantine.Quarantine by volume id
	fresh   sync.Map               // volumes of branches that are clones, which the guard has not seen yet: they own next to nothing

	starts chan struct{} // holds a token for each branch that is just being made of a point

	sizes   *sizes
	stopped sync.Map // why the guard has stopped its Postgres, by volume id
}

// Open makes the service, and brings everything to what the catalog says:
// followers, spares and computes run, and unfinished operations go on.
func Open(ctx context.Context, o Options) (*Service, error) {
	life, cancel := context.WithCancel(context.WithoutCancel(ctx))
	s := &Service{
		catalog: o.Catalog, pool: o.Pool, launcher: o.Launcher, credential: o.Credential, runDir: o.RunDir, memory: o.Memory,
		limits: o.Limits, disk: o.Disk, machine: o.Notes, wanted: o.Spares, most: o.MostSpares, branches: o.MaxBranches, image: o.Image, resize: o.Resize, version: o.Version, suspend: o.SuspendAfter, endpoint: o.Endpoint, log: o.Log, admin: o.Admin, archive: o.Archive, reserve: o.Reserve, ctx: life, cancel: cancel,
		computes: compute.New(compute.Options{
			Launcher: o.Launcher, Records: o.Catalog, SuspendAfter: o.SuspendAfter, MaxAwake: o.MaxAwake, Log: o.Log, Failpoint: o.Failpoint,
		}),
		followers: map[string]*follower.Follower{},
		wake:      map[string]chan struct{}{},
		ready:     map[string]chan struct{}{},
		settling:  map[string]context.CancelFunc{},
		trouble:   map[string]trouble{},
		crowds:    map[string]*crowd{},
		demands:   map[string]*demand{},
		aheads:    map[string]*ahead{},
		histories: map[string]*history{},
		starts:    make(chan struct{}, 1+runtime.NumCPU()),

		knownSettings: map[postgres.Installation]postgres.Known{},
		secrets:       make(chan quarantine.Secret, secretsAhead),
		sizes:         newSizes(),
	}
	s.life, s.failpoint = pgbough.NewOperationID(), o.Failpoint
	if s.failpoint == nil {
		s.failpoint = func(string) {}
	}
	s.engine = operation.New(o.Catalog, o.Log, o.Failpoint)
	s.engine.Observe(o.Observe)
	s.engine.Register(s.attachKind(), s.createKind(), s.pointKind(), s.dropPointKind(), s.deleteKind(), s.refillKind(), s.discardKind(), s.deleteProjectKind(),
		s.cloneKind(), s.suspendKind(), s.startKind(), s.keepPastKind(), s.dropPastKind())
	if err := s.reconcile(ctx); err != nil {
		return nil, errors.Join(err, s.Close(context.WithoutCancel(ctx), true))
	}
	s.wg.Go(s.sweep)
	s.wg.Go(s.guardDisk)
	s.wg.Go(s.measureAsleep)
	s.wg.Go(s.makeSecrets)
	return s, nil
}

// Close ends the service. With stop every Postgres is shut down; else all keep
// running for the next server to adopt.
func (s *Service) Close(ctx context.Context, stop bool) error {
	s.mu.Lock()
	s.cancel()
	s.mu.Unlock()
	s.engine.Close()
	s.wg.Wait()
	s.computes.Close(stop)
	s.mu.Lock()
	defer s.mu.Unlock()
	var first error
	for id, f := range s.followers {
		if err := f.Close(ctx, stop); err != nil && first == nil {
			first = fmt.Errorf("close the follower of project %s: %w", id, err)
		}
		_ = f.Source().Close()
	}
	for _, h := range s.histories {
		first = errors.Join(first, h.archive.Close())
	}
	if stop {
		first = errors.Join(first, s.stopStrays(ctx))
	}
	return first
}

// stopStrays stops every Postgres on a volume of the pool that is still there
// when all known ones are stopped: one of an earlier server that an operation
// would have taken over when it was told to end.
func (s *Service) stopStrays(ctx context.Context) error {
	ids, err := s.launcher.List(ctx)
	if err != nil {
		return fmt.Errorf("look for what still runs: %w", err)
	}
	var errs []error
	for _, id := range ids {
		if _, err := s.pool.Get(id); err != nil {
			continue // of another server
		}
		proc, ok, err := s.launcher.Find(ctx, id)
		if err == nil && ok {
			s.log.InfoContext(ctx, "stopping a Postgres that nobody had taken over", "volume", id)
			err = stopProcess(ctx, proc)
		}
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// stopProcess shuts a Postgres down, at last hard.
func stopProcess(ctx context.Context, proc postgres.Process) error {
	ctx, cancel := context.WithTimeout(ctx, short)
	defer cancel()
	if err := proc.Signal(syscall.SIGINT); err != nil {
		return err
	}
	select {
	case <-proc.Done():
		return nil
	case <-ctx.Done():
		return proc.Kill(context.WithoutCancel(ctx))
	}
}

// config is how a Postgres runs on a volume of a project, with the newest
// binaries that there are now.
func (s *Service) config(ctx context.Context, p pgbough.Project, volumeID string) (postgres.Config, error) {
	cfg, err := s.place(p, volumeID)
	if err == nil {
		cfg.Install, err = s.installations.Find(ctx, p.Source.Major)
	}
	return cfg, err
}

// place is config without binaries.
func (s *Service) place(p pgbough.Project, volumeID string) (postgres.Config, error) {
	v, err := s.pool.Get(volumeID)
	if err != nil {
		return postgres.Config{}, fmt.Errorf("find volume %s: %w", volumeID, err)
	}
	return postgres.Config{
		ID: v.ID, DataDir: v.Data, LockFile: v.Lock, RunDir: filepath.Join(s.runDir, v.ID),
		Superuser: p.Source.Superuser, Credential: s.credential,
	}, nil
}

// inside are the paths that a configuration file for cfg must use.
func (s *Service) inside(cfg postgres.Config) postgres.Inside {
	return s.launcher.Inside(postgres.Spec{
		ID: cfg.ID, DataDir: cfg.DataDir, EtcDir: filepath.Join(cfg.RunDir, "etc"), Socket: cfg.SocketDir(), Relay: cfg.RelayDir(),
	})
}

// follow opens the follower of a project, or returns the open one.
func (s *Service) follow(p pgbough.Project, rootVolume string) (*follower.Follower, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if f, ok := s.followers[p.ID]; ok {
		return f, nil
	}
	cfg, err := s.place(p, rootVolume)
	if err != nil {
		return nil, err
	}
	log := s.log.With("project", p.Name)
	src, err := source.Open(source.Config{ConnString: p.Source.ConnString, SystemID: p.Source.SystemID, Log: log})
	if err != nil {
		return nil, err
	}
	dial, err := replication.Dialer(p.Source.ConnString, applicationName)
	if err != nil {
		return nil, err
	}
	in := s.inside(cfg)
	f := follower.Open(follower.Options{
		Launcher: s.launcher, Source: src, Log: log,
		Dial: dial,
		Config: func(ctx context.Context) (postgres.Config, error) {
			cfg, err := s.config(ctx, p, rootVolume)
			cfg.Limits = postgres.Limits{Favoured: true}
			return cfg, err
		},
		Settings: func(rows []postgres.Setting) string { return s.rootSettings(p, in, rows) },
	})
	s.followers[p.ID] = f
	return f, nil
}

// followerOf is the open follower of an active project.
func (s *Service) followerOf(projectID string) (*follower.Follower, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	f, ok := s.followers[projectID]
	if !ok {
		return nil, pgbough.Errorf(pgbough.EConflict, "the project does not follow its production yet").WithHint("pgbough ops shows how far attach is")
	}
	return f, nil
}

// unfollow closes the follower of a project and stops its Postgres.
func (s *Service) unfollow(ctx context.Context, projectID string) error {
	s.mu.Lock()
	f, ok := s.followers[projectID]
	delete(s.followers, projectID)
	s.mu.Unlock()
	if !ok {
		return nil
	}
	err := f.Close(ctx, true)
	return errors.Join(err, f.Source().Close())
}

// destroy ends whatever runs on a volume and removes the volume with its run
// directory. Destroying it again does nothing.
func (s *Service) destroy(ctx context.Context, volumeID string) error {
	s.fresh.Delete(volumeID)
	if err := s.computes.Stop(ctx, volumeID); err != nil {
		return fmt.Errorf("stop the Postgres of volume %s: %w", volumeID, err)
	}
	if err := s.pool.Destroy(ctx, volumeID); err != nil {
		return fmt.Errorf("destroy volume %s: %w", volumeID, err)
	}
	s.sizes.removed(volumeID)
	s.stopped.Delete(volumeID)
	return os.RemoveAll(filepath.Join(s.runDir, volumeID))
}

// short is the deadline of what should take a moment: questions to a Postgres,
// the rows of the catalog.
const short = 30 * time.Second

const (
	scramIterations = 4096 // Postgres's own default
	secretsAhead    = 128
)
