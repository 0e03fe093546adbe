package branch

import (
	"context"
	"net"
	"time"

	"github.com/pgbough/pgbough"
	"github.com/pgbough/pgbough/internal/compute"
	"github.com/pgbough/pgbough/internal/operation"
	"github.com/pgbough/pgbough/internal/postgres"
)

// settleWait is how long a suspend waits for the background work on a new branch.
const settleWait = 2 * time.Minute

// Suspending and waking are operations when somebody asks for them: they
// exclude others on the branch, are listed, and go on after a crash. A compute
// that falls asleep by itself, or wakes for a client, makes none: whether a
// compute should run is one fact in the catalog, and a wake has no time for more.

type computeRun = operation.Run[struct{}]

func (s *Service) suspendKind() operation.Kind {
	return operation.Define("suspend_compute", operation.Step[struct{}]{Name: "suspend", Do: s.suspendCompute})
}

func (s *Service) startKind() operation.Kind {
	return operation.Define("start_compute", operation.Step[struct{}]{Name: "start", Do: s.startCompute})
}

func (s *Service) suspendCompute(ctx context.Context, r *computeRun) error {
	b, err := s.catalog.Branch(ctx, r.ProjectID, r.BranchID)
	if err != nil {
		return err
	}
	if err := s.settledBy(ctx, b, settleWait, r.Progress); err != nil {
		return err
	}
	return s.computes.Suspend(ctx, b.VolumeID)
}

// settledBy waits until the background work on a new branch is done.
func (s *Service) settledBy(ctx context.Context, b pgbough.Branch, limit time.Duration, tell func(pgbough.Progress)) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	for s.isSettling(b.ID) {
		tell(pgbough.Progress{Message: "waiting for the background work on the new branch"})
		pause(ctx, 100*time.Millisecond)
		if ctx.Err() != nil {
			return pgbough.Errorf(pgbough.ELocked, "branch %s still has background work of its creation to do", b.Name).
				WithHint("try again; the log of the server says what keeps it from ending")
		}
	}
	return nil
}

func (s *Service) isSettling(branchID string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	_, ok := s.settling[branchID]
	return ok
}

func (s *Service) startCompute(ctx context.Context, r *computeRun) error {
	p, err := s.catalog.Project(ctx, r.ProjectID)
	if err != nil {
		return err
	}
	b, err := s.catalog.Branch(ctx, r.ProjectID, r.BranchID)
	if err != nil {
		return err
	}
	if err := s.resume(ctx, p, b); err != nil {
		return err
	}
	return s.computes.Wake(ctx, b.VolumeID)
}

// Suspend stops the Postgres of a branch until somebody connects. Whoever is
// connected is told so. There is no operation if it sleeps already. The answer has
// no sizes.
func (s *Service) Suspend(ctx context.Context, project, branch string) (pgbough.BranchView, pgbough.Operation, error) {
	return s.turn(ctx, project, branch, "suspend_compute", pgbough.ComputeIdle)
}

// Wake starts the Postgres of a branch that sleeps. There is no operation if it
// runs already.
func (s *Service) Wake(ctx context.Context, project, branch string) (pgbough.BranchView, pgbough.Operation, error) {
	return s.turn(ctx, project, branch, "start_compute", pgbough.ComputeActive)
}

func (s *Service) turn(ctx context.Context, project, branch, kind string, want pgbough.ComputeState) (pgbough.BranchView, pgbough.Operation, error) {
	var none pgbough.Operation
	p, b, err := s.find(ctx, project, branch)
	if err != nil {
		return pgbough.BranchView{}, none, err
	}
	switch {
	case b.ID == p.RootBranchID:
		return pgbough.BranchView{}, none, pgbough.Errorf(pgbough.EConflict, "%s is the root branch, which follows production and has no compute", b.Name).
			WithHint("name a branch of it: pgbough branch list")
	case b.State != pgbough.BranchReady:
		return pgbough.BranchView{}, none, pgbough.Errorf(pgbough.ELocked, "branch %s is %s", b.Name, b.State).WithHint("pgbough ops shows how far it is")
	case s.computes.State(b.VolumeID).State == want:
		return s.unsized(ctx, p, b), none, nil
	}
	op, err := s.engine.Start(ctx, kind, operation.Request{ProjectID: p.ID, BranchID: b.ID})
	return s.unsized(ctx, p, b), op, err
}

// SetClients tells the service who knows the clients of branches.
func (s *Service) SetClients(clients compute.Clients) { s.computes.SetClients(clients) }

// Connect connects to the Postgres of a branch, which is woken if it sleeps. The
// connection leads to a process of that branch's sandbox; nothing was said on it.
func (s *Service) Connect(ctx context.Context, branchID string) (net.Conn, error) {
	r, err := s.lead(ctx, branchID)
	if err != nil {
		return nil, err
	}
	return s.computes.Connect(ctx, r.VolumeID)
}

// serve keeps the compute of a branch: of the Postgres that was its spare, or a
// new one.
func (s *Service) serve(ctx context.Context, p pgbough.Project, b pgbough.Branch) error {
	return s.serveAgain(ctx, p, b, true)
}

// serveAgain keeps the compute of a branch of an earlier server: of the Postgres
// that runs, a new one, or none while it sleeps.
func (s *Service) serveAgain(ctx context.Context, p pgbough.Project, b pgbough.Branch, runs bool) error {
	spec, err := s.spec(ctx, p, b, runs)
	if err != nil {
		return err
	}
	if f, ferr := s.followerOf(p.ID); ferr == nil {
		if server, ok := f.ReleaseSpare(ctx, b.VolumeID); ok {
			if err := server.Process().SetLimits(s.limits); err != nil {
				s.log.WarnContext(ctx, "a new branch keeps the limits of a spare", "branch", b.Name, "err", err)
			}
			s.computes.Take(spec, server)
			s.settleLater(p, b)
			return nil
		}
	}
	s.stopped.Delete(b.VolumeID)
	s.computes.Keep(spec)
	s.settleLater(p, b)
	return nil
}

// spec is the compute of a branch. One that is recorded as asleep although it runs
// was being woken when the server died; no client was led to it yet.
func (s *Service) spec(ctx context.Context, p pgbough.Project, b pgbough.Branch, runs bool) (compute.Spec, error) {
	e, err := s.catalog.Endpoint(ctx, b.ID)
	if err != nil {
		return compute.Spec{}, err
	}
	spec := compute.Spec{
		ID: b.VolumeID, BranchID: b.ID, Name: b.Name, SuspendAfter: e.SuspendAfter, Asleep: !e.Awake && b.Settled && !runs,
		Config: func(ctx context.Context) (postgres.Config, error) {
			s.sizes.started(b.VolumeID)
			return s.branchConfig(ctx, p, b.ID, b.VolumeID)
		},
		Busy: func() bool { return s.isSettling(b.ID) },
	}
	if !spec.Asleep && !e.Awake {
		err = s.catalog.SetAwake(ctx, b.ID)
	}
	return spec, err
}

// branchConfig is how the Postgres of a branch is started now.
func (s *Service) branchConfig(ctx context.Context, p pgbough.Project, branchID, volumeID string) (postgres.Config, error) {
	b, err := s.catalog.Branch(ctx, p.ID, branchID)
	if err != nil {
		return postgres.Config{}, err
	}
	cfg, err := s.config(ctx, p, volumeID)
	if err != nil {
		return cfg, err
	}
	cfg.Settings, cfg.Limits = s.branchSettings(p, fromNouns(b.Settings), b.Settled), s.limits
	return cfg, nil
}
