//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"github.com/pgbough/pgbough"
	"github.com/pgbough/pgbough/internal/catalog"
	"github.com/pgbough/pgbough/internal/credential"
	"github.com/pgbough/pgbough/internal/postgres"
	"github.com/pgbough/pgbough/internal/sandbox"
	"github.com/pgbough/pgbough/internal/volume"
	"github.com/pgbough/pgbough/internal/volume/storage"
)

// noPool is what --pool is told of a pool that is gone.
const noPool = "none"

type uninstallCommand struct {
	globals      *globals
	data, pool   string
	uid          int
	yes, abandon bool
}

// newUninstallCommand is `pgbough uninstall`: the end of what `pgbough server` began.
func newUninstallCommand(g *globals) *cobra.Command {
	c := &uninstallCommand{globals: g}
	cmd := &cobra.Command{
		Use:   "uninstall --data DIR",
		Short: "Remove all that a server has made on this machine",
		Long: `Removes all that a server has made on this machine: every branch and follower, what
still runs of them with its cgroups, the pool with its image, mount and loop device,
and the data directory with its keys. It says what goes, and asks first. What else is
in these directories stays.

It refuses while the server runs, and while a project is there: delete that first with
"pgbough project delete", which drops the slot on production. Where that is not possible
any more, --abandon goes on, and says what is left to do on production.`,
		Example: "  pgbough project delete shop\n  systemctl disable --now pgbough\n  pgbough uninstall --data /var/lib/pgbough",
		Args:    cobra.NoArgs,
		RunE:    func(cmd *cobra.Command, _ []string) error { return c.run(cmd.Context()) },
	}
	f := cmd.Flags()
	f.StringVar(&c.data, "data", envOr("PGBOUGH_DATA", "/var/lib/pgbough"), "data directory (PGBOUGH_DATA)")
	f.StringVar(&c.pool, "pool", storage.Auto, "as the server was told; none if the pool is gone")
	f.IntVar(&c.uid, "uid", defaultUID, "as the server was told")
	f.BoolVar(&c.abandon, "abandon", false, "also if projects still follow production")
	f.BoolVar(&c.yes, "yes", false, "do not ask")
	return cmd
}

// installed is what there is to remove.
type installed struct {
	data     string
	catalog  *catalog.Catalog // open, so that no server starts
	projects []pgbough.Project
	pool     storage.Config
	choice   storage.Choice
	found    bool     // the pool is there, at choice
	lock     *os.File // of the pool; nil when it is not mounted
}

func (c *uninstallCommand) run(ctx context.Context) error {
	if os.Geteuid() != 0 {
		return pgbough.Errorf(pgbough.EInvalid, "only root can remove what the server has made").WithHint("run it with sudo")
	}
	log := slog.New(slog.NewTextHandler(c.globals.io.Err, &slog.HandlerOptions{Level: slog.LevelWarn}))
	in := &installed{}
	defer in.close()
	if err := c.find(ctx, in, log); err != nil {
		return err
	}
	c.describe(in)
	if !c.yes {
		if err := c.globals.confirm("Type the data directory to go on", in.data); err != nil {
			return err
		}
	}
	if err := c.endAll(ctx, in, log); err != nil {
		return err
	}
	if in.lock != nil {
		_ = in.lock.Close() // open, it would keep the pool mounted
		in.lock = nil
	}
	if in.found {
		if err := storage.Remove(ctx, in.pool); err != nil {
			return err
		}
	}
	left, err := in.removeFiles()
	if err != nil {
		return err
	}
	if len(left) > 0 {
		c.globals.talk("These are not pgbough's and stay: %s", strings.Join(left, ", "))
	}
	c.globals.talk("Removed. Left are this program, its systemd unit, and on production the role and its lines in pg_hba.conf.")
	return nil
}

// find opens the catalog, which no server may use, and looks for what belongs to it.
func (c *uninstallCommand) find(ctx context.Context, in *installed, log *slog.Logger) (err error) {
	if in.data, err = filepath.Abs(c.data); err != nil {
		return err
	}
	if _, err := os.Lstat(filepath.Join(in.data, "catalog.lock")); err != nil {
		return pgbough.Errorf(pgbough.ENotFound, "%s is no data directory of a pgbough server: %w", in.data, err).WithHint("name the right one with --data")
	}
	key, err := credential.EnsureKey(filepath.Join(in.data, "secret.key"))
	if err != nil {
		return err
	}
	if in.catalog, err = catalog.Open(ctx, filepath.Join(in.data, "catalog.db"), key); err != nil {
		return err
	}
	if in.projects, err = in.catalog.Projects(ctx); err != nil {
		return err
	}
	if len(in.projects) > 0 && !c.abandon {
		return pgbough.Errorf(pgbough.EConflict, "project %s still follows its production, which keeps WAL in slot %s for it", in.projects[0].Name, in.projects[0].Source.Slot).
			WithHint("start the server and run `pgbough project delete %s`; where production is gone: --abandon", in.projects[0].Name)
	}
	return c.findPool(ctx, in, log)
}

func (c *uninstallCommand) findPool(ctx context.Context, in *installed, log *slog.Logger) error {
	if c.pool == noPool {
		return nil
	}
	id, err := in.catalog.PoolID(ctx)
	if err != nil {
		return err
	}
	in.pool = storage.Config{DataDir: in.data, Want: c.pool, CatalogID: in.catalog.ID(), PoolID: id, UID: c.uid, GID: c.uid, Log: log}
	if in.choice, err = storage.Choose(ctx, in.data, c.pool); err != nil {
		return err
	}
	switch there, err := volume.ReadIdentity(in.choice.Dir); {
	case err == nil && id != "" && there.ID != id:
		return pgbough.Errorf(pgbough.EConflict, "the pool in %s is %s, and that of %s is %s", in.choice.Dir, there.ID, in.data, id).
			WithHint("give --pool as the server was told")
	case err == nil:
		in.found = true
		in.lock, err = lockPool(in.choice.Dir)
		return err
	case !errors.Is(err, fs.ErrNotExist):
		return err
	}
	if _, err := os.Lstat(in.choice.Image); in.choice.Image != "" && err == nil {
		in.found = true // and not mounted
	}
	if !in.found && id != "" {
		return pgbough.Errorf(pgbough.EConflict, "pool %s is not in %s", id, in.choice.Dir).
			WithHint("give --pool as the server was told; if the pool is gone: --pool none")
	}
	return nil
}

// describe says what goes, and what is left to do on production.
func (c *uninstallCommand) describe(in *installed) {
	c.globals.talk("This removes from this machine, for good:")
	c.globals.talk("  %s, with catalog and keys", in.data)
	if in.found && in.choice.Image != "" {
		c.globals.talk("  %s, the pool with all branches", in.choice.Image)
	} else if in.found {
		c.globals.talk("  the pool in %s with all branches", in.choice.Dir)
	}
	for _, p := range in.projects {
		c.globals.talk("Project %s is abandoned. If its production still is there, run on it: SELECT pg_drop_replication_slot('%s');", p.Name, p.Source.Slot)
	}
}

// endAll ends every Postgres of this server that still runs, and removes the cgroups.
func (c *uninstallCommand) endAll(ctx context.Context, in *installed, log *slog.Logger) (err error) {
	launcher, err := sandbox.New(sandbox.Options{Credential: postgres.Credential{UID: c.uid, GID: c.uid}, Log: log})
	if err != nil {
		return err
	}
	defer func() {
		if err = errors.Join(err, launcher.Close()); err == nil {
			err = launcher.RemoveGroups()
		}
	}()
	ids, err := launcher.List(ctx)
	if err != nil {
		return err
	}
	for _, id := range ids {
		if !in.has(id) {
			continue // of another server
		}
		proc, ok, err := launcher.Find(ctx, id)
		if err == nil && ok {
			err = proc.Kill(ctx)
		}
		if err != nil {
			return fmt.Errorf("end the Postgres on volume %s: %w", id, err)
		}
	}
	return nil
}

// has tells whether a volume is this server's.
func (in *installed) has(id string) bool {
	_, err := os.Lstat(filepath.Join(in.data, "run", id))
	if err != nil && in.found {
		_, err = os.Lstat(filepath.Join(in.choice.Dir, "volumes", id))
	}
	return err == nil
}

// removeFiles removes what a server makes in its data directory. The lock goes
// last: as long as it is there, the same command can be given again. It returns what is left.
func (in *installed) removeFiles() (left []string, err error) {
	if in.found {
		_ = os.Remove(filepath.Join(in.choice.Dir, "pool.lock")) // gone with an image
	}
	_ = os.Remove(filepath.Join(in.data, "pool")) // fails if something else is in it
	for _, name := range []string{"run", "archive", "pool.img.tmp", "admin.key", "ca.pem", "ca.crt", "catalog.db-wal", "catalog.db-shm", "catalog.db", "secret.key", "catalog.lock"} {
		if err := os.RemoveAll(filepath.Join(in.data, name)); err != nil {
			return nil, err
		}
	}
	entries, err := os.ReadDir(in.data)
	if err != nil {
		return nil, err
	}
	for _, e := range entries {
		left = append(left, filepath.Join(in.data, e.Name()))
	}
	if len(left) == 0 {
		err = os.Remove(in.data)
	}
	return left, err
}

func (in *installed) close() {
	if in.lock != nil {
		_ = in.lock.Close() // it has no content
	}
	if in.catalog != nil {
		_ = in.catalog.Close() // nothing was written; its files may be gone
	}
}
