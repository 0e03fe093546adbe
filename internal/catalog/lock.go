package catalog

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"github.com/pgbough/pgbough"
)

// lockFile takes the lock that one server holds on a catalog for its whole life.
// The kernel lets go of it when the process ends, however it does. The file
// says which process it is, for people.
func lockFile(path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600) // close-on-exec: no Postgres inherits it
	if err != nil {
		return nil, fmt.Errorf("lock the catalog: %w", err)
	}
	err = syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
	if errors.Is(err, syscall.EWOULDBLOCK) {
		err = pgbough.Errorf(pgbough.EConflict, "another pgbough server (%s) uses %s", holder(f), filepath.Dir(path)).
			WithHint("stop that one first, or name another directory with --data")
	}
	if err == nil {
		err = errors.Join(f.Truncate(0), writePID(f))
	}
	if err != nil {
		_ = f.Close()
		var e *pgbough.Error
		if errors.As(err, &e) {
			return nil, e
		}
		return nil, fmt.Errorf("lock the catalog: %w", err)
	}
	return f, nil
}

func writePID(f *os.File) error {
	_, err := f.WriteAt([]byte(strconv.Itoa(os.Getpid())+"\n"), 0)
	return err
}

func holder(f *os.File) string {
	b, err := io.ReadAll(io.LimitReader(f, 32))
	if pid := strings.TrimSpace(string(b)); err == nil && pid != "" {
		return "pid " + pid
	}
	return "its pid is not known"
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return fmt.Errorf("sync the catalog's directory: %w", err)
	}
	if err := errors.Join(d.Sync(), d.Close()); err != nil {
		return fmt.Errorf("sync the catalog's directory: %w", err)
	}
	return nil
}
