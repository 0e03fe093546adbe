package branch

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"time"

	"github.com/pgbough/pgbough"
	"github.com/pgbough/pgbough/internal/catalog"
	"github.com/pgbough/pgbough/internal/operation"
	"github.com/pgbough/pgbough/internal/replication"
	"github.com/pgbough/pgbough/internal/volume"
)

type attachState struct {
	VolumeID string `json:"volume_id"`
	BranchID string `json:"branch_id"`
	Bytes    int64  `json:"bytes,omitempty"` // of production, as check saw it
}

type attachRun = operation.Run[attachState]

// attachKind makes a project: a slot and a base backup of production, a standby
// that streams from it, and the first spare. What fails is undone, so that
// attach can simply be run again.
func (s *Service) attachKind() operation.Kind {
	return operation.Define("attach_project",
		operation.Step[attachState]{Name: "slot", Do: s.makeSlot, Undo: s.dropSlot},
		operation.Step[attachState]{Name: "base_backup", Do: s.baseBackup, Undo: s.dropRoot},
		operation.Step[attachState]{Name: "follow", Do: s.startFollowing, Undo: func(ctx context.Context, r *attachRun) error {
			return s.unfollow(ctx, r.ProjectID)
		}},
		operation.Step[attachState]{Name: "publish", Do: s.publishProject, Undo: s.stopProject},
		operation.Step[attachState]{Name: "spare", Do: s.firstSpare},
	).ProjectWide()
}

func (s *Service) makeSlot(ctx context.Context, r *attachRun) error {
	p, err := s.catalog.Project(ctx, r.ProjectID)
	if err != nil || p.Source.Slot == "" {
		return err
	}
	r.Progress(pgbough.Progress{Message: "making a replication slot on production"})
	conn, err := replication.Connect(ctx, p.Source.ConnString, applicationName)
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close(context.WithoutCancel(ctx)) }()
	return replication.CreateSlot(ctx, conn, p.Source.Slot)
}

// dropSlot is the last step of an undone attach: with it goes the project.
func (s *Service) dropSlot(ctx context.Context, r *attachRun) error {
	p, err := s.catalog.Project(ctx, r.ProjectID)
	if err != nil {
		if pgbough.ErrorCode(err) == pgbough.ENotFound {
			return nil
		}
		return err
	}
	if err := s.leaveSource(ctx, r, p); err != nil {
		return err
	}
	return s.forgetProject(ctx, p)
}

// baseBackup copies production into the root volume. A copy that was broken off
// starts from the beginning.
func (s *Service) baseBackup(ctx context.Context, r *attachRun) error {
	p, err := s.catalog.Project(ctx, r.ProjectID)
	if err != nil {
		return err
	}
	if err := s.destroy(ctx, r.State.VolumeID); err != nil {
		return err
	}
	if err := s.pool.CheckSpace(r.State.Bytes + spareNeed); err != nil {
		return err
	}
	v, err := s.pool.Create(ctx, volume.Manifest{ID: r.State.VolumeID, ProjectID: p.ID, Project: p.Name, Role: volume.RoleRoot, Owner: r.State.BranchID})
	if err != nil {
		return err
	}
	root, err := os.OpenRoot(v.Data)
	if err != nil {
		return fmt.Errorf("open the root volume: %w", err)
	}
	defer func() { _ = root.Close() }()
	_, err = replication.BaseBackup(ctx, replication.BackupOptions{
		ConnString: p.Source.ConnString, Application: applicationName, Dir: root, UID: s.credential.UID, GID: s.credential.GID,
		MaxRate: p.Source.MaxRate, Label: "pgbough " + p.Name, Log: s.log,
		Progress: func(done, total int64) {
			message := "copying production"
			if done == 0 {
				message = "waiting for production's checkpoint, which is spread so that production does not notice"
			}
			r.Progress(pgbough.Progress{Message: message, Done: done, Total: total, Unit: "bytes"})
		},
	})
	if err != nil {
		return err
	}
	return s.makeStandby(v)
}

// makeStandby turns a base backup into a standby whose settings all come from
// us: production's postgresql.auto.conf is emptied, since it would win over our
// file (facts 5). What it meant is in pg_settings, and its passwords are nobody's.
func (s *Service) makeStandby(v volume.Volume) error {
	root, err := os.OpenRoot(v.Data)
	if err != nil {
		return fmt.Errorf("open the base backup: %w", err)
	}
	defer func() { _ = root.Close() }()
	if err := leaveOut(root); err != nil {
		return err
	}
	for _, name := range []string{"postgresql.auto.conf", "standby.signal"} {
		f, err := root.OpenFile(name, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
		if err != nil {
			return fmt.Errorf("make %s: %w", name, err)
		}
		if err := errors.Join(f.Chown(s.credential.UID, s.credential.GID), f.Sync(), f.Close()); err != nil {
			return fmt.Errorf("make %s: %w", name, err)
		}
	}
	return nil
}

// leaveOut removes what lies in production's data directory and is not the
// database: its configuration, keys, server logs, and statistics files, which
// hold statements with their constants (pg_stat_statements). Branches see none of it.
func leaveOut(root *os.Root) error {
	dir, err := fs.ReadDir(root.FS(), ".")
	if err != nil {
		return fmt.Errorf("look at the base backup: %w", err)
	}
	keep := []string{"PG_VERSION", "backup_label", "tablespace_map", "postgresql.auto.conf"}
	for _, e := range dir {
		drop := !e.IsDir() && !slices.Contains(keep, e.Name()) || e.Name() == "log" || e.Name() == "pg_log"
		if !drop {
			continue
		}
		if err := root.RemoveAll(e.Name()); err != nil {
			return fmt.Errorf("leave out production's %s: %w", e.Name(), err)
		}
	}
	stats, err := fs.ReadDir(root.FS(), "pg_stat")
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("look at the base backup: %w", err)
	}
	for _, e := range stats {
		if err := root.RemoveAll("pg_stat/" + e.Name()); err != nil {
			return fmt.Errorf("leave out production's statistics: %w", err)
		}
	}
	return nil
}

func (s *Service) dropRoot(ctx context.Context, r *attachRun) error {
	return s.destroy(ctx, r.State.VolumeID)
}

func (s *Service) startFollowing(ctx context.Context, r *attachRun) error {
	p, err := s.catalog.Project(ctx, r.ProjectID)
	if err != nil {
		return err
	}
	r.Progress(pgbough.Progress{Message: "starting the follower"})
	f, err := s.follow(p, r.State.VolumeID)
	if err != nil {
		return err
	}
	s.freshSettings(ctx, p.ID, f)
	ctx, cancel := context.WithTimeout(ctx, time.Hour)
	defer cancel()
	return f.WaitStreaming(ctx)
}

// publishProject makes the project visible as active, with its root branch.
func (s *Service) publishProject(ctx context.Context, r *attachRun) error {
	p, err := s.catalog.Project(ctx, r.ProjectID)
	if err != nil {
		return err
	}
	if _, err := s.follow(p, r.State.VolumeID); err != nil { // after a restart nobody does yet
		return err
	}
	err = s.catalog.Tx(ctx, func(tx *catalog.Tx) error {
		p, err := tx.Project(r.ProjectID)
		if err != nil || p.State == pgbough.ProjectActive {
			return err
		}
		p.State, p.RootBranchID = pgbough.ProjectActive, r.State.BranchID
		root := pgbough.Branch{
			ID: r.State.BranchID, ProjectID: p.ID, Name: pgbough.RootBranchName, State: pgbough.BranchReady,
			VolumeID: r.State.VolumeID, CreatedAt: time.Now(), Settled: true,
		}
		return errors.Join(tx.CreateBranch(root), tx.UpdateProject(p))
	})
	if err != nil {
		return err
	}
	s.startKeeper(r.ProjectID)
	return nil
}

// stopProject makes the project one that is going away before anything of it
// goes: a server that is started in the middle of it follows and keeps nothing.
func (s *Service) stopProject(ctx context.Context, r *attachRun) error {
	_, err := s.catalog.ChangeProject(ctx, r.ProjectID, func(p *pgbough.Project) error {
		p.State = pgbough.ProjectDeleting
		return nil
	})
	if err != nil {
		return err
	}
	s.stopKeeper(r.ProjectID)
	if err := s.stopRefills(ctx, r.ProjectID); err != nil {
		return err
	}
	spares, err := s.catalog.Spares(ctx, r.ProjectID)
	if err != nil {
		return err
	}
	for _, sp := range spares {
		if err := s.removeSpare(ctx, r.ProjectID, sp.VolumeID); err != nil {
			return err
		}
	}
	if err := errors.Join(s.removePoints(ctx, r.ProjectID), s.removeHistory(ctx, r.ProjectID, r.State.VolumeID)); err != nil {
		return err
	}
	return s.catalog.Tx(ctx, func(tx *catalog.Tx) error { return tx.DeleteBranch(r.State.BranchID) })
}

// stopRefills undoes the refills, points and clones of a project that are under way.
func (s *Service) stopRefills(ctx context.Context, projectID string) error {
	ops, err := s.catalog.Unfinished(ctx)
	if err != nil {
		return err
	}
	for _, op := range ops {
		begun := op.Kind == "refill_spare" || op.Kind == "make_point" || op.Kind == "clone_point" || op.Kind == "keep_point"
		if op.ProjectID != projectID || !begun && op.Kind != "discard_spare" && op.Kind != "discard_point" && op.Kind != "drop_point" {
			continue
		}
		if begun {
			// One that has just finished cannot be cancelled; its spare is removed with the others.
			if err := s.engine.Cancel(ctx, op.ID); err != nil && pgbough.ErrorCode(err) != pgbough.EConflict {
				return err
			}
		}
		if _, err := s.engine.Wait(ctx, op.ID); err != nil && ctx.Err() != nil {
			return err
		}
	}
	return nil
}

func (s *Service) firstSpare(ctx context.Context, r *attachRun) error {
	r.Progress(pgbough.Progress{Message: "making the first spare"})
	ctx, cancel := context.WithTimeout(ctx, time.Hour)
	defer cancel()
	began := time.Now()
	for {
		spares, err := s.catalog.Spares(ctx, r.ProjectID)
		if err != nil {
			return err
		}
		for _, sp := range spares {
			if sp.State == pgbough.SpareReady {
				return nil
			}
		}
		if err := s.hopeless(r.ProjectID, began); err != nil {
			return err
		}
		s.wakeKeeper(r.ProjectID)
		if err := s.spareReady(ctx, r.ProjectID); err != nil {
			return fmt.Errorf("wait for the first spare: %w", err)
		}
	}
}

// forgetProject removes a project's rows, when nothing else of it is left.
func (s *Service) forgetProject(ctx context.Context, p pgbough.Project) error {
	return s.catalog.Tx(ctx, func(tx *catalog.Tx) error { return tx.DeleteProject(p.ID) })
}

// deleteProjectKind stops following a production and removes everything of the
// project: branches, spares, the root, the slot. It is never undone.
func (s *Service) deleteProjectKind() operation.Kind {
	noted := func(name string, do func(context.Context, *attachRun, pgbough.Project) error) operation.Step[attachState] {
		return operation.Step[attachState]{Name: name, Final: true, Do: func(ctx context.Context, r *attachRun) error {
			p, err := s.catalog.Project(ctx, r.ProjectID)
			if pgbough.ErrorCode(err) == pgbough.ENotFound {
				return nil
			} else if err != nil {
				return err
			}
			return do(ctx, r, p)
		}}
	}
	step := func(name string, do func(context.Context, pgbough.Project) error) operation.Step[attachState] {
		return noted(name, func(ctx context.Context, _ *attachRun, p pgbough.Project) error { return do(ctx, p) })
	}
	return operation.Define("delete_project",
		step("branches", s.deleteBranches),
		step("spares", func(ctx context.Context, p pgbough.Project) error {
			s.stopKeeper(p.ID)
			if err := s.stopRefills(ctx, p.ID); err != nil {
				return err
			}
			spares, err := s.catalog.Spares(ctx, p.ID)
			if err != nil {
				return err
			}
			for _, sp := range spares {
				if err := s.removeSpare(ctx, p.ID, sp.VolumeID); err != nil {
					return err
				}
			}
			return s.removePoints(ctx, p.ID)
		}),
		step("follower", func(ctx context.Context, p pgbough.Project) error { return s.unfollow(ctx, p.ID) }),
		noted("slot", s.leaveSource),
		step("forget", s.forgetRoot),
	).ProjectWide()
}

func (s *Service) deleteBranches(ctx context.Context, p pgbough.Project) error {
	_, err := s.catalog.ChangeProject(ctx, p.ID, func(p *pgbough.Project) error {
		p.State = pgbough.ProjectDeleting
		return nil
	})
	if err != nil {
		return err
	}
	branches, err := s.catalog.Branches(ctx, p.ID)
	if err != nil {
		return err
	}
	for _, b := range branches {
		if b.ID == p.RootBranchID {
			continue
		}
		s.unsettle(b.ID)
		if b.VolumeID != "" {
			if err := s.destroy(ctx, b.VolumeID); err != nil {
				return err
			}
		}
		if err := s.catalog.Tx(ctx, func(tx *catalog.Tx) error { return tx.DeleteBranch(b.ID) }); err != nil {
			return err
		}
	}
	return nil
}

// How long production is asked to let go of our slot, and how often.
const (
	leavePatience = 20 * time.Second
	leavePause    = 2 * time.Second
)

// leaveSource drops our slot on production. A production that is gone for good
// must not keep its project alive: then the statement is told instead, with the
// operation and in the log.
func (s *Service) leaveSource(ctx context.Context, r *attachRun, p pgbough.Project) error {
	if p.Source.Slot == "" {
		return nil
	}
	trying, cancel := context.WithTimeout(ctx, leavePatience)
	defer cancel()
	err := dropOurSlot(trying, p)
	for err != nil && trying.Err() == nil {
		r.Progress(pgbough.Progress{Message: "dropping the replication slot on production: " + err.Error()})
		pause(trying, leavePause)
		if trying.Err() == nil {
			err = dropOurSlot(trying, p)
		}
	}
	if err == nil || ctx.Err() != nil {
		return err
	}
	statement := "SELECT pg_drop_replication_slot('" + p.Source.Slot + "');"
	s.log.WarnContext(ctx, "the replication slot could not be dropped; if production still exists, drop it there", "statement", statement, "err", err)
	return r.Note(ctx, "production may still keep WAL for pgbough, since it could not be asked to drop the slot ("+err.Error()+"). If it still exists, run there: "+statement)
}

func dropOurSlot(ctx context.Context, p pgbough.Project) error {
	conn, err := replication.Connect(ctx, p.Source.ConnString, applicationName)
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close(context.WithoutCancel(ctx)) }() // it has done its work
	return replication.DropSlot(ctx, conn, p.Source.Slot)
}

func (s *Service) forgetRoot(ctx context.Context, p pgbough.Project) error {
	if p.RootBranchID != "" {
		root, err := s.catalog.Branch(ctx, p.ID, p.RootBranchID)
		if err != nil && pgbough.ErrorCode(err) != pgbough.ENotFound {
			return err
		}
		if err == nil {
			if err := s.removeHistory(ctx, p.ID, root.VolumeID); err != nil {
				return err
			}
			if err := s.destroy(ctx, root.VolumeID); err != nil {
				return err
			}
		}
	}
	return s.forgetProject(ctx, p)
}
