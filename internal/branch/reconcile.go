package branch

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/pgbough/pgbough"
	"github.com/pgbough/pgbough/internal/operation"
	"github.com/pgbough/pgbough/internal/volume"
)

// reconcile brings what runs to what the catalog says, after any kind of end of
// the last server: followers, spares and computes are adopted or started, then
// unfinished operations go on. It removes nothing that an unfinished operation
// of this catalog does not name: whatever else is there is only listed.
func (s *Service) reconcile(ctx context.Context) error {
	projects, err := s.catalog.Projects(ctx)
	if err != nil {
		return err
	}
	for _, p := range projects {
		if p.State != pgbough.ProjectActive {
			continue // its attach or delete operation goes on by itself
		}
		if err := s.revive(ctx, p); err != nil {
			// One project that cannot go on must not keep the others from it.
			s.log.ErrorContext(ctx, "a project cannot be brought up", "project", p.Name, "err", err)
		}
	}
	s.cleanRunDir(ctx)
	if s.stuck = s.engine.Resume(ctx); s.stuck != nil {
		if !errors.Is(s.stuck, operation.ErrStuck) {
			return fmt.Errorf("resume operations: %w", s.stuck)
		}
		// What it works on stays as it is; everything else goes on.
		s.log.ErrorContext(ctx, "not everything goes on", "err", s.stuck)
	}
	if err := s.finishRequests(ctx, projects); err != nil {
		s.log.ErrorContext(ctx, "what an earlier request left cannot be cleaned up now", "err", err)
	}
	if projects, err = s.catalog.Projects(ctx); err != nil {
		return err
	}
	for _, p := range projects {
		if p.State == pgbough.ProjectActive { // also after the operations that were resumed
			s.startKeeper(p.ID)
		}
	}
	return nil
}

// finishRequests cleans up after a server that ended between two rows of one
// request: a branch or project without the operation that should make or remove
// it, and a spare whose refill or discard was never begun. Nobody was told of them.
func (s *Service) finishRequests(ctx context.Context, projects []pgbough.Project) error {
	ops, err := s.catalog.Unfinished(ctx)
	if err != nil {
		return err
	}
	busy := map[string]bool{} // projects, branches, volumes that something works on
	for _, op := range ops {
		if op.BranchID != "" {
			busy[op.BranchID] = true
		}
		volumes := volumesOf(op)
		for _, v := range volumes {
			busy[v] = true
		}
		if op.Kind == "create_branch" && len(volumes) < 2 {
			busy[""] = true // which spare it has taken, or will take, is not written down
		}
		if op.Kind == "attach_project" || op.Kind == "delete_project" {
			busy[op.ProjectID] = true
		}
	}
	for _, p := range projects {
		if busy[p.ID] {
			continue
		}
		if p.State != pgbough.ProjectActive {
			if _, err := s.engine.Start(ctx, "delete_project", operation.Request{ProjectID: p.ID}); err != nil {
				return err
			}
			continue
		}
		if err := s.finishRows(ctx, p, busy); err != nil {
			return err
		}
	}
	return nil
}

func (s *Service) finishRows(ctx context.Context, p pgbough.Project, busy map[string]bool) error {
	branches, err := s.catalog.Branches(ctx, p.ID)
	if err != nil {
		return err
	}
	for _, b := range branches {
		if b.State == pgbough.BranchReady || busy[b.ID] {
			continue
		}
		if _, err := s.engine.Start(ctx, "delete_branch", operation.Request{ProjectID: p.ID, BranchID: b.ID, State: deleteState{}}); err != nil {
			return err
		}
	}
	if busy[""] {
		return nil // an operation may hold a spare whose volume it has not written down yet: it finds it by itself
	}
	spares, err := s.catalog.Spares(ctx, p.ID)
	if err != nil {
		return err
	}
	for _, sp := range spares {
		if sp.State != pgbough.SpareReady && !busy[sp.VolumeID] {
			s.discardLater(ctx, p.ID, sp.VolumeID)
		}
	}
	return nil
}

func (s *Service) revive(ctx context.Context, p pgbough.Project) error {
	root, err := s.catalog.Branch(ctx, p.ID, p.RootBranchID)
	if err != nil {
		return err
	}
	f, err := s.follow(p, root.VolumeID)
	if err != nil {
		return err
	}
	spares, err := s.catalog.Spares(ctx, p.ID)
	if err != nil {
		return err
	}
	for _, sp := range spares {
		if sp.State != pgbough.SpareReady {
			continue // an unfinished operation names it
		}
		if _, err := s.startSpare(ctx, f, p.ID, sp.VolumeID, nil); err != nil {
			s.log.WarnContext(ctx, "a spare cannot be started; it will be replaced", "volume", sp.VolumeID, "err", err)
		}
	}
	branches, err := s.catalog.Branches(ctx, p.ID)
	if err != nil {
		return err
	}
	running, err := s.launcher.List(ctx)
	if err != nil {
		return err
	}
	for _, b := range branches {
		if b.State != pgbough.BranchReady || b.ID == p.RootBranchID {
			continue
		}
		if err := s.serveAgain(ctx, p, b, slices.Contains(running, b.VolumeID)); err != nil {
			s.log.ErrorContext(ctx, "a branch cannot be served", "branch", b.Name, "err", err)
		}
	}
	return nil
}

// cleanRunDir removes the run directories of volumes that are gone. They hold
// configuration, sockets and logs, no data.
func (s *Service) cleanRunDir(ctx context.Context) {
	entries, err := os.ReadDir(s.runDir)
	if err != nil {
		return
	}
	for _, e := range entries {
		if _, err := s.pool.Get(e.Name()); err == nil {
			continue
		}
		if _, running, err := s.launcher.Find(ctx, e.Name()); err != nil || running {
			continue
		}
		if err := os.RemoveAll(filepath.Join(s.runDir, e.Name())); err != nil {
			s.log.WarnContext(ctx, "a run directory cannot be removed", "volume", e.Name(), "err", err)
		}
	}
}

// sweep deletes expired branches: every one goes within a minute of its time.
func (s *Service) sweep() {
	ticker := time.NewTicker(20 * time.Second)
	defer ticker.Stop()
	for {
		select {
		case <-s.ctx.Done():
			return
		case <-ticker.C:
		}
		s.capLogs()
		projects, err := s.catalog.Projects(s.ctx)
		if err != nil {
			s.log.WarnContext(s.ctx, "expired branches cannot be looked for", "err", err)
			continue
		}
		for _, p := range projects {
			s.expire(p)
		}
	}
}

func (s *Service) expire(p pgbough.Project) {
	branches, err := s.catalog.Branches(s.ctx, p.ID)
	if err != nil {
		s.log.WarnContext(s.ctx, "expired branches cannot be looked for", "project", p.Name, "err", err)
		return
	}
	for _, b := range branches {
		if b.ExpiresAt.IsZero() || time.Now().Before(b.ExpiresAt) || b.State != pgbough.BranchReady {
			continue
		}
		s.log.InfoContext(s.ctx, "a branch has expired", "branch", b.Name, "expired_at", b.ExpiresAt)
		_, err := s.engine.Start(s.ctx, "delete_branch", operation.Request{ProjectID: p.ID, BranchID: b.ID, State: deleteState{}})
		if err != nil && s.ctx.Err() == nil {
			s.log.WarnContext(s.ctx, "an expired branch cannot be deleted yet", "branch", b.Name, "err", err)
		}
	}
}

// Notes are what a person should know of this server: what is in the pool or
// runs here that the catalog does not know.
func (s *Service) notes(ctx context.Context, entries []volume.Entry, owners map[string]string) []string {
	notes := slices.Clone(s.machine)
	if s.stuck != nil {
		notes = append(notes, s.stuck.Error())
	}
	for _, e := range entries {
		_, known := owners[e.ID]
		if _, err := s.pool.Get(e.ID); !known && !errors.Is(err, volume.ErrNotExist) { // gone since, or not finished
			notes = append(notes, fmt.Sprintf("volume %s is one that the catalog does not know: see pgbough pool, and pgbough pool prune", e.ID))
		}
	}
	ids, err := s.launcher.List(ctx)
	if err != nil {
		return append(notes, "running Postgres processes cannot be listed: "+err.Error())
	}
	for _, id := range ids {
		// Other servers on this machine have run directories of their own.
		_, known := owners[id]
		if _, err := os.Stat(filepath.Join(s.runDir, id)); !known && err == nil {
			notes = append(notes, fmt.Sprintf("a Postgres runs on volume %s, which the catalog does not know", id))
		}
	}
	return notes
}
