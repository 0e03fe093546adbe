package branch

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
)

// maxLog is how long the log of a Postgres gets before it begins anew. The part
// before that is kept once, so a Postgres takes at most twice as much.
const maxLog = 32 << 20

// capLogs begins the logs anew that have become too long. They lie on the disk
// of the catalog, and whoever uses a branch decides how much it logs.
func (s *Service) capLogs() {
	paths, err := filepath.Glob(filepath.Join(s.runDir, "*", "log", "postgres.log"))
	for _, path := range paths {
		err = errors.Join(err, capLog(path, maxLog))
	}
	if err != nil {
		s.log.WarnContext(s.ctx, "a log that is too long cannot begin anew", "err", err)
	}
}

// capLog moves what is in a log to a file beside it. The writers of the log
// append to it, so it stays the same file; what they write in between is lost.
func capLog(path string, limit int64) error {
	f, err := os.OpenFile(path, os.O_RDWR, 0) //nolint:forbidigo // a log need not survive the machine
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("open a log: %w", err)
	}
	defer func() { _ = f.Close() }()
	info, err := f.Stat()
	if err != nil || info.Size() <= limit {
		return err
	}
	if _, err := f.Seek(-limit, io.SeekEnd); err != nil { // of a much longer one the end
		return fmt.Errorf("read a log: %w", err)
	}
	old, err := os.OpenFile(path+".1", os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600) //nolint:forbidigo // a log need not survive the machine
	if err != nil {
		return fmt.Errorf("keep the end of a log: %w", err)
	}
	_, err = io.Copy(old, io.LimitReader(f, limit))
	if err := errors.Join(err, old.Close(), f.Truncate(0)); err != nil { // also without a copy: the disk may be full
		return fmt.Errorf("begin a log anew: %w", err)
	}
	return nil
}
