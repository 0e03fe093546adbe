package postgres

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"github.com/pgbough/pgbough"
)

// Files of PGDATA that tell how it is. The directory belongs to a possibly
// hostile user, who can only lie about his own Postgres with them.
const (
	pidFile     = "postmaster.pid"
	controlFile = "global/pg_control"

	statusLine   = 7  // of pidFile: "starting", "stopping", "ready" or "standby"
	stateOffset  = 16 // of ControlFileData.state, in every version since 9.4
	stateStopped = 1  // DB_SHUTDOWNED
	readyPoll    = time.Millisecond
)

// Dial connects to its private socket, where a process of this very sandbox
// answers. What follows is Postgres's own protocol, from the startup packet on.
func (s *Server) Dial(ctx context.Context) (net.Conn, error) {
	return s.dial(ctx, filepath.Join(s.cfg.SocketDir(), fmt.Sprintf(".s.PGSQL.%d", Port)))
}

// Ready waits, as WaitReady does, until it takes connections, and returns the
// first one, on which nothing was said yet. It looks at what the postmaster
// writes down of itself: a connection that comes too early costs the start time.
func (s *Server) Ready(ctx context.Context) (net.Conn, error) {
	root, err := os.OpenRoot(s.cfg.DataDir)
	if err != nil {
		return nil, fmt.Errorf("open the data directory: %w", err)
	}
	defer func() { _ = root.Close() }() // it was only read
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("wait until postgres answers: %w", context.Cause(ctx))
		case <-s.Done():
			return nil, s.ended()
		case <-timer.C:
		}
		switch postmasterStatus(root) {
		case "standby":
			return nil, pgbough.Errorf(pgbough.EInternal, "postgres on volume %s runs as a standby, since somebody has made a standby.signal in its data directory", s.cfg.ID).
				WithHint("remove that file")
		case "ready":
			conn, err := s.Dial(ctx)
			if err == nil {
				if err := s.lockSocketDir(); err != nil {
					return nil, errors.Join(err, conn.Close())
				}
				return conn, nil
			}
			s.log.DebugContext(ctx, "postgres does not answer yet", "volume", s.cfg.ID, "err", err)
		}
		timer.Reset(readyPoll)
	}
}

// postmasterStatus is empty while there is none.
func postmasterStatus(root *os.Root) string {
	text, err := readSome(root, pidFile, 1024)
	if err != nil {
		return ""
	}
	lines := bytes.Split(text, []byte("\n"))
	if len(lines) <= statusLine {
		return ""
	}
	return string(bytes.TrimSpace(lines[statusLine]))
}

// CleanlyStopped tells whether the Postgres that ran last on a data directory
// has finished its shutdown, so that its next start replays nothing.
func CleanlyStopped(dataDir string) (bool, error) {
	root, err := os.OpenRoot(dataDir)
	if err != nil {
		return false, fmt.Errorf("open the data directory: %w", err)
	}
	defer func() { _ = root.Close() }() // it was only read
	control, err := readSome(root, controlFile, stateOffset+4)
	if err != nil {
		return false, fmt.Errorf("read pg_control: %w", err)
	}
	if len(control) < stateOffset+4 {
		return false, fmt.Errorf("pg_control has only %d bytes", len(control))
	}
	return binary.NativeEndian.Uint32(control[stateOffset:]) == stateStopped, nil
}

// readSome reads the beginning of a file; one that is no file does not block it.
func readSome(root *os.Root, name string, limit int64) ([]byte, error) {
	f, err := root.OpenFile(name, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }() // it was only read
	return io.ReadAll(io.LimitReader(f, limit))
}

// forgetPostmaster removes what a postmaster that crashed wrote down of itself.
// The caller holds the volume's lock, so none runs.
func forgetPostmaster(dataDir string) error {
	root, err := os.OpenRoot(dataDir)
	if err != nil {
		return err
	}
	defer func() { _ = root.Close() }() // it was only asked
	if err := root.Remove(pidFile); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}
