package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
)

// bytes measures what a branch from a spare owns once it has settled, against
// the pages that production changed since its checkpoint.
func (g *rig) bytes(ctx context.Context) error {
	if err := g.server.spare(ctx); err != nil {
		return err
	}
	redo, err := g.prod.text(ctx, "SELECT redo_lsn FROM pg_control_checkpoint()")
	if err != nil {
		return err
	}
	b, err := g.newBranch(ctx)
	if err != nil {
		return err
	}
	began := time.Now()
	if err := g.settled(ctx, b); err != nil {
		return err
	}
	trimmed := time.Since(began)
	pages, err := g.changed(ctx, redo, b.cut.String())
	if err != nil {
		return fmt.Errorf("count changed pages: %w", err)
	}
	const page = 8192
	// The next checkpoint's files are written back and the file system has shared its last.
	if _, err := output(ctx, nil, nil, "sync"); err != nil {
		return err
	}
	got, err := g.server.client.Branch(ctx, project, b.name)
	if err != nil {
		return err
	}
	wal, err := walBytes(b.dir)
	if err != nil {
		return err
	}
	one := func(key, measure, unit string, v float64) row { return newRow(key, measure, g.size, unit, sample{v}) }
	g.report.add(
		one("own_bytes", "own bytes of a branch from a spare, settled", unitBytes, float64(got.Branch.OwnBytes)).
			against("pages changed since production's checkpoint", float64(pages*page)).
			barred(bar{Text: "<= 1.2 x changed pages", Limit: 1.2, Of: "ratio"}).noted("logical size %s; its pg_wal is part of it", show(float64(got.Branch.LogicalBytes), unitBytes)),
		one("own_wal", "its pg_wal once trimmed", unitBytes, float64(wal)).noted("trimmed %s after the first query", trimmed.Round(100*time.Millisecond)))
	return g.server.remove(ctx, b.name)
}

// changed counts the distinct blocks that production's WAL from redo to end
// changes.
func (g *rig) changed(ctx context.Context, redo, end string) (int, error) {
	cmd := exec.CommandContext(ctx, g.prod.tool("pg_waldump"), "-p", filepath.Join(g.prod.data(), "pg_wal"), "-s", redo, "-e", end)
	cmd.Env, cmd.SysProcAttr = environment(), attributes(nobody())
	out, err := cmd.StdoutPipe()
	if err != nil {
		return 0, err
	}
	var errOut strings.Builder
	cmd.Stderr = &errOut
	if err := cmd.Start(); err != nil {
		return 0, err
	}
	n, err := blocks(out)
	if werr := cmd.Wait(); werr != nil {
		err = errors.Join(err, fmt.Errorf("pg_waldump: %w: %s", werr, last(errOut.String(), 3)))
	}
	return n, err
}

// blocks counts the distinct block references in the output of pg_waldump:
// "blkref #0: rel 1663/16384/16397 fork fsm blk 2", the main fork unnamed
// (xlogdesc.c, XLogRecGetBlockRefInfo).
func blocks(r io.Reader) (int, error) {
	seen := map[string]struct{}{}
	lines := bufio.NewScanner(r)
	lines.Buffer(nil, 16<<20) // a record with many subtransactions
	for lines.Scan() {
		rest := lines.Text()
		for {
			_, after, ok := strings.Cut(rest, "blkref #")
			if !ok {
				break
			}
			_, ref, _ := strings.Cut(after, ": ")
			rest = ref
			name, block, ok := strings.Cut(ref, " blk ")
			if !ok {
				continue
			}
			end := strings.IndexFunc(block, func(c rune) bool { return c < '0' || c > '9' })
			if end < 0 {
				end = len(block)
			}
			seen[name+" "+block[:end]] = struct{}{}
		}
	}
	return len(seen), lines.Err()
}
