package httpapitest

import (
	"context"
	"fmt"
	"slices"

	"github.com/pgbough/pgbough"
)

// Status implements httpapi.Service.
func (s *Service) Status(context.Context) (pgbough.Status, error) {
	err := s.enter("Status")
	defer s.Unlock()
	out := pgbough.Status{Version: "test", Pool: s.pool(), Notes: []string{"no resource limits: cgroups are read-only"}}
	for _, p := range s.projects {
		out.Projects = append(out.Projects, pgbough.ProjectStatus{
			Project: p, Wanted: 2, Branches: len(s.branches) - 1,
			Follower: pgbough.FollowerStatus{State: pgbough.FollowerStreaming, Replay: 0x16B374D848, SourceLSN: 0x16B374E848, LagBytes: 4096, LagSeconds: 0.25, Timeline: 1},
			Spares:   []pgbough.Spare{{VolumeID: "vspare1", State: pgbough.SpareReady, CreatedAt: p.CreatedAt}, {VolumeID: "vspare2", State: pgbough.SpareFilling, CreatedAt: p.CreatedAt}},
		})
	}
	return out, err
}

func (s *Service) pool() pgbough.PoolStatus {
	return pgbough.PoolStatus{Kind: "btrfs", Path: "/pool", Size: 50_000_000_000, Used: 2_000_000_000, Free: 40_000_000_000, Reserve: 8_000_000_000}
}

// Check implements httpapi.Service.
func (s *Service) Check(_ context.Context, _ pgbough.CheckRequest) (pgbough.CheckReport, error) {
	err := s.enter("Check")
	defer s.Unlock()
	return pgbough.CheckReport{
		Findings: s.Findings,
		Facts:    pgbough.CheckFacts{SystemID: 7300000000000000001, Version: "15.18", Timeline: 1, DataBytes: 1_200_000_000, Databases: []string{"shop"}},
	}, err
}

// Attach implements httpapi.Service.
func (s *Service) Attach(_ context.Context, req pgbough.AttachRequest) (pgbough.Project, pgbough.Operation, error) {
	err := s.enter("Attach")
	defer s.Unlock()
	if err != nil {
		return pgbough.Project{}, pgbough.Operation{}, err
	}
	if s.projectIndex(req.Name) >= 0 {
		return pgbough.Project{}, pgbough.Operation{}, pgbough.Errorf(pgbough.EConflict, "there is a project %q already", req.Name).
			WithHint("choose another name, or `pgbough source set %s` to change where it follows", req.Name)
	}
	p, root := s.newProject(pgbough.NewProjectID(), req.Name, req.ConnString)
	p.Source.MaxRate, p.Source.AcceptUnlimitedSlot, p.Source.RestoreCommand = req.MaxRate, req.AcceptUnlimitedSlot, req.RestoreCommand
	if req.Role != "" {
		p.DefaultRole = req.Role
	}
	if req.Database != "" {
		p.DefaultDatabase = req.Database
	}
	s.projects, s.branches = append(s.projects, p), append(s.branches, root)
	op := s.start("attach_project", p.ID, root.ID, func() {
		s.projects[s.projectIndex(p.ID)].State = pgbough.ProjectActive
		_, b, _ := s.branch(p.ID, root.ID)
		b.State = pgbough.BranchReady
	}, func() { s.drop(p.ID) })
	return s.projects[max(0, s.projectIndex(p.ID))], op, nil
}

func (s *Service) drop(project string) {
	s.projects = slices.DeleteFunc(s.projects, func(p pgbough.Project) bool { return p.ID == project })
	s.branches = slices.DeleteFunc(s.branches, func(b pgbough.BranchView) bool { return b.ProjectID == project })
}

// Projects implements httpapi.Service.
func (s *Service) Projects(context.Context) ([]pgbough.Project, error) {
	err := s.enter("Projects")
	defer s.Unlock()
	return slices.Clone(s.projects), err
}

// Project implements httpapi.Service.
func (s *Service) Project(_ context.Context, project string) (pgbough.Project, error) {
	err := s.enter("Project")
	defer s.Unlock()
	if err != nil {
		return pgbough.Project{}, err
	}
	return s.project(project)
}

// DeleteProject implements httpapi.Service.
func (s *Service) DeleteProject(_ context.Context, project string) (pgbough.Project, pgbough.Operation, error) {
	err := s.enter("DeleteProject")
	defer s.Unlock()
	if err != nil {
		return pgbough.Project{}, pgbough.Operation{}, err
	}
	p, err := s.project(project)
	if err != nil {
		return p, pgbough.Operation{}, err
	}
	p.State = pgbough.ProjectDeleting
	s.projects[s.projectIndex(p.ID)] = p
	return p, s.start("delete_project", p.ID, "", func() { s.drop(p.ID) }, func() {}), nil
}

// ChangeProject implements httpapi.Service.
func (s *Service) ChangeProject(_ context.Context, project string, change pgbough.ProjectChange) (pgbough.Project, error) {
	err := s.enter("ChangeProject")
	defer s.Unlock()
	if err != nil {
		return pgbough.Project{}, err
	}
	if _, err := s.project(project); err != nil {
		return pgbough.Project{}, err
	}
	p := &s.projects[s.projectIndex(project)]
	if change.History != nil {
		p.History = *change.History
	}
	return *p, nil
}

// History implements httpapi.Service.
func (s *Service) History(_ context.Context, project string) (pgbough.History, error) {
	err := s.enter("History")
	defer s.Unlock()
	if err != nil {
		return pgbough.History{}, err
	}
	p, err := s.project(project)
	return pgbough.History{
		Project: p, Window: p.History, From: 0x16B3000000, To: 0x16B374D848, FromTime: p.CreatedAt, ToTime: p.CreatedAt, WALBytes: 1000, RawBytes: 4000,
		Points: []pgbough.PastPoint{{VolumeID: "vpast1", LSN: 0x16B3000000, Redo: 0x16B2000000, Timeline: 1, CreatedAt: p.CreatedAt}},
		Gaps:   []pgbough.Gap{{From: 0x16B3100000, To: 0x16B3200000}},
	}, err
}

// SetSource implements httpapi.Service.
func (s *Service) SetSource(_ context.Context, project string, req pgbough.SourceRequest) (pgbough.Project, pgbough.Operation, error) {
	err := s.enter("SetSource")
	defer s.Unlock()
	if err != nil {
		return pgbough.Project{}, pgbough.Operation{}, err
	}
	if _, err := s.project(project); err != nil {
		return pgbough.Project{}, pgbough.Operation{}, err
	}
	p := &s.projects[s.projectIndex(project)]
	p.Source.ConnString = req.ConnString
	return *p, s.start("set_source", p.ID, "", func() {}, func() {}), nil
}

// CreateBranch implements httpapi.Service.
func (s *Service) CreateBranch(_ context.Context, project string, req pgbough.CreateRequest) (pgbough.Created, error) {
	err := s.enter("CreateBranch")
	defer s.Unlock()
	if err != nil {
		return pgbough.Created{}, err
	}
	p, err := s.project(project)
	if err != nil {
		return pgbough.Created{}, err
	}
	if _, there, err := s.branch(project, req.Name); err == nil {
		if req.Reuse {
			return pgbough.Created{Branch: *there}, nil
		}
		return pgbough.Created{}, pgbough.Errorf(pgbough.EConflict, "project %s has a branch %q already", p.Name, req.Name).
			WithHint("choose another name, delete it with `pgbough branch delete %s`, or take it as it is with --reuse", req.Name)
	}
	b := s.newBranch(p, pgbough.NewBranchID(), req.Name)
	b.ExpiresAt, b.Protected = req.ExpiresAt, req.Protected
	if req.SuspendAfter != nil {
		suspendAfter(&b, *req.SuspendAfter)
	}
	if req.Parent != "" {
		_, parent, err := s.branch(project, req.Parent)
		if err != nil {
			return pgbough.Created{}, err
		}
		b.ParentID = parent.ID
	}
	s.branches = append(s.branches, b)
	op := s.start("create_branch", p.ID, b.ID, func() {
		if _, made, err := s.branch(p.ID, b.ID); err == nil {
			made.State, made.Compute = pgbough.BranchReady, pgbough.ComputeActive
		}
	}, func() { s.forget(b.ID) })
	return pgbough.Created{Branch: b, Operation: op}, nil
}

func (s *Service) forget(branch string) {
	s.branches = slices.DeleteFunc(s.branches, func(b pgbough.BranchView) bool { return b.ID == branch })
}

// Branches implements httpapi.Service.
func (s *Service) Branches(_ context.Context, project string) ([]pgbough.BranchView, error) {
	err := s.enter("Branches")
	defer s.Unlock()
	if err != nil {
		return nil, err
	}
	p, err := s.project(project)
	if err != nil {
		return nil, err
	}
	return slices.DeleteFunc(slices.Clone(s.branches), func(b pgbough.BranchView) bool { return b.ProjectID != p.ID }), nil
}

// Branch implements httpapi.Service.
func (s *Service) Branch(_ context.Context, project, branch string) (pgbough.BranchView, error) {
	err := s.enter("Branch")
	defer s.Unlock()
	if err != nil {
		return pgbough.BranchView{}, err
	}
	_, b, err := s.branch(project, branch)
	if err != nil {
		return pgbough.BranchView{}, err
	}
	return *b, nil
}

// UpdateBranch implements httpapi.Service.
func (s *Service) UpdateBranch(_ context.Context, project, branch string, change pgbough.BranchChange) (pgbough.BranchView, error) {
	err := s.enter("UpdateBranch")
	defer s.Unlock()
	if err != nil {
		return pgbough.BranchView{}, err
	}
	_, b, err := s.branch(project, branch)
	if err != nil {
		return pgbough.BranchView{}, err
	}
	if change.Name != nil && *change.Name != b.Name {
		if err := pgbough.CheckName(*change.Name); err != nil {
			return pgbough.BranchView{}, err
		}
		if _, _, err := s.branch(project, *change.Name); err == nil {
			return pgbough.BranchView{}, pgbough.Errorf(pgbough.EConflict, "there is a branch %q already", *change.Name).WithHint("choose another name")
		}
		b.Name = *change.Name
	}
	if change.ExpiresAt != nil {
		b.ExpiresAt = *change.ExpiresAt
	}
	if change.Protected != nil {
		b.Protected = *change.Protected
	}
	if change.SuspendAfter != nil {
		suspendAfter(b, *change.SuspendAfter)
	}
	return *b, nil
}

// Unsized is Branch without the sizes.
func (s *Service) Unsized(ctx context.Context, project, branch string) (pgbough.BranchView, error) {
	v, err := s.Branch(ctx, project, branch)
	v.OwnBytes, v.LogicalBytes = 0, 0
	return v, err
}

// Suspend implements httpapi.Service.
func (s *Service) Suspend(_ context.Context, project, branch string) (pgbough.BranchView, pgbough.Operation, error) {
	return s.turn("Suspend", project, branch, "suspend_compute", pgbough.ComputeIdle)
}

// Wake implements httpapi.Service.
func (s *Service) Wake(_ context.Context, project, branch string) (pgbough.BranchView, pgbough.Operation, error) {
	return s.turn("Wake", project, branch, "start_compute", pgbough.ComputeActive)
}

func (s *Service) turn(method, project, branch, kind string, want pgbough.ComputeState) (pgbough.BranchView, pgbough.Operation, error) {
	err := s.enter(method)
	defer s.Unlock()
	if err != nil {
		return pgbough.BranchView{}, pgbough.Operation{}, err
	}
	p, b, err := s.branch(project, branch)
	switch {
	case err != nil:
		return pgbough.BranchView{}, pgbough.Operation{}, err
	case b.ParentID == "":
		return pgbough.BranchView{}, pgbough.Operation{}, pgbough.Errorf(pgbough.EConflict, "%s is the root branch, which has no compute", b.Name).WithHint("name a branch of it")
	case b.Compute == want:
		return *b, pgbough.Operation{}, nil
	}
	id := b.ID
	op := s.start(kind, p.ID, id, func() {
		if _, b, err := s.branch(p.ID, id); err == nil {
			b.Compute = want
		}
	}, func() {})
	return *b, op, nil
}

// DeleteBranch implements httpapi.Service.
func (s *Service) DeleteBranch(_ context.Context, project, branch string, cascade bool) (pgbough.BranchView, pgbough.Operation, error) {
	err := s.enter("DeleteBranch")
	defer s.Unlock()
	if err != nil {
		return pgbough.BranchView{}, pgbough.Operation{}, err
	}
	p, b, err := s.branch(project, branch)
	if err != nil {
		return pgbough.BranchView{}, pgbough.Operation{}, err
	}
	if b.ParentID == "" {
		return pgbough.BranchView{}, pgbough.Operation{}, pgbough.Errorf(pgbough.EConflict, "%s is the root branch of project %s", b.Name, p.Name).
			WithHint("`pgbough project delete %s` removes the project", p.Name)
	}
	children := func(of string) func(pgbough.BranchView) bool {
		return func(b pgbough.BranchView) bool { return b.ParentID == of }
	}
	if slices.ContainsFunc(s.branches, children(b.ID)) && !cascade {
		return pgbough.BranchView{}, pgbough.Operation{}, pgbough.Errorf(pgbough.EConflict, "branch %s has children", b.Name).
			WithHint("--cascade deletes them too")
	}
	for _, op := range s.ops {
		if s.Cancel && op.BranchID == b.ID && op.Status == pgbough.OperationRunning {
			view := *b
			op.stop()
			return view, op.Operation, nil
		}
	}
	b.State = pgbough.BranchDeleting
	view := *b
	return view, s.start("delete_branch", p.ID, b.ID, func() {
		s.branches = slices.DeleteFunc(s.branches, children(view.ID))
		s.forget(view.ID)
	}, func() {}), nil
}

// Roles implements httpapi.Service.
func (s *Service) Roles(_ context.Context, project, branch string) ([]pgbough.Role, error) {
	err := s.enter("Roles")
	defer s.Unlock()
	if err != nil {
		return nil, err
	}
	_, b, err := s.branch(project, branch)
	if err != nil || b.ParentID == "" {
		return nil, err
	}
	return []pgbough.Role{{BranchID: b.ID, Name: "app", Password: "branch-secret"}, {BranchID: b.ID, Name: "report", Password: "other-secret"}}, nil
}

// Connection implements httpapi.Service.
func (s *Service) Connection(_ context.Context, project, branch, role, database string) (pgbough.Connection, error) {
	err := s.enter("Connection")
	defer s.Unlock()
	if err != nil {
		return pgbough.Connection{}, err
	}
	p, b, err := s.branch(project, branch)
	if err != nil {
		return pgbough.Connection{}, err
	}
	if b.ParentID == "" {
		return pgbough.Connection{}, pgbough.Errorf(pgbough.EConflict, "nobody connects to the root branch of a project").
			WithHint("make a branch of it: `pgbough branch create NAME`")
	}
	if role == "" {
		role = p.DefaultRole
	}
	if database == "" {
		database = p.DefaultDatabase
	}
	c := pgbough.Connection{Host: "/run/v" + b.ID + "/socket", Role: role, Password: "branch-secret", Database: database}
	c.URI = fmt.Sprintf("postgresql://%s:%s@/%s?host=%s&application_name=x", c.Role, c.Password, c.Database, c.Host)
	return c, nil
}

// Schema implements httpapi.Service: all branches have one table.
func (s *Service) Schema(_ context.Context, project, branch, database string) (string, error) {
	err := s.enter("Schema")
	defer s.Unlock()
	if err != nil {
		return "", err
	}
	_, _, err = s.branch(project, branch)
	return "CREATE TABLE " + database + ".orders ();\n", err
}

// CompareSchema implements httpapi.Service: a branch has one column more than any
// other.
func (s *Service) CompareSchema(_ context.Context, project string, c pgbough.Comparison) (pgbough.SchemaComparison, error) {
	err := s.enter("CompareSchema")
	defer s.Unlock()
	if err != nil {
		return pgbough.SchemaComparison{}, err
	}
	p, b, err := s.branch(project, c.Branch)
	if err != nil {
		return pgbough.SchemaComparison{}, err
	}
	out := pgbough.SchemaComparison{Branch: b.Name, Base: c.Base, Database: c.Database}
	if out.Database == "" {
		out.Database = p.DefaultDatabase
	}
	if out.Base == "" {
		out.Base, out.Notes = "main", []string{"main is compared as it is now"}
	}
	if out.Base != out.Branch {
		out.Unified = "--- " + out.Base + "\n+++ " + out.Branch + "\n@@ -1,0 +1 @@ table public.orders\n+    note text,\n"
		out.Changes = []pgbough.SchemaChange{{Kind: "column", Name: "public.orders.note", Change: pgbough.Added, To: "note text"}}
	}
	return out, nil
}

// Operations implements httpapi.Service.
func (s *Service) Operations(_ context.Context, project string) ([]pgbough.Operation, error) {
	err := s.enter("Operations")
	defer s.Unlock()
	if err != nil {
		return nil, err
	}
	id := ""
	if project != "" {
		p, err := s.project(project)
		if err != nil {
			return nil, err
		}
		id = p.ID
	}
	var out []pgbough.Operation
	for _, op := range s.ops {
		if id == "" || op.ProjectID == id {
			out = append(out, op.Operation)
		}
	}
	return out, nil
}

// Operation implements httpapi.Service.
func (s *Service) Operation(_ context.Context, id string) (pgbough.Operation, error) {
	err := s.enter("Operation")
	defer s.Unlock()
	if err != nil {
		return pgbough.Operation{}, err
	}
	op, err := s.operation(id)
	if err != nil {
		return pgbough.Operation{}, err
	}
	return op.Operation, nil
}

func (s *Service) operation(id string) (*operation, error) {
	for _, op := range s.ops {
		if op.ID == id {
			return op, nil
		}
	}
	return nil, pgbough.Errorf(pgbough.ENotFound, "there is no operation %q", id)
}

// WaitOperation implements httpapi.Service.
func (s *Service) WaitOperation(ctx context.Context, id string) (pgbough.Operation, error) {
	err := s.enter("WaitOperation")
	if err != nil {
		s.Unlock()
		return pgbough.Operation{}, err
	}
	op, err := s.operation(id)
	s.Unlock()
	if err != nil {
		return pgbough.Operation{}, err
	}
	select {
	case <-op.done:
	case <-ctx.Done():
	}
	s.Lock()
	defer s.Unlock()
	switch op.Status {
	case pgbough.OperationFailed:
		return op.Operation, op.err
	case pgbough.OperationCancelled:
		return op.Operation, pgbough.Errorf(pgbough.EConflict, "the operation was cancelled")
	}
	return op.Operation, nil
}

// Pool implements httpapi.Service.
func (s *Service) Pool(context.Context) (pgbough.PoolStatus, error) {
	err := s.enter("Pool")
	defer s.Unlock()
	pool := s.pool()
	for _, b := range s.branches {
		role := "branch"
		if b.ParentID == "" {
			role = "root"
		}
		pool.Volumes = append(pool.Volumes, pgbough.VolumeStatus{ID: b.VolumeID, Role: role, Project: "shop", Branch: b.Name, OwnBytes: b.OwnBytes, LogicalBytes: b.LogicalBytes, Known: true})
	}
	pool.Volumes = append(pool.Volumes, s.Unknown...)
	return pool, err
}

// ResizePool implements httpapi.Service.
func (s *Service) ResizePool(_ context.Context, size int64) (pgbough.PoolStatus, error) {
	err := s.enter("ResizePool")
	defer s.Unlock()
	pool := s.pool()
	pool.Free += size - pool.Size
	pool.Size = size
	return pool, err
}

// Prune implements httpapi.Service.
func (s *Service) Prune(_ context.Context, dryRun bool) ([]pgbough.VolumeStatus, error) {
	err := s.enter("Prune")
	defer s.Unlock()
	gone := s.Unknown
	if !dryRun && err == nil {
		s.Unknown = nil
	}
	return gone, err
}
