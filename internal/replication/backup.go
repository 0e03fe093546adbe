package replication

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"time"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/pgbough/pgbough"
)

// BackupOptions say from where a base backup comes and where it goes.
type BackupOptions struct {
	ConnString  string // libpq form, of a role that may replicate
	Application string // how the server lists us; "pgbough" when empty
	// Dir is an empty directory; it becomes a PGDATA without WAL, which a
	// standby fetches from its slot. After an error it holds a piece of one.
	Dir      *os.Root
	UID, GID int   // owner of what is written
	MaxRate  int64 // bytes a second that the server may send; 0 is unlimited
	Label    string
	// FastCheckpoint makes the server begin with an immediate checkpoint
	// instead of one that it spreads over half its checkpoint_timeout.
	FastCheckpoint bool
	Checksum       string        // of the manifest: CRC32C when empty
	StallTimeout   time.Duration // silence of a server that sends files; 2 minutes when 0
	// Progress is told some times a second how many bytes have come of how
	// many that the server expects, which is rough; 0 of 0 while it makes its
	// checkpoint.
	Progress func(done, total int64)
	Log      *slog.Logger
}

// BackupResult tells what a base backup holds. A standby that starts from it
// needs the WAL from StartLSN on, and is consistent at EndLSN.
type BackupResult struct {
	SystemID         uint64
	Timeline         uint32
	StartLSN, EndLSN pgbough.LSN
	Version          string // of the server: "15.18"
	Files            int
	Bytes            int64
}

// BaseBackup copies the data directory of the server into o.Dir, as it comes,
// checks every file against the server's manifest and makes it durable. It
// takes one walsender. Cancelling ctx ends it at the server too.
func BaseBackup(ctx context.Context, o BackupOptions) (BackupResult, error) {
	o = o.withDefaults()
	config, err := parseConfig(o.ConnString, o.Application)
	if err != nil {
		return BackupResult{}, err
	}
	if err := checkEmpty(o.Dir); err != nil {
		return BackupResult{}, err
	}
	u, err := newUnpacker(o.Dir, o.UID, o.GID, o.Checksum)
	if err != nil {
		return BackupResult{}, err
	}
	conn, err := connect(ctx, config)
	if err != nil {
		return BackupResult{}, err
	}
	defer closeSoon(ctx, conn)
	b := &backup{BackupOptions: o, conn: conn, unpacker: u}
	if err := b.run(ctx); err != nil {
		return BackupResult{}, b.explain(ctx, config, err)
	}
	if err := u.sync(); err != nil {
		return BackupResult{}, err
	}
	b.report(true)
	return b.result, nil
}

func (o BackupOptions) withDefaults() BackupOptions {
	if o.Application == "" {
		o.Application = "pgbough"
	}
	if o.Label == "" {
		o.Label = "pgbough"
	}
	if o.Checksum == "" {
		o.Checksum = "CRC32C"
	}
	if o.StallTimeout == 0 {
		o.StallTimeout = 2 * time.Minute
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	return o
}

// backup is one base backup under way.
type backup struct {
	BackupOptions
	conn     *pgconn.PgConn
	unpacker *unpacker
	result   BackupResult

	manifest    []byte
	done, total int64 // bytes of archive
	reported    time.Time
}

func (b *backup) run(ctx context.Context) error {
	system, err := IdentifySystem(ctx, b.conn)
	if err != nil {
		return err
	}
	b.result.SystemID = system.ID
	b.result.Version, _, _ = strings.Cut(b.conn.ParameterStatus("server_version"), " ")
	in := &messages{conn: b.conn, log: b.Log}
	stop := in.watch(ctx)
	defer stop()
	if err := in.query(backupCommand(b.BackupOptions, majorVersion(b.conn))); err != nil {
		return fmt.Errorf("ask for the base backup: %w", err)
	}
	b.report(false)
	if err := b.begin(in); err != nil {
		return err
	}
	b.Log.InfoContext(ctx, "base backup begins", "start_lsn", b.result.StartLSN.String(), "timeline", b.result.Timeline, "bytes", b.total)
	in.stall = b.StallTimeout
	if err := b.receive(in); err != nil {
		return err
	}
	if err := b.end(in); err != nil {
		return err
	}
	if err := b.check(); err != nil {
		return err
	}
	b.result.Files, b.result.Bytes = len(b.unpacker.files), b.unpacker.bytes
	return nil
}

// begin reads what comes when the checkpoint is done: the start position and
// the list of tablespaces, which must be the data directory alone.
func (b *backup) begin(in *messages) error {
	rows, err := in.rows()
	if err != nil {
		return fmt.Errorf("begin the base backup: %w", err)
	}
	b.result.StartLSN, b.result.Timeline, err = position(rows)
	if err != nil {
		return fmt.Errorf("read the start of the base backup: %w", err)
	}
	rows, err = in.rows()
	if err != nil {
		return fmt.Errorf("read the list of tablespaces: %w", err)
	}
	for _, row := range rows {
		if len(row) < 3 {
			return errors.New("read the list of tablespaces: not three columns")
		}
		if row[0] != nil {
			return tablespaceError(string(row[1]))
		}
		kilobytes, err := parseInt(row[2])
		if err != nil {
			return fmt.Errorf("read the list of tablespaces: %w", err)
		}
		b.total += kilobytes << 10
	}
	return nil
}

// receive unpacks the archive and collects the manifest.
func (b *backup) receive(in *messages) error {
	stream := newStream(in, majorVersion(b.conn), b.received)
	if err := stream.archive(); err != nil {
		return fmt.Errorf("receive the base backup: %w", err)
	}
	if err := b.unpacker.unpack(stream); err != nil {
		return fmt.Errorf("receive the base backup: %w", err)
	}
	manifest, err := stream.manifest()
	if err != nil {
		return fmt.Errorf("receive the backup manifest: %w", err)
	}
	b.manifest = manifest
	return nil
}

// end reads the end position and waits until the server is done.
func (b *backup) end(in *messages) error {
	rows, err := in.rows()
	if err != nil {
		return fmt.Errorf("end the base backup: %w", err)
	}
	var timeline uint32
	b.result.EndLSN, timeline, err = position(rows)
	if err != nil {
		return fmt.Errorf("read the end of the base backup: %w", err)
	}
	if timeline != b.result.Timeline {
		return pgbough.Errorf(pgbough.EConflict, "the server went from timeline %d to %d during the base backup", b.result.Timeline, timeline).
			WithHint("try again")
	}
	return in.ready()
}

// check compares what came with the manifest.
func (b *backup) check() error {
	manifest, err := ParseManifest(b.manifest)
	if err != nil {
		return corrupt("%w", err)
	}
	b.manifest = nil
	if manifest.SystemID != 0 && manifest.SystemID != b.result.SystemID {
		return corrupt("it is of system %d, not %d", manifest.SystemID, b.result.SystemID)
	}
	for _, wal := range manifest.WAL {
		if wal.Timeline == b.result.Timeline && wal.Start != b.result.StartLSN {
			return corrupt("its WAL begins at %s, not %s", wal.Start, b.result.StartLSN)
		}
	}
	return b.unpacker.verify(manifest)
}

// received counts bytes of the archive.
func (b *backup) received(n int) {
	b.done += int64(n)
	b.report(false)
}

// report tells the progress, at most some times a second unless it is the last.
func (b *backup) report(last bool) {
	if b.Progress == nil || !last && time.Since(b.reported) < 200*time.Millisecond {
		return
	}
	b.reported = time.Now()
	if b.done > b.total || last {
		b.total = b.done // it was rough
	}
	b.Progress(b.done, b.total)
}

// explain ends the backup at the server and says why it failed.
func (b *backup) explain(ctx context.Context, config *pgconn.Config, err error) error {
	cleanup, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*time.Second)
	defer cancel()
	// A closed connection alone is noticed only when the server next writes to
	// it, which in the spread checkpoint is minutes away.
	_ = b.conn.CancelRequest(cleanup) // it may be gone
	if ctx.Err() != nil {
		return fmt.Errorf("base backup: %w", context.Cause(ctx))
	}
	var told *pgbough.Error
	if errors.As(err, &told) {
		return err
	}
	var refused *pgconn.PgError
	if errors.As(err, &refused) {
		return backupRefusal(config, refused)
	}
	var broken *connectionError
	if errors.As(err, &broken) || b.conn.IsClosed() {
		return pgbough.Errorf(pgbough.EUnreachable, "the connection to %s broke during the base backup: %w", address(config), err).
			WithHint("try again; nothing of it is kept")
	}
	return err
}

func backupRefusal(config *pgconn.Config, e *pgconn.PgError) *pgbough.Error {
	switch e.Code {
	case "XX001": // data_corrupted: "checksum verification failure during base backup"
		return pgbough.Errorf(pgbough.EConflict, "pages of the server at %s do not match their own checksums: %w", address(config), e).
			WithHint("see the warnings in its log; its data is damaged")
	case "42501": // insufficient_privilege
		return refusal(config, e)
	}
	return pgbough.Errorf(pgbough.EUnreachable, "the server at %s ended the base backup: %w", address(config), e).WithHint("try again")
}

// The limits of MAX_RATE, in kB a second (basebackup.h).
const minRate, maxRate = 32, 1 << 20

// backupCommand writes BASE_BACKUP for the server's version: 15 brought the
// parenthesised options.
func backupCommand(o BackupOptions, major int) string {
	options := []string{"LABEL " + quoteLiteral(o.Label), "PROGRESS", "TABLESPACE_MAP", "MANIFEST 'yes'", "MANIFEST_CHECKSUMS " + quoteLiteral(o.Checksum)}
	if o.MaxRate > 0 {
		options = append(options, fmt.Sprintf("MAX_RATE %d", min(max(o.MaxRate>>10, minRate), maxRate)))
	}
	// Not to wait for the archiver: the slot keeps the WAL.
	if major >= 15 {
		options = append(options, "WAIT false")
		if o.FastCheckpoint {
			options = append(options, "CHECKPOINT 'fast'")
		} else {
			options = append(options, "CHECKPOINT 'spread'")
		}
		return "BASE_BACKUP (" + strings.Join(options, ", ") + ")"
	}
	options = append(options, "NOWAIT")
	if o.FastCheckpoint {
		options = append(options, "FAST")
	}
	return "BASE_BACKUP " + strings.Join(options, " ")
}

// position reads the one row of a start or end position.
func position(rows [][][]byte) (pgbough.LSN, uint32, error) {
	if len(rows) != 1 || len(rows[0]) < 2 {
		return 0, 0, errors.New("not one row of two columns")
	}
	lsn, err := pgbough.ParseLSN(string(rows[0][0]))
	if err != nil {
		return 0, 0, err
	}
	timeline, err := parseInt(rows[0][1])
	if err != nil || timeline <= 0 || timeline > 1<<32-1 {
		return 0, 0, fmt.Errorf("%q is not a timeline", rows[0][1])
	}
	return lsn, uint32(timeline), nil
}
