package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/pgbough/pgbough/client"
)

const project = "shop"

// server is the pgbough that is measured: the built binary, used through its API.
type server struct {
	binary, dir string
	api         string
	args        []string
	process     *daemon
	client      *client.Client
}

func startServer(ctx context.Context, o options, dir string, size float64) (_ *server, err error) {
	binary, err := filepath.Abs(o.binary)
	if err != nil {
		return nil, err
	}
	port, err := freePort()
	if err != nil {
		return nil, err
	}
	proxy, err := freePort()
	if err != nil {
		return nil, err
	}
	poolSize := o.poolSize
	if poolSize == "" {
		poolSize = fmt.Sprintf("%.0fGB", 16+2.5*size)
	}
	s := &server{binary: binary, dir: dir, api: fmt.Sprintf("127.0.0.1:%d", port)}
	s.args = append([]string{"server", "--data", s.data(), "--api", s.api, "--proxy", fmt.Sprintf("127.0.0.1:%d", proxy), "--pool", o.pool, "--pool-size", poolSize}, o.serverArgs...)
	if err := os.Mkdir(dir, 0o755); err != nil {
		return nil, err
	}
	if err := s.start(ctx); err != nil {
		return nil, errors.Join(err, s.stop())
	}
	key, err := os.ReadFile(filepath.Join(s.data(), client.KeyFile))
	if err == nil {
		s.client, err = client.New(s.api, strings.TrimSpace(string(key)), nil)
	}
	if err != nil {
		return nil, errors.Join(err, s.stop())
	}
	return s, nil
}

func (s *server) data() string { return filepath.Join(s.dir, "d") }

// runDir is where the Postgres on a volume has its configuration and socket.
func (s *server) runDir(volume string) string { return filepath.Join(s.data(), "run", volume) }

func (s *server) start(ctx context.Context) (err error) {
	log := filepath.Join(s.dir, "server.log")
	earlier := len(readText(log))
	if s.process, err = launch(nil, log, s.binary, s.args...); err != nil {
		return err
	}
	return until(ctx, 2*time.Minute, 50*time.Millisecond, "the server is ready", func() (bool, error) {
		if !s.process.running() {
			return false, fmt.Errorf("the server ended: %s", s.process.tail(5))
		}
		b, err := os.ReadFile(log)
		return strings.Contains("\n"+string(b[min(earlier, len(b)):]), "\nready "), err
	})
}

// stop ends the server and everything that it runs. One that died is started
// once more for that.
func (s *server) stop() error {
	ctx, cancel := context.WithTimeout(context.Background(), 3*time.Minute)
	defer cancel()
	var errs []error
	if !s.process.running() {
		errs = append(errs, errors.New("the server had ended by itself"), s.start(ctx))
	}
	errs = append(errs, s.process.stop(syscall.SIGTERM, 2*time.Minute), s.unmount())
	return errors.Join(errs...)
}

// unmount removes what a server that stopped in disorder has left mounted.
func (s *server) unmount() error {
	mounts, err := os.ReadFile("/proc/self/mounts")
	if err != nil {
		return err
	}
	var errs []error
	for line := range strings.Lines(string(mounts)) {
		if at := strings.Fields(line)[1]; strings.HasPrefix(at, s.dir+"/") {
			errs = append(errs, fmt.Errorf("%s was still mounted", at), unix.Unmount(at, unix.MNT_DETACH))
		}
	}
	return errors.Join(errs...)
}

// cli runs a command of pgbough.
func (s *server) cli(ctx context.Context, args ...string) (string, error) {
	return output(ctx, nil, []string{"PGBOUGH_DATA=" + s.data(), "PGBOUGH_API=http://" + s.api}, s.binary, args...)
}

func (s *server) status(ctx context.Context) (client.ProjectStatus, client.Status, error) {
	st, err := s.client.Status(ctx)
	if err != nil || len(st.Projects) == 0 {
		return client.ProjectStatus{}, st, errors.Join(err, ctx.Err())
	}
	return st.Projects[0], st, nil
}

// spare waits until the wanted spares are ready and none is being made or will
// soon be: the server renews one whose redo point is behind the follower's by
// more than renewal.
func (s *server) spare(ctx context.Context) error {
	const renewal = 64 << 20
	return until(ctx, 10*time.Minute, 100*time.Millisecond, "a fresh spare is ready", func() (bool, error) {
		p, _, err := s.status(ctx)
		if err != nil {
			return false, err
		}
		ready := 0
		for _, sp := range p.Spares.List {
			switch {
			case sp.State != "ready":
				return false, nil
			case p.Follower.RedoLSN.Sub(sp.RedoLSN) <= renewal:
				ready++
			}
		}
		return ready > 0 && ready >= p.Spares.Wanted, nil
	})
}

// root is the follower's volume.
func (s *server) root(ctx context.Context) (string, error) {
	p, err := s.client.Project(ctx, project)
	if err != nil {
		return "", err
	}
	b, err := s.client.Branch(ctx, project, p.Project.RootBranchID)
	if err != nil {
		return "", err
	}
	return b.Branch.Path, nil
}

// remove deletes a branch.
func (s *server) remove(ctx context.Context, name string) error {
	_, err := s.client.DeleteBranch(ctx, project, name, false, nil)
	return err
}
