package branch

import (
	"context"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/pgbough/pgbough"
	"github.com/pgbough/pgbough/internal/follower"
	"github.com/pgbough/pgbough/internal/postgres"
)

// hurry lets a taken spare flush nothing until it is promoted. A promotion
// writes a whole WAL segment anew (xlog.c, XLogInitNewTimeline), and waiting for
// the disk is most of what it takes. Nothing is lost: quarantine's step makes all
// of it durable that is not zero (Standby.TrimSegment), at the same time as it
// works, and switches fsync on again, before the branch is published. A restartpoint
// meanwhile would believe its files durable; a spare has none.
func (s *Service) hurry(ctx context.Context, r *createRun, spare *follower.Standby) error {
	p, err := s.catalog.Project(ctx, r.ProjectID)
	if err != nil {
		return err
	}
	return spare.Reload(s.spareSettings(p, s.inside(spare.Config()), fromNouns(r.State.Settings)) +
		postgres.File("until quarantine has run", []postgres.Param{{Name: "fsync", Value: "off"}}))
}

// sameBoot refuses to go on with a spare that was taken before the machine went
// down: hurry may have cost it the end of its WAL, though not the pages that came
// after it.
func sameBoot(taken string) error {
	now, err := bootID()
	if err != nil || now == taken {
		return err
	}
	return pgbough.Errorf(pgbough.EInternal, "the machine went down while the branch was being made").WithHint("make it again")
}

// bootID names the present run of the machine's kernel.
func bootID() (string, error) {
	id, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return "", fmt.Errorf("ask for the machine's boot: %w", err)
	}
	return strings.TrimSpace(string(id)), nil
}

const (
	// clockMargin is how much earlier than it was a write may be stamped.
	clockMargin = time.Minute
	// clockTick is the same without a clock that is set: each file more costs a
	// flush that somebody waits for, and settle flushes all of them again.
	clockTick = 20 * time.Millisecond
)

// hardenAll makes durable what quarantine wrote, with fsync still off or while
// not every process had read that it is on again: what has changed since the
// first flush began. A checkpoint of that time took files for durable that are
// not: then all of them are made so.
func (s *Service) hardenAll(ctx context.Context, r *createRun, spare *follower.Standby, since time.Time) error {
	pos, err := spare.Position(ctx)
	if err != nil {
		return err
	}
	if pos.Redo >= r.State.Cut.LSN {
		s.log.InfoContext(ctx, "a checkpoint was faster than quarantine; flushing every file", "volume", r.State.VolumeID)
		err = postgres.SyncAll(spare.Config().DataDir)
	} else {
		err = postgres.SyncWAL(spare.Config().DataDir, since.Add(-clockTick))
	}
	if err != nil {
		return err
	}
	return spare.FillSegment(ctx)
}
