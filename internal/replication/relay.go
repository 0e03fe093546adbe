package replication

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/pgbough/pgbough"
)

// SocketName is the file in a Relay's directory that a standby connects to with
// primary_conninfo = 'host=DIRECTORY'.
const SocketName = ".s.PGSQL.5432"

// Dial makes one replication connection to a Relay's upstream, idle and with
// nothing read ahead (see Hijack).
type Dial func(ctx context.Context) (*pgconn.HijackedConn, error)

// RelayOptions describe a Relay.
type RelayOptions struct {
	Dir      string // where the socket appears; only the server may write there
	UID, GID int    // owner of the socket, who alone can connect; -1 is the server itself
	Dial     Dial
	// DialTimeout bounds one Dial, and the time until the first answer to the standby
	// after it, which takes a server no longer; 15 seconds when 0.
	DialTimeout time.Duration
	// IdleTimeout is how long the upstream may be silent. A paused server still
	// acknowledges on the TCP level, so silence is all that shows it; a standby
	// asks for a sign of life after half its wal_receiver_timeout (30 s by
	// default), so this must be longer. 60 seconds when 0.
	IdleTimeout time.Duration
	Log         *slog.Logger
}

// RelayStatus tells what a Relay does and has done.
type RelayStatus struct {
	// Connected: a standby is connected through to the upstream.
	Connected bool
	Since     time.Time // when Connected last changed; zero if it never did
	// LastError is why the upstream could not be reached, went away or refused a
	// command ("requested WAL segment has already been removed"). It stays
	// after things are well again: compare LastErrorAt with Since.
	LastError   error
	LastErrorAt time.Time
	Received    int64     // bytes that came from the upstream, over all connections
	Sent        int64     // bytes that the standby sent to it
	LastByteAt  time.Time // when the upstream last sent something
	LastSentAt  time.Time // when the standby did
	Cut         bool
}

// Relay lets one standby stream from an upstream through a unix socket. It
// serves one connection at a time: a new one ends the one before it, which the
// standby has given up. Methods are safe for concurrent use.
type Relay struct {
	o        RelayOptions
	root     *os.Root // of o.Dir
	listener *net.UnixListener
	ctx      context.Context // ends with Hush
	cancel   context.CancelFunc
	hush     sync.Once
	done     sync.WaitGroup // the accept loop and all sessions

	received, sent     atomic.Int64
	lastByte, lastSent atomic.Int64  // in Unix nanoseconds
	delivered          atomic.Uint64 // Delivered's

	mu      sync.Mutex
	dial    Dial
	session *session // the present one
	silent  net.Conn // to the standby, from Hush to Cut
	status  RelayStatus
}

// StartRelay opens the socket and serves it until Hush or Cut. Whatever file, socket or
// link is at its place is replaced. Of ctx only the values are used.
func StartRelay(ctx context.Context, o RelayOptions) (*Relay, error) {
	if o.DialTimeout == 0 {
		o.DialTimeout = 15 * time.Second
	}
	if o.IdleTimeout == 0 {
		o.IdleTimeout = 60 * time.Second
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	root, err := os.OpenRoot(o.Dir)
	if err != nil {
		return nil, fmt.Errorf("open the directory of the relay: %w", err)
	}
	listener, err := listen(root, o.UID, o.GID)
	if err != nil {
		_ = root.Close() // read only
		return nil, fmt.Errorf("open the socket of the relay: %w", err)
	}
	ctx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	r := &Relay{o: o, root: root, listener: listener, ctx: ctx, cancel: cancel, dial: o.Dial}
	r.done.Go(r.accept)
	return r, nil
}

// listen makes the socket under another name and moves it into place when it
// has its owner and mode. So it is never open to others, and what stood at the
// place (a stale socket, a link that somebody planted) is replaced and not
// followed. The directory is named by its descriptor, which also keeps the
// address within the 107 bytes that a socket's may have.
func listen(root *os.Root, uid, gid int) (*net.UnixListener, error) {
	const fresh = SocketName + ".new"
	dir, err := root.Open(".")
	if err != nil {
		return nil, err
	}
	defer func() { _ = dir.Close() }() // read only
	if err := root.Remove(fresh); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	address := fmt.Sprintf("/proc/self/fd/%d/%s", dir.Fd(), fresh)
	listener, err := net.ListenUnix("unix", &net.UnixAddr{Name: address, Net: "unix"})
	if err != nil {
		return nil, err
	}
	listener.SetUnlinkOnClose(false) // that name is gone by then
	err = errors.Join(root.Chmod(fresh, 0o600), root.Lchown(fresh, uid, gid))
	if err == nil {
		err = root.Rename(fresh, SocketName)
	}
	if err != nil {
		return nil, errors.Join(err, listener.Close(), root.Remove(fresh))
	}
	return listener, nil
}

// Status tells what the relay does now.
func (r *Relay) Status() RelayStatus {
	r.mu.Lock()
	defer r.mu.Unlock()
	s := r.status
	s.Received, s.Sent = r.received.Load(), r.sent.Load()
	s.LastByteAt, s.LastSentAt = moment(&r.lastByte), moment(&r.lastSent)
	return s
}

// moment is the time of so many nanoseconds; zero for none.
func moment(nanoseconds *atomic.Int64) time.Time {
	if at := nanoseconds.Load(); at != 0 {
		return time.Unix(0, at)
	}
	return time.Time{}
}

// SetDial changes the upstream, or the way to log in there. The present
// connection ends; the standby comes again by itself, after its
// wal_retrieve_retry_interval.
func (r *Relay) SetDial(dial Dial) {
	r.mu.Lock()
	r.dial = dial
	r.mu.Unlock()
	r.Renew()
}

// Renew ends the present connection, after which the standby comes again as after
// SetDial.
func (r *Relay) Renew() {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.session != nil {
		r.session.close()
	}
}

// Hush ends relaying: when it returns, no byte passes any more, to the standby
// or from it, the socket's file is gone, and the goroutines have ended. The
// standby may still read what had been delivered to its own end of the socket
// before. Its connection stays open, silent, until Cut: a walreceiver that sees
// an end makes the startup process wait for wal_retrieve_retry_interval, during
// which it does not see a promotion either (xlogrecovery.c,
// WaitForWALToBecomeAvailable). It may be called again.
func (r *Relay) Hush() {
	r.hush.Do(func() {
		_ = r.listener.Close() // it only tells that it is closed already
		r.mu.Lock()
		r.cancel() // after this no session begins
		if r.session != nil {
			r.silent = r.session.hush()
		}
		r.status.Cut = true
		r.mu.Unlock()
		if err := r.root.Remove(SocketName); err != nil && !errors.Is(err, fs.ErrNotExist) {
			r.o.Log.WarnContext(r.ctx, "cannot remove the socket of a relay", "directory", r.o.Dir, "error", err.Error())
		}
		r.done.Wait()
		_ = r.root.Close() // read only
	})
}

// Cut is Hush, and closes the standby's connection too. It may be called again.
func (r *Relay) Cut() {
	r.Hush()
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.silent != nil {
		_ = r.silent.Close() // it only tells that it is closed already
		r.silent = nil
	}
}

// Delivered is where the WAL ends that the standby has got, or has in its end of
// the socket, over its present or last connection. It is false where that is not
// known. Messages that had not come to their end at Hush have no meaning to a standby.
func (r *Relay) Delivered() (pgbough.LSN, bool) {
	lsn := pgbough.LSN(r.delivered.Load())
	return lsn, lsn != 0
}

// accept serves the socket until it is closed.
func (r *Relay) accept() {
	for {
		conn, err := r.listener.AcceptUnix()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil { // no descriptor free, or the peer went away at once
			r.failed(fmt.Errorf("accept the standby: %w", err))
			if pause(r.ctx, 100*time.Millisecond) != nil {
				return
			}
			continue
		}
		r.begin(conn)
	}
}

// begin makes conn the present session, after the one before has ended: the
// upstream lets only one at a time use a slot.
func (r *Relay) begin(standby *net.UnixConn) {
	ctx, cancel := context.WithCancel(r.ctx)
	s := &session{relay: r, standby: standby, cancel: cancel, ended: make(chan struct{})}
	r.mu.Lock()
	before := r.session
	if before != nil {
		before.close()
	}
	if r.ctx.Err() != nil { // cut meanwhile
		r.mu.Unlock()
		cancel()
		_ = standby.Close() // nothing was written
		return
	}
	r.session, s.dial = s, r.dial
	r.disconnected()
	r.mu.Unlock()
	r.done.Go(func() {
		defer close(s.ended)
		defer s.close()
		if before != nil {
			<-before.ended
		}
		r.ended(s, s.serve(ctx))
	})
}

// connected notes that s is connected through.
func (r *Relay) connected(s *session) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.session == s {
		r.status.Connected, r.status.Since = true, time.Now()
	}
}

// ended notes that s is over, and why if that was the upstream's doing.
func (r *Relay) ended(s *session, err error) {
	if err != nil {
		r.failed(err)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.session == s {
		r.session = nil
		r.disconnected()
	}
}

// disconnected notes that no standby is connected through. The caller holds mu.
func (r *Relay) disconnected() {
	if r.status.Connected {
		r.status.Connected, r.status.Since = false, time.Now()
	}
}

func (r *Relay) failed(err error) {
	r.mu.Lock()
	r.status.LastError, r.status.LastErrorAt = err, time.Now()
	r.mu.Unlock()
	r.o.Log.WarnContext(r.ctx, "relay", "error", err.Error(), "code", string(pgbough.ErrorCode(err)))
}
