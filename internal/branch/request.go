package branch

import (
	"context"
	"encoding/json"
	"errors"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/pgbough/pgbough"
	"github.com/pgbough/pgbough/internal/catalog"
	"github.com/pgbough/pgbough/internal/operation"
	"github.com/pgbough/pgbough/internal/replication"
	"github.com/pgbough/pgbough/internal/source"
	"github.com/pgbough/pgbough/internal/volume"
)

// Check looks at everything that Attach would need, and changes nothing.
func (s *Service) Check(ctx context.Context, req pgbough.CheckRequest) (pgbough.CheckReport, error) {
	report, err := s.check(ctx, req)
	if err != nil {
		return pgbough.CheckReport{}, err
	}
	f := report.Facts
	databases := make([]string, 0, len(f.Databases))
	for _, d := range f.Databases {
		databases = append(databases, d.Name)
	}
	return pgbough.CheckReport{Findings: report.Findings, Facts: pgbough.CheckFacts{
		SystemID: f.SystemID, Version: f.Version, Timeline: f.Timeline, DataBytes: f.DataBytes, Databases: databases,
	}}, nil
}

func (s *Service) check(ctx context.Context, req pgbough.CheckRequest) (source.Report, error) {
	space, err := s.space()
	if err != nil {
		return source.Report{}, err
	}
	return source.Check(ctx, source.CheckOptions{
		ConnString: req.ConnString, Database: req.Database, Role: req.Role, AcceptUnlimitedSlot: req.AcceptUnlimitedSlot,
		RestoreCommand: req.RestoreCommand, PoolFree: &space.Free, PoolCopies: s.pool.Kind() == volume.KindCopy, Spare: spareNeed, Log: s.log,
	}), nil
}

// Attach makes a project that follows a production. What check finds failing
// refuses it before anything is made.
func (s *Service) Attach(ctx context.Context, req pgbough.AttachRequest) (pgbough.Project, pgbough.Operation, error) {
	var none pgbough.Operation
	if err := pgbough.CheckName(req.Name); err != nil {
		return pgbough.Project{}, none, err
	}
	if req.RestoreCommand != "" {
		return pgbough.Project{}, none, pgbough.Errorf(pgbough.EInvalid, "--restore-command is not in this version").
			WithHint("attach with a slot: set max_slot_wal_keep_size on production, or accept an unlimited one with --accept-unlimited-slot")
	}
	if p, err := s.catalog.Project(ctx, req.Name); err == nil {
		if op, ok, err := s.attaching(ctx, p, req); ok || err != nil {
			return hide(p), op, err
		}
		return pgbough.Project{}, none, pgbough.Errorf(pgbough.EConflict, "there is a project %s already", req.Name).
			WithHint("choose another name, or remove it: pgbough project delete %s", req.Name)
	}
	report, err := s.check(ctx, pgbough.CheckRequest{SourceRequest: req.SourceRequest, Role: req.Role, Database: req.Database})
	if err != nil {
		return pgbough.Project{}, none, err
	}
	if err := refusal(report); err != nil {
		return pgbough.Project{}, none, err
	}
	f := report.Facts
	p := pgbough.Project{
		ID: pgbough.NewProjectID(), Name: req.Name, State: pgbough.ProjectAttaching, CreatedAt: time.Now().UTC(),
		DefaultRole: req.Role, DefaultDatabase: req.Database, History: pgbough.DefaultHistory,
		Source: pgbough.Source{
			ConnString: req.ConnString, SystemID: f.SystemID, Major: f.Major, Version: f.Version, Timeline: f.Timeline,
			Superuser: f.BootstrapSuperuser, MaxRate: req.MaxRate, AcceptUnlimitedSlot: req.AcceptUnlimitedSlot,
		},
	}
	if req.History != nil {
		p.History = *req.History
	}
	p.Source.Slot = "pgbough_" + strings.ReplaceAll(p.ID, "-", "_")
	if p.DefaultDatabase == "" {
		p.DefaultDatabase = databaseOf(req.ConnString)
	}
	if p.DefaultRole == "" { // check has made sure that it may log in
		for _, d := range f.Databases {
			if d.Name == p.DefaultDatabase {
				p.DefaultRole = d.Owner
			}
		}
	}
	op, err := s.engine.Start(ctx, "attach_project", operation.Request{
		ProjectID: p.ID,
		State:     attachState{VolumeID: pgbough.NewVolumeID(), BranchID: pgbough.NewBranchID(), Bytes: f.DataBytes},
		Save:      s.with(func(tx *catalog.Tx) error { return tx.CreateProject(p) }),
	})
	if err != nil {
		return pgbough.Project{}, none, err
	}
	return hide(p), op, nil
}

// attaching is the attach that goes on already for the same request: who broke
// off waiting for it asks again, and waits on.
func (s *Service) attaching(ctx context.Context, p pgbough.Project, req pgbough.AttachRequest) (pgbough.Operation, bool, error) {
	if p.Source.ConnString != req.ConnString {
		return pgbough.Operation{}, false, nil
	}
	ops, err := s.catalog.Unfinished(ctx)
	for _, op := range ops {
		if op.ProjectID == p.ID && op.Kind == "attach_project" && op.Status == pgbough.OperationRunning {
			return op, true, nil
		}
	}
	return pgbough.Operation{}, false, err
}

// refusal is the error of an attach whose check found something failing.
func refusal(report source.Report) error {
	var failed []string
	var fix string
	for _, f := range report.Findings {
		if f.Status == pgbough.FindingFail {
			failed = append(failed, f.Name+": "+f.Detail)
			if fix == "" {
				fix = f.Fix
			}
		}
	}
	if len(failed) == 0 {
		return nil
	}
	hint := "pgbough check --source CONNSTR lists everything"
	if fix != "" {
		hint = fix + " (" + hint + ")"
	}
	code := report.Code
	if code == "" {
		code = pgbough.EConflict
	}
	return pgbough.Errorf(code, "this production cannot be followed yet: %s", strings.Join(failed, "; ")).WithHint("%s", hint)
}

func databaseOf(connString string) string {
	cfg, err := pgconn.ParseConfig(connString)
	if err != nil || cfg.Database == "" {
		return "postgres"
	}
	return cfg.Database
}

// Projects lists all projects.
func (s *Service) Projects(ctx context.Context) ([]pgbough.Project, error) {
	projects, err := s.catalog.Projects(ctx)
	for i := range projects {
		projects[i] = hide(projects[i])
	}
	return projects, err
}

// Project is one project, by id or name.
func (s *Service) Project(ctx context.Context, project string) (pgbough.Project, error) {
	p, err := s.catalog.Project(ctx, project)
	return hide(p), err
}

// DeleteProject stops following and removes everything of a project. An attach
// that is under way is undone instead, which comes to the same.
func (s *Service) DeleteProject(ctx context.Context, project string) (pgbough.Project, pgbough.Operation, error) {
	p, err := s.catalog.Project(ctx, project)
	if err != nil {
		return p, pgbough.Operation{}, err
	}
	if err := s.deletableProject(ctx, p); err != nil {
		return p, pgbough.Operation{}, err
	}
	ops, err := s.catalog.Unfinished(ctx)
	if err != nil {
		return p, pgbough.Operation{}, err
	}
	for _, op := range ops {
		if op.ProjectID != p.ID || op.Kind != "attach_project" {
			continue
		}
		err := s.engine.Cancel(ctx, op.ID)
		if pgbough.ErrorCode(err) == pgbough.EConflict {
			break // it has just finished: there is a project to delete
		}
		return hide(p), op, err
	}
	op, err := s.engine.Start(ctx, "delete_project", operation.Request{ProjectID: p.ID})
	return hide(p), op, err
}

// deletableProject refuses a project that has protected branches.
func (s *Service) deletableProject(ctx context.Context, p pgbough.Project) error {
	branches, err := s.catalog.Branches(ctx, p.ID)
	for _, b := range branches {
		if err == nil {
			err = deletable(b)
		}
	}
	return err
}

// SetSource changes how production is reached: a new password, or a new host
// after a failover, where our slot is made anew.
func (s *Service) SetSource(ctx context.Context, project string, req pgbough.SourceRequest) (pgbough.Project, pgbough.Operation, error) {
	var none pgbough.Operation
	p, err := s.catalog.Project(ctx, project)
	if err != nil {
		return p, none, err
	}
	if p.State != pgbough.ProjectActive {
		return p, none, pgbough.Errorf(pgbough.ELocked, "project %s is %s", p.Name, p.State).WithHint("pgbough ops shows how far it is")
	}
	f, err := s.followerOf(p.ID)
	if err != nil {
		return p, none, err
	}
	dial, err := replication.Dialer(req.ConnString, applicationName)
	if err != nil {
		return p, none, err
	}
	if err := s.sameSource(ctx, p, req.ConnString, func(*pgconn.PgConn) error { return nil }); err != nil {
		return p, none, err
	}
	if err := s.followable(ctx, p, req); err != nil {
		return p, none, err
	}
	// The catalog first: wherever this ends, a slot is only on a server that the
	// catalog names, so deleting the project drops it, and doing this again makes it.
	old := p.Source.ConnString
	if p, err = s.keepSource(ctx, p, req.ConnString); err != nil {
		return p, none, err
	}
	err = s.sameSource(ctx, p, req.ConnString, func(conn *pgconn.PgConn) error {
		if p.Source.Slot == "" {
			return nil
		}
		return replication.EnsureSlot(ctx, conn, p.Source.Slot)
	})
	if err != nil {
		_, kept := s.keepSource(context.WithoutCancel(ctx), p, old)
		return p, none, errors.Join(err, kept)
	}
	if err := f.SetSource(req.ConnString, dial); err != nil {
		return p, none, err
	}
	return hide(p), none, nil
}

func (s *Service) keepSource(ctx context.Context, p pgbough.Project, connString string) (pgbough.Project, error) {
	return s.catalog.ChangeProject(ctx, p.ID, func(p *pgbough.Project) error {
		p.Source.ConnString = connString
		return nil
	})
}

// sameSource makes sure that a connection string leads to the production that the
// project follows, and runs f with a replication connection to it.
func (s *Service) sameSource(ctx context.Context, p pgbough.Project, connString string, f func(*pgconn.PgConn) error) error {
	conn, err := replication.Connect(ctx, connString, applicationName)
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close(context.WithoutCancel(ctx)) }()
	sys, err := replication.IdentifySystem(ctx, conn)
	if err != nil {
		return err
	}
	if sys.ID != p.Source.SystemID {
		return pgbough.Errorf(pgbough.EConflict, "this is another database cluster (system identifier %d) than the one that %s follows (%d)", sys.ID, p.Name, p.Source.SystemID).
			WithHint("a project keeps its production; attach the other one under its own name")
	}
	if conn.ParameterStatus("in_hot_standby") == "on" {
		return pgbough.Errorf(pgbough.EConflict, "this server is a standby, not the primary").
			WithHint("name the server that takes writes now")
	}
	return f(conn)
}

// followable holds a server that production moved to to the rules of attach
// that are about following it.
func (s *Service) followable(ctx context.Context, p pgbough.Project, req pgbough.SourceRequest) error {
	rules := []string{
		"connection", "server", "primary", "replication_role", "read_settings", "replication_connection", "wal_level",
		"replication_slots", "max_slot_wal_keep_size", "synchronous_standby_names",
	}
	report := source.Check(ctx, source.CheckOptions{
		ConnString: req.ConnString, SlotName: p.Source.Slot, AcceptUnlimitedSlot: req.AcceptUnlimitedSlot || p.Source.AcceptUnlimitedSlot, Log: s.log,
	})
	report.Findings = slices.DeleteFunc(report.Findings, func(f pgbough.Finding) bool { return !slices.Contains(rules, f.Name) })
	return refusal(report)
}

// applicationName is how production lists us.
const applicationName = "pgbough"

// CreateBranch asks for a branch of exactly now. It returns when the request is
// durable; the operation makes the branch.
func (s *Service) CreateBranch(ctx context.Context, project string, req pgbough.CreateRequest) (pgbough.Created, error) {
	var none pgbough.Created
	if err := pgbough.CheckName(req.Name); err != nil {
		return none, err
	}
	p, err := s.catalog.Project(ctx, project)
	if err != nil {
		return none, err
	}
	if p.State != pgbough.ProjectActive {
		return none, pgbough.Errorf(pgbough.ELocked, "project %s is %s", p.Name, p.State).WithHint("pgbough ops shows how far it is")
	}
	if req.Reuse {
		if created, ok, err := s.reuse(ctx, p, req.Name); ok || err != nil {
			return created, err
		}
	}
	parent, err := s.parentOf(ctx, p, req.Parent)
	if err != nil {
		return none, err
	}
	if !req.ExpiresAt.IsZero() && req.ExpiresAt.Before(time.Now()) {
		return none, pgbough.Errorf(pgbough.EInvalid, "the expiry %s is in the past", req.ExpiresAt.Format(time.RFC3339))
	}
	if req.SuspendAfter != nil {
		if err := checkSuspendAfter(*req.SuspendAfter); err != nil {
			return none, err
		}
	}
	if err := s.pool.CheckSpace(0); err != nil {
		return none, err
	}
	if err := s.roomForOne(ctx); err != nil {
		return none, err
	}
	b := pgbough.Branch{
		ID: pgbough.NewBranchID(), ProjectID: p.ID, Name: req.Name, State: pgbough.BranchInit, ParentID: parent.ID,
		EndpointID: pgbough.NewEndpointID(), CreatedAt: time.Now().UTC(), ExpiresAt: req.ExpiresAt, Protected: req.Protected,
	}
	if err := lasting(b); err != nil {
		return none, err
	}
	state := createState{MaxLag: req.MaxLag, Clone: pgbough.NewVolumeID()}
	if req.At.IsZero() {
		s.comes(p.ID, b.ID)
	} else if state, err = s.past(ctx, p, parent, req); err != nil {
		return none, err
	} else {
		b.ParentLSN, b.ParentTime = state.Asked, state.AskedAt
	}
	op, err := s.engine.Start(ctx, "create_branch", operation.Request{
		ProjectID: p.ID, BranchID: b.ID, State: state,
		Save: s.with(func(tx *catalog.Tx) error {
			if err := s.oneMore(tx); err != nil {
				return err
			}
			if err := tx.CreateBranch(b); err != nil || req.SuspendAfter == nil {
				return err
			}
			return tx.SetSuspendAfter(b.ID, *req.SuspendAfter)
		}),
	})
	if err != nil {
		s.leaves(p.ID, b.ID)
	}
	if pgbough.ErrorCode(err) == pgbough.EConflict && req.Reuse { // somebody else has just asked for it
		if created, ok, err := s.reuse(ctx, p, req.Name); ok || err != nil {
			return created, err
		}
	}
	if err != nil {
		return none, err
	}
	return pgbough.Created{Branch: s.unsized(ctx, p, b), Operation: op}, nil
}

// oneMore refuses another branch where there are as many as there may be.
func (s *Service) oneMore(tx *catalog.Tx) error {
	if s.branches == 0 {
		return nil
	}
	n, err := tx.TotalBranches()
	if err != nil || n < s.branches {
		return err
	}
	return pgbough.Errorf(pgbough.EConflict, "there are %d branches, and this server allows %d", n, s.branches).
		WithHint("delete one that nobody needs (pgbough branch list), or start the server with a larger --max-branches")
}

// roomForOne makes sure that another branch may be awake beside those that are,
// and those that are being made.
func (s *Service) roomForOne(ctx context.Context) error {
	ops, err := s.catalog.Unfinished(ctx)
	if err != nil {
		return err
	}
	making := 0
	for _, op := range ops {
		if op.Kind == "create_branch" && op.Status == pgbough.OperationRunning {
			making++
		}
	}
	return s.computes.Room(ctx, making+1)
}

// with makes an operation durable together with the rows that it is about.
func (s *Service) with(rows func(*catalog.Tx) error) func(context.Context, pgbough.Operation) error {
	return func(ctx context.Context, op pgbough.Operation) error {
		return s.catalog.Tx(ctx, func(tx *catalog.Tx) error {
			if err := rows(tx); err != nil {
				return err
			}
			return tx.SaveOperation(op)
		})
	}
}

// reuse finds the branch of that name that is there or is being made.
func (s *Service) reuse(ctx context.Context, p pgbough.Project, name string) (created pgbough.Created, ok bool, err error) {
	b, err := s.catalog.Branch(ctx, p.ID, name)
	switch {
	case pgbough.ErrorCode(err) == pgbough.ENotFound:
		return created, false, nil
	case err != nil:
		return created, false, err
	case b.State == pgbough.BranchReady:
		return pgbough.Created{Branch: s.unsized(ctx, p, b)}, true, nil
	}
	ops, err := s.catalog.Unfinished(ctx)
	if err != nil {
		return created, false, err
	}
	for _, op := range ops {
		if op.BranchID == b.ID && op.Kind == "create_branch" {
			return pgbough.Created{Branch: s.unsized(ctx, p, b), Operation: op}, true, nil
		}
	}
	return created, false, nil // it is going away
}

func (s *Service) parentOf(ctx context.Context, p pgbough.Project, name string) (pgbough.Branch, error) {
	if name == "" {
		name = p.RootBranchID
	}
	parent, err := s.catalog.Branch(ctx, p.ID, name)
	if err == nil && parent.ID != p.RootBranchID {
		return parent, pgbough.Errorf(pgbough.EInvalid, "a branch of the branch %s cannot be made by this version: only branches of %s", parent.Name, pgbough.RootBranchName).
			WithHint("leave --parent out")
	}
	return parent, err
}

// DeleteBranch removes a branch. One that is still being made is cancelled.
func (s *Service) DeleteBranch(ctx context.Context, project, branch string, cascade bool) (pgbough.BranchView, pgbough.Operation, error) {
	var none pgbough.Operation
	p, b, err := s.find(ctx, project, branch)
	if err != nil {
		return pgbough.BranchView{}, none, err
	}
	v := s.unsized(ctx, p, b)
	if b.ID == p.RootBranchID {
		return v, none, pgbough.Errorf(pgbough.EConflict, "%s is the root branch, which follows production", b.Name).
			WithHint("remove the whole project with: pgbough project delete %s", p.Name)
	}
	if err := deletable(b); err != nil {
		return v, none, err
	}
	_ = cascade // no branch but the root has children in this version
	ops, err := s.catalog.Unfinished(ctx)
	if err != nil {
		return v, none, err
	}
	for _, op := range ops {
		switch {
		case op.BranchID != b.ID:
		case op.Kind == "delete_branch":
			return v, op, nil
		case op.Kind == "create_branch":
			return v, op, s.engine.Cancel(ctx, op.ID)
		case op.Kind == "suspend_compute", op.Kind == "start_compute":
			if err := s.engine.Cancel(ctx, op.ID); err != nil && pgbough.ErrorCode(err) != pgbough.EConflict {
				return v, none, err
			}
			if _, err := s.engine.Wait(ctx, op.ID); err != nil && ctx.Err() != nil {
				return v, none, err
			}
		}
	}
	op, err := s.engine.Start(ctx, "delete_branch", operation.Request{ProjectID: p.ID, BranchID: b.ID, State: deleteState{}})
	return v, op, err
}

// Operations lists the operations of a project, or of all for "".
func (s *Service) Operations(ctx context.Context, project string) ([]pgbough.Operation, error) {
	if project != "" {
		p, err := s.catalog.Project(ctx, project)
		if err != nil {
			return nil, err
		}
		project = p.ID
	}
	return s.catalog.Operations(ctx, project)
}

// Operation is one operation, also of a project that is gone.
func (s *Service) Operation(ctx context.Context, id string) (pgbough.Operation, error) {
	return s.engine.Get(ctx, id)
}

// WaitOperation returns an operation when it is done, or as it is when ctx ends.
func (s *Service) WaitOperation(ctx context.Context, id string) (pgbough.Operation, error) {
	op, err := s.engine.Wait(ctx, id)
	if err == nil || ctx.Err() == nil {
		return op, err
	}
	return s.engine.Get(context.WithoutCancel(ctx), id)
}

// volumes are what the state of an operation says of volumes.
type volumes struct {
	VolumeID string `json:"volume_id"`
	Clone    string `json:"clone"`
	Past     struct {
		Point string `json:"point"`
	} `json:"past"`
}

func volumesIn(op pgbough.Operation) (v volumes) {
	_ = json.Unmarshal(op.State, &v) // a state without them has none
	return v
}

// holdsVolume tells whether an operation has the volume that it is about.
func holdsVolume(op pgbough.Operation) bool { return volumesIn(op).VolumeID != "" }

// volumesOf are the volumes that an operation works on.
func volumesOf(op pgbough.Operation) []string {
	v := volumesIn(op)
	return slices.DeleteFunc([]string{v.VolumeID, v.Clone, v.Past.Point}, func(id string) bool { return id == "" })
}
