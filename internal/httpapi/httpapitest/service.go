// Package httpapitest has a Service that lives in memory, for tests of the API
// and of what uses it. It keeps the rules that clients see (names, defaults,
// refusals, operations that take a while) and runs no Postgres.
package httpapitest

import (
	"context"
	"io"
	"slices"
	"sync"
	"time"

	"github.com/pgbough/pgbough"
	"github.com/pgbough/pgbough/internal/httpapi"
)

// Service is an httpapi.Service in memory. Its exported fields may be changed
// before it is used, or under Lock.
type Service struct {
	sync.Mutex
	// Fail makes a method, by its name, fail.
	Fail map[string]error
	// Delay is how long an operation runs.
	Delay time.Duration
	// OperationError, if set, is why the next operations fail.
	OperationError error
	// Panic is the name of a method that panics.
	Panic string
	// Cancel makes DeleteBranch cancel the operation that makes the branch.
	Cancel bool
	// LogText is the log of every branch. A follower gets LogMore after it.
	LogText, LogMore string
	// Unknown are the volumes that Prune finds.
	Unknown []pgbough.VolumeStatus
	// Findings are what Check finds.
	Findings []pgbough.Finding
	// Calls counts the calls of each method.
	Calls map[string]int

	projects []pgbough.Project
	branches []pgbough.BranchView
	ops      []*operation
	keys     []storedKey
	lastKey  int64
	running  sync.WaitGroup
	now      func() time.Time
}

type operation struct {
	pgbough.Operation
	err  error
	done chan struct{}
	stop func() // ends it as cancelled
}

var _ httpapi.Service = (*Service)(nil)

// New makes a Service that holds nothing.
func New() *Service {
	return &Service{Fail: map[string]error{}, Calls: map[string]int{}, now: func() time.Time { return time.Now().UTC() }}
}

// At makes the Service tell a time that starts at t and steps a second with
// every look at it, for answers that are the same every time.
func (s *Service) At(t time.Time) {
	s.now = func() time.Time { t = t.Add(time.Second); return t }
}

// Close waits for all operations.
func (s *Service) Close() { s.running.Wait() }

func (s *Service) enter(method string) error {
	s.Lock()
	s.Calls[method]++
	if s.Panic == method {
		s.Unlock()
		panic("boom")
	}
	return s.Fail[method]
}

// AddProject puts a project there that is active.
func (s *Service) AddProject(id, name string) pgbough.Project {
	s.Lock()
	defer s.Unlock()
	p, root := s.newProject(id, name, "host=db.example.test port=5432 user=app password=production-secret dbname=shop")
	p.State, root.State = pgbough.ProjectActive, pgbough.BranchReady
	s.projects, s.branches = append(s.projects, p), append(s.branches, root)
	return p
}

func (s *Service) newProject(id, name, source string) (pgbough.Project, pgbough.BranchView) {
	root := pgbough.BranchView{Branch: pgbough.Branch{
		ID: "br-main-oak-" + id[len(id)-8:], ProjectID: id, Name: pgbough.RootBranchName, State: pgbough.BranchInit,
		VolumeID: "vroot", CreatedAt: s.now(),
	}, OwnBytes: 1_200_000_000, LogicalBytes: 1_200_000_000, Path: "/pool/volumes/vroot"}
	return pgbough.Project{
		ID: id, Name: name, State: pgbough.ProjectAttaching, RootBranchID: root.ID,
		DefaultRole: "app", DefaultDatabase: "shop", CreatedAt: root.CreatedAt,
		Source: pgbough.Source{ConnString: source, SystemID: 7300000000000000001, Major: 15, Version: "15.18", Timeline: 1, Slot: "pgbough_shop"},
	}, root
}

// AddBranch puts a branch there that is ready.
func (s *Service) AddBranch(project, id, name string) pgbough.BranchView {
	s.Lock()
	defer s.Unlock()
	b := s.newBranch(s.projects[s.projectIndex(project)], id, name)
	b.State, b.Compute = pgbough.BranchReady, pgbough.ComputeActive
	s.branches = append(s.branches, b)
	return b
}

func (s *Service) newBranch(p pgbough.Project, id, name string) pgbough.BranchView {
	b := pgbough.BranchView{Branch: pgbough.Branch{
		ID: id, ProjectID: p.ID, Name: name, State: pgbough.BranchInit, ParentID: p.RootBranchID,
		ParentLSN: 0x16B374D848, VolumeID: "v" + id, EndpointID: "ep" + id[2:], CreatedAt: s.now(),
		Differences: []pgbough.Difference{{Kind: "subscription", Object: "shop.feed", Action: "dropped", Reason: "it would take changes that production waits for"}},
	}, Compute: pgbough.ComputeInit, OwnBytes: 42_000_000, LogicalBytes: 1_200_000_000, Path: "/pool/volumes/v" + id}
	b.ParentTime, b.BehindBytes, b.Endpoint.LastActive = b.CreatedAt, 7_300_000, b.CreatedAt
	suspendAfter(&b, pgbough.SuspendByDefault)
	return b
}

func suspendAfter(b *pgbough.BranchView, d time.Duration) {
	b.Endpoint.SuspendAfter, b.SuspendAfter = d, d
	if d == pgbough.SuspendByDefault {
		b.SuspendAfter = 5 * time.Minute
	}
}

func (s *Service) projectIndex(ref string) int {
	if i := slices.IndexFunc(s.projects, func(p pgbough.Project) bool { return p.ID == ref }); i >= 0 {
		return i
	}
	return slices.IndexFunc(s.projects, func(p pgbough.Project) bool { return p.Name == ref })
}

func (s *Service) project(ref string) (pgbough.Project, error) {
	i := s.projectIndex(ref)
	if i < 0 {
		return pgbough.Project{}, pgbough.Errorf(pgbough.ENotFound, "there is no project %q", ref).WithHint("`pgbough project list` shows all")
	}
	return s.projects[i], nil
}

// branch finds a branch; what it returns may be changed under Lock.
func (s *Service) branch(project, ref string) (pgbough.Project, *pgbough.BranchView, error) {
	p, err := s.project(project)
	if err != nil {
		return p, nil, err
	}
	for _, match := range []func(b pgbough.BranchView) bool{
		func(b pgbough.BranchView) bool { return b.ID == ref },
		func(b pgbough.BranchView) bool { return b.Name == ref },
		func(b pgbough.BranchView) bool { return b.EndpointID == ref && ref != "" },
	} {
		if i := slices.IndexFunc(s.branches, func(b pgbough.BranchView) bool { return b.ProjectID == p.ID && match(b) }); i >= 0 {
			return p, &s.branches[i], nil
		}
	}
	return p, nil, pgbough.Errorf(pgbough.ENotFound, "project %s has no branch %q", p.Name, ref).WithHint("`pgbough branch list` shows all")
}

// start begins an operation. finish and undo run under Lock at its end.
func (s *Service) start(kind, project, branch string, finish, undo func()) pgbough.Operation {
	created := s.now()
	op := &operation{
		Operation: pgbough.Operation{
			ID: pgbough.NewOperationID(), ProjectID: project, BranchID: branch, Kind: kind,
			Status: pgbough.OperationRunning, CreatedAt: created, UpdatedAt: created,
			Steps:    []pgbough.StepRecord{{Name: "work", StartedAt: created, Attempts: 1}},
			Progress: pgbough.Progress{Message: "copying", Done: 250_000_000, Total: 1_000_000_000, Unit: "bytes"},
		},
		err: s.OperationError, done: make(chan struct{}),
	}
	s.ops = append(s.ops, op)
	if s.Delay == 0 {
		s.end(op, finish, undo)
		return op.Operation
	}
	started := op.Operation
	s.running.Add(1)
	timer := time.AfterFunc(s.Delay, func() {
		defer s.running.Done()
		s.Lock()
		defer s.Unlock()
		s.end(op, finish, undo)
	})
	op.stop = func() {
		if timer.Stop() {
			defer s.running.Done()
			op.Status = pgbough.OperationCancelled
			undo()
			close(op.done)
		}
	}
	return started
}

func (s *Service) end(op *operation, finish, undo func()) {
	op.Status, op.UpdatedAt = pgbough.OperationFinished, s.now()
	op.Steps = []pgbough.StepRecord{{Name: "work", StartedAt: op.CreatedAt, FinishedAt: op.UpdatedAt, Duration: op.UpdatedAt.Sub(op.CreatedAt), Attempts: 1}}
	if op.err != nil {
		op.Status, op.Error = pgbough.OperationFailed, op.err.Error()
		undo()
	} else {
		op.Step = 1
		finish()
	}
	close(op.done)
}

// Log implements httpapi.Service.
func (s *Service) Log(ctx context.Context, project, branch string, follow bool) (io.ReadCloser, error) {
	err := s.enter("Log")
	defer s.Unlock()
	if err != nil {
		return nil, err
	}
	if _, _, err := s.branch(project, branch); err != nil {
		return nil, err
	}
	r, w := io.Pipe()
	text, more := s.LogText, s.LogMore
	s.running.Add(1)
	go func() {
		defer s.running.Done()
		_, _ = io.WriteString(w, text)
		if follow {
			_, _ = io.WriteString(w, more)
			<-ctx.Done()
		}
		_ = w.Close()
	}()
	return r, nil
}
