package branch

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/url"
	"os"
	"slices"
	"time"

	"github.com/pgbough/pgbough"
	"github.com/pgbough/pgbough/internal/catalog"
	"github.com/pgbough/pgbough/internal/compute"
	"github.com/pgbough/pgbough/internal/volume"
	"github.com/pgbough/pgbough/internal/volume/disk"
)

// Status is the whole server at this moment.
func (s *Service) Status(ctx context.Context) (pgbough.Status, error) {
	entries, err := s.pool.List() // before the catalog, as in Pool
	if err != nil {
		return pgbough.Status{}, fmt.Errorf("list the pool: %w", err)
	}
	owners, err := s.owners(ctx)
	if err != nil {
		return pgbough.Status{}, err
	}
	projects, err := s.catalog.Projects(ctx)
	if err != nil {
		return pgbough.Status{}, err
	}
	st := pgbough.Status{Version: s.version}
	for _, p := range projects {
		ps := pgbough.ProjectStatus{Project: hide(p), Wanted: s.wantedOf(p.ID)}
		if f, err := s.followerOf(p.ID); err == nil {
			ps.Follower = f.Status()
		} else {
			ps.Follower.State = pgbough.FollowerStopped
		}
		if ps.Spares, err = s.catalog.Spares(ctx, p.ID); err != nil {
			return st, err
		}
		ps.Spares = slices.DeleteFunc(ps.Spares, func(sp pgbough.Spare) bool { return sp.State == pgbough.SpareClone })
		branches, err := s.catalog.Branches(ctx, p.ID)
		if err != nil {
			return st, err
		}
		ps.Branches = len(branches)
		st.Notes = append(st.Notes, s.historyNotes(p)...)
		st.Projects = append(st.Projects, ps)
	}
	st.Notes = append(s.notes(ctx, entries, owners), st.Notes...)
	st.Pool, err = s.space()
	return st, err
}

// hide takes out of a project what no answer needs. The connection string stays:
// the API tells where production is, and never more of it.
func hide(p pgbough.Project) pgbough.Project {
	p.Source.Settings = nil
	return p
}

func (s *Service) space() (pgbough.PoolStatus, error) {
	sp, err := s.pool.Space()
	if err != nil {
		return pgbough.PoolStatus{}, fmt.Errorf("measure the pool: %w", err)
	}
	return pgbough.PoolStatus{
		Kind: s.pool.Kind(), Path: s.pool.Dir(), Image: s.image,
		Size: sp.Size, Used: sp.Used, Free: sp.Free, Reserve: sp.Reserve,
	}, nil
}

// Pool is the pool with all its volumes.
func (s *Service) Pool(ctx context.Context) (pgbough.PoolStatus, error) {
	st, err := s.space()
	if err != nil {
		return st, err
	}
	// In this order: the catalog knows a volume before it is made, so one that is
	// here and not in the catalog afterwards is nobody's, now and for ever.
	entries, err := s.pool.List()
	if err != nil {
		return st, fmt.Errorf("list the pool: %w", err)
	}
	owners, err := s.owners(ctx)
	if err != nil {
		return st, err
	}
	for _, e := range entries {
		v := pgbough.VolumeStatus{ID: e.ID, Role: string(e.Volume.Role), Project: e.Volume.Project}
		if o, ok := owners[e.ID]; ok {
			v.Known, v.Branch = true, o
		}
		if u, err := s.listed(ctx, e.ID); err == nil {
			v.OwnBytes, v.LogicalBytes = u.OwnBytes, u.LogicalBytes
		}
		st.Volumes = append(st.Volumes, v)
	}
	return st, nil
}

// resizeTimeout bounds moving what lies in the part of a pool that goes.
const resizeTimeout = time.Hour

// ResizePool makes the pool size bytes large. It goes on when the caller has
// gone: half of it would be of no use.
func (s *Service) ResizePool(ctx context.Context, size int64) (pgbough.PoolStatus, error) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), resizeTimeout)
	defer cancel()
	if err := s.resize(ctx, size); err != nil {
		return pgbough.PoolStatus{}, err
	}
	return s.space()
}

// owners are all volumes that the catalog knows at one moment, with the name of
// their branch.
func (s *Service) owners(ctx context.Context) (map[string]string, error) {
	out := map[string]string{}
	err := s.catalog.Tx(ctx, func(tx *catalog.Tx) error {
		ops, err := tx.Unfinished()
		if err != nil {
			return err
		}
		for _, op := range ops {
			for _, id := range volumesOf(op) {
				out[id] = ""
			}
		}
		projects, err := tx.Projects()
		if err != nil {
			return err
		}
		for _, p := range projects {
			if err := ownersOf(tx, p, out); err != nil {
				return err
			}
		}
		return nil
	})
	return out, err
}

func ownersOf(tx *catalog.Tx, p pgbough.Project, out map[string]string) error {
	spares, err := tx.Spares(p.ID)
	if err != nil {
		return err
	}
	for _, sp := range spares {
		out[sp.VolumeID] = ""
	}
	points, err := tx.Points(p.ID)
	if err != nil {
		return err
	}
	for _, pt := range points {
		out[pt.VolumeID] = ""
	}
	past, err := tx.PastPoints(p.ID)
	if err != nil {
		return err
	}
	for _, pt := range past {
		out[pt.VolumeID] = ""
	}
	branches, err := tx.Branches(p.ID)
	if err != nil {
		return err
	}
	for _, b := range branches {
		out[b.VolumeID] = b.Name
	}
	return nil
}

// Prune removes the volumes that neither the catalog nor an unfinished
// operation knows, or with dryRun only tells which.
func (s *Service) Prune(ctx context.Context, dryRun bool) ([]pgbough.VolumeStatus, error) {
	st, err := s.Pool(ctx)
	if err != nil {
		return nil, err
	}
	left, err := s.pool.List() // one that was being removed then is gone now
	if err != nil {
		return nil, fmt.Errorf("list the pool: %w", err)
	}
	unknown := slices.DeleteFunc(st.Volumes, func(v pgbough.VolumeStatus) bool {
		return v.Known || !slices.ContainsFunc(left, func(e volume.Entry) bool { return e.ID == v.ID })
	})
	if dryRun {
		return unknown, nil
	}
	for _, v := range unknown { // all of them first: where one is somebody's, the others may be too
		_, running, err := s.launcher.Find(ctx, v.ID)
		if err != nil {
			return nil, fmt.Errorf("look whether a Postgres runs on volume %s: %w", v.ID, err)
		}
		if running {
			return nil, pgbough.Errorf(pgbough.EConflict, "a Postgres still runs on volume %s, so nothing is removed", v.ID).
				WithHint("stop the server that owns it")
		}
	}
	for _, v := range unknown {
		if err := s.pool.Prune(ctx, v.ID); err != nil {
			return nil, err
		}
	}
	return unknown, nil
}

// Branches lists the branches of a project, oldest first.
func (s *Service) Branches(ctx context.Context, project string) ([]pgbough.BranchView, error) {
	p, err := s.catalog.Project(ctx, project)
	if err != nil {
		return nil, err
	}
	branches, err := s.catalog.Branches(ctx, p.ID)
	if err != nil {
		return nil, err
	}
	endpoints, err := s.catalog.Endpoints(ctx, p.ID)
	if err != nil {
		return nil, err
	}
	views := make([]pgbough.BranchView, 0, len(branches))
	for _, b := range branches {
		views = append(views, sized(ctx, s.unsizedWith(p, b, endpoints[b.ID]), s.listed))
	}
	return views, nil
}

// Branch is one branch, by id or name.
func (s *Service) Branch(ctx context.Context, project, branch string) (pgbough.BranchView, error) {
	p, b, err := s.find(ctx, project, branch)
	if err != nil {
		return pgbough.BranchView{}, err
	}
	return s.view(ctx, p, b), nil
}

func (s *Service) find(ctx context.Context, project, branch string) (pgbough.Project, pgbough.Branch, error) {
	p, err := s.catalog.Project(ctx, project)
	if err != nil {
		return p, pgbough.Branch{}, err
	}
	b, err := s.catalog.Branch(ctx, p.ID, branch)
	return p, b, err
}

// Unsized is Branch without the sizes, which take longer to measure than the
// rest to look up.
func (s *Service) Unsized(ctx context.Context, project, branch string) (pgbough.BranchView, error) {
	p, b, err := s.find(ctx, project, branch)
	if err != nil {
		return pgbough.BranchView{}, err
	}
	return s.unsized(ctx, p, b), nil
}

// view is a branch as it is now.
func (s *Service) view(ctx context.Context, p pgbough.Project, b pgbough.Branch) pgbough.BranchView {
	return sized(ctx, s.unsized(ctx, p, b), s.usage)
}

// sized adds to a branch what it takes in the pool, as measure tells it.
func sized(ctx context.Context, v pgbough.BranchView, measure func(context.Context, string) (volume.Usage, error)) pgbough.BranchView {
	if v.VolumeID == "" {
		return v
	}
	if u, err := measure(ctx, v.VolumeID); err == nil {
		v.OwnBytes, v.LogicalBytes = u.OwnBytes, u.LogicalBytes
	}
	return v
}

func (s *Service) unsized(ctx context.Context, p pgbough.Project, b pgbough.Branch) pgbough.BranchView {
	e, _ := s.catalog.Endpoint(ctx, b.ID) // the root has none
	v := s.unsizedWith(p, b, e)
	if vol, err := s.pool.Get(b.VolumeID); err == nil {
		v.Path = vol.Dir
	}
	return v
}

// unsizedWith is also without the path, for which the pool would have to be asked.
func (s *Service) unsizedWith(p pgbough.Project, b pgbough.Branch, e pgbough.Endpoint) pgbough.BranchView {
	c := s.computes.State(b.VolumeID)
	v := pgbough.BranchView{
		Branch: b, Endpoint: e, Compute: c.State, Host: s.endpoint.host(b), SuspendAfter: e.SuspendAfter, Notes: s.branchNotes(b, c),
	}
	if e.SuspendAfter == pgbough.SuspendByDefault {
		v.SuspendAfter = s.suspend
	}
	if !c.LastActive.IsZero() {
		v.Endpoint.LastActive = c.LastActive
	}
	if f, err := s.followerOf(p.ID); err == nil && b.ParentLSN != 0 {
		v.BehindBytes = max(0, f.Status().Replay.Sub(b.ParentLSN))
	}
	if b.ID != p.RootBranchID {
		v.LimitBytes = s.disk
	} else {
		v.Compute = pgbough.ComputeIdle // the follower is no compute: nobody connects to it
	}
	if b.VolumeID == "" {
		v.Compute = pgbough.ComputeInit
	}
	return v
}

// branchNotes tell what went wrong with the Postgres of a branch.
func (s *Service) branchNotes(b pgbough.Branch, state compute.State) []string {
	var notes []string
	if err := s.whyStopped(b.VolumeID); err != nil {
		notes = append(notes, err.Error())
	}
	if state.Failure != nil {
		notes = append(notes, "its Postgres does not run: "+state.Failure.Error())
	}
	if state.MemoryKills > 0 {
		notes = append(notes, fmt.Sprintf("%d of its processes were killed for using more than its memory limit of %v",
			state.MemoryKills, disk.Bytes(s.limits.Memory)))
	}
	if state.Refusals > 0 {
		notes = append(notes, fmt.Sprintf("%d times a process was not started, since it had as many as its limit of %d allows", state.Refusals, s.limits.Processes))
	}
	return notes
}

// Roles lists the login roles of a branch with their passwords.
func (s *Service) Roles(ctx context.Context, project, branch string) ([]pgbough.Role, error) {
	_, b, err := s.find(ctx, project, branch)
	if err != nil {
		return nil, err
	}
	return s.catalog.Roles(ctx, b.ID)
}

// Connection tells how to connect to a branch. It wakes nothing, but for a
// branch that was stopped because it filled the pool: if there is room again, it
// is started.
func (s *Service) Connection(ctx context.Context, project, branch, role, database string) (pgbough.Connection, error) {
	p, b, err := s.find(ctx, project, branch)
	if err != nil {
		return pgbough.Connection{}, err
	}
	switch {
	case b.ID == p.RootBranchID:
		return pgbough.Connection{}, pgbough.Errorf(pgbough.EConflict, "%s is the root branch, which follows production; nobody connects to it", b.Name).
			WithHint("make a branch of it: pgbough branch create NAME")
	case b.State != pgbough.BranchReady:
		return pgbough.Connection{}, pgbough.Errorf(pgbough.ELocked, "branch %s is %s", b.Name, b.State).WithHint("pgbough ops shows how far it is")
	}
	roles, err := s.catalog.Roles(ctx, b.ID)
	if err != nil {
		return pgbough.Connection{}, err
	}
	if role == "" {
		role = p.DefaultRole
	}
	if database == "" {
		database = p.DefaultDatabase
	}
	i := slices.IndexFunc(roles, func(r pgbough.Role) bool { return r.Name == role })
	if i < 0 {
		return pgbough.Connection{}, pgbough.Errorf(pgbough.ENotFound, "branch %s has no login role %q of production's", b.Name, role).
			WithHint("it has: %s", names(roles))
	}
	if err := s.resume(ctx, p, b); err != nil {
		return pgbough.Connection{}, err
	}
	return s.endpoint.connection(b, role, roles[i].Password, database), nil
}

// connection is how a client reaches a branch through the proxy.
func (e Endpoint) connection(b pgbough.Branch, role, password, database string) pgbough.Connection {
	c := pgbough.Connection{Host: e.Host, Port: e.Port, Role: role, Password: password, Database: database}
	query := url.Values{}
	if host := e.host(b); host != "" {
		c.Host, c.SSLMode = host, "require"
		query.Set("sslmode", c.SSLMode)
	} else {
		c.Options = "endpoint=" + b.EndpointID
		query.Set("options", c.Options)
	}
	u := url.URL{
		Scheme: "postgresql", User: url.UserPassword(role, password), Host: net.JoinHostPort(c.Host, c.Port), Path: "/" + database,
		RawQuery: query.Encode(),
	}
	c.URI = u.String()
	return c
}

// host is the name that leads to one branch; empty without a domain.
func (e Endpoint) host(b pgbough.Branch) string {
	if e.Domain == "" || b.EndpointID == "" {
		return ""
	}
	return b.EndpointID + "." + e.Domain
}

func names(roles []pgbough.Role) string {
	out := ""
	for i, r := range roles {
		if i == 20 {
			return out + fmt.Sprintf(" and %d more", len(roles)-i)
		}
		if i > 0 {
			out += ", "
		}
		out += r.Name
	}
	return out
}

// Log opens the log of a branch's Postgres; the root's is the follower's.
func (s *Service) Log(ctx context.Context, project, branch string, follow bool) (io.ReadCloser, error) {
	p, b, err := s.find(ctx, project, branch)
	if err != nil {
		return nil, err
	}
	if b.VolumeID == "" {
		return nil, pgbough.Errorf(pgbough.ELocked, "branch %s is still being made and has no log", b.Name)
	}
	cfg, err := s.place(p, b.VolumeID)
	if err != nil {
		return nil, err
	}
	f, err := os.Open(cfg.LogFile())
	if err != nil {
		return nil, fmt.Errorf("open the log of branch %s: %w", b.Name, err)
	}
	if !follow {
		return f, nil
	}
	return &tail{ctx: ctx, file: f}, nil
}

// tail reads a file that grows until its context ends.
type tail struct {
	ctx  context.Context
	file *os.File
}

func (t *tail) Read(b []byte) (int, error) {
	for {
		n, err := t.file.Read(b)
		if n > 0 || err != nil && err != io.EOF {
			return n, err
		}
		if err := t.again(); err != nil {
			return 0, err
		}
		pause(t.ctx, 200*time.Millisecond)
		if t.ctx.Err() != nil {
			return 0, io.EOF
		}
	}
}

// again goes to the start of a log that has begun anew (capLog).
func (t *tail) again() error {
	at, err := t.file.Seek(0, io.SeekCurrent)
	if err != nil {
		return err
	}
	info, err := t.file.Stat()
	if err != nil || info.Size() >= at {
		return err
	}
	_, err = t.file.Seek(0, io.SeekStart)
	return err
}

func (t *tail) Close() error { return t.file.Close() }
