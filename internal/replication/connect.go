package replication

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
	"golang.org/x/sys/unix"

	"github.com/pgbough/pgbough"
)

const (
	// connectTimeout holds where the connection string names none: a paused
	// server accepts a TCP connection and then says nothing.
	connectTimeout = 10 * time.Second
	// peerTimeout is how long a peer may leave our bytes or probes without an
	// acknowledgement before the kernel gives the connection up.
	peerTimeout = 30 * time.Second
	// maxMessage bounds what one message of the upstream may hold while we
	// decode messages: the server's own are some 32 kB (basebackup_copy.c).
	maxMessage = 4 << 20
	// oldestVersion is the first whose base backups come with a manifest.
	oldestVersion = 13
)

// Connect opens a physical replication connection to the server that the
// libpq connection string names, as application. Where the string has several
// hosts and asks for any target_session_attrs, it takes the primary.
func Connect(ctx context.Context, connString, application string) (*pgconn.PgConn, error) {
	config, err := parseConfig(connString, application)
	if err != nil {
		return nil, err
	}
	return connect(ctx, config)
}

func connect(ctx context.Context, config *pgconn.Config) (*pgconn.PgConn, error) {
	conn, err := pgconn.ConnectConfig(ctx, config)
	if err != nil {
		if ctx.Err() != nil {
			return nil, fmt.Errorf("connect to %s: %w", address(config), context.Cause(ctx))
		}
		return nil, connectError(config, err)
	}
	if v := majorVersion(conn); v != 0 && v < oldestVersion {
		closeSoon(ctx, conn)
		return nil, pgbough.Errorf(pgbough.EConflict, "the server at %s runs Postgres %d; pgbough follows %d and later", address(config), v, oldestVersion)
	}
	return conn, nil
}

func parseConfig(connString, application string) (*pgconn.Config, error) {
	config, err := pgconn.ParseConfig(connString)
	if err != nil {
		return nil, pgbough.Errorf(pgbough.EInvalid, "the connection string cannot be read%s", parseReason(connString, err)).
			WithHint("give it in libpq's form: 'host=... user=... password=...' or postgresql://user:password@host/database")
	}
	// walreceiver names this database too (libpqrcv_connect): poolers and
	// password files look for it; the server itself ignores it.
	config.Database = "replication"
	config.RuntimeParams["replication"] = "true"
	config.RuntimeParams["application_name"] = application
	// 3.2 brings only longer cancel keys, which a standby of 17 cannot take.
	config.MinProtocolVersion, config.MaxProtocolVersion = "3.0", "3.0"
	config.MaxProtocolMessageBodyLen = maxMessage
	if config.ConnectTimeout == 0 {
		config.ConnectTimeout = connectTimeout
	}
	if config.ValidateConnect != nil { // a query of its own, which a walsender does not answer
		config.ValidateConnect = requirePrimary
	}
	config.DialFunc = newDialer().DialContext
	return config, nil
}

// parseReason is what is wrong with a connection string, as far as it can be
// said without repeating a piece of it that may be of the password.
func parseReason(connString string, err error) string {
	reason := errors.Unwrap(err)
	if reason == nil {
		return ""
	}
	if strings.HasPrefix(connString, "postgres://") || strings.HasPrefix(connString, "postgresql://") {
		if _, err := url.Parse(connString); err != nil {
			return ": it is not a valid URI (characters such as @, / and % of a password are written as %40, %2F and %25)"
		}
	}
	switch text := reason.Error(); {
	case strings.Contains(text, `missing "="`):
		return ": a word in it has no \"=\" (a password with blanks is written in 'single quotes')"
	case strings.ContainsAny(text, "\"'`"):
		return "" // it repeats what it could not read
	default:
		return ": " + text
	}
}

// requirePrimary refuses a standby. Version 14 and later report in_hot_standby
// by themselves.
func requirePrimary(ctx context.Context, conn *pgconn.PgConn) error {
	standby := conn.ParameterStatus("in_hot_standby")
	if standby == "" {
		row, err := command(ctx, conn, "SHOW transaction_read_only", 1)
		if err != nil {
			return err
		}
		standby = string(row[0])
	}
	if standby == "on" {
		return errors.New("it is a standby, not the primary")
	}
	return nil
}

// newDialer makes connections that notice a peer that vanished without a FIN
// within peerTimeout.
func newDialer() *net.Dialer {
	return &net.Dialer{
		KeepAliveConfig: net.KeepAliveConfig{Enable: true, Idle: peerTimeout / 3, Interval: peerTimeout / 6, Count: 4},
		Control: func(network, _ string, raw syscall.RawConn) error {
			if !strings.HasPrefix(network, "tcp") {
				return nil
			}
			var failed error
			err := raw.Control(func(fd uintptr) {
				failed = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, int(peerTimeout.Milliseconds()))
			})
			return errors.Join(err, failed)
		},
	}
}

// Dialer makes the Dial of a Relay whose upstream is the server that the libpq
// connection string names; application is how the upstream lists it.
func Dialer(connString, application string) (Dial, error) {
	config, err := parseConfig(connString, application)
	if err != nil {
		return nil, err
	}
	config.MaxProtocolMessageBodyLen = 0
	return func(ctx context.Context) (*pgconn.HijackedConn, error) {
		conn, err := connect(ctx, config.Copy())
		if err != nil {
			return nil, err
		}
		return Hijack(ctx, conn)
	}, nil
}

// hijackTries is how many questions a server may answer with more than the answer.
const hijackTries = 10

// Hijack takes the plain connection out of conn, for a Dial, with no byte of it
// read ahead. Whenever a write of its own takes more than some milliseconds, which
// on a busy machine is any, pgconn begins to read in the background, and that read
// may go on after the server's answer. It would take away the first bytes of what
// comes next, and who waits for them would wait for ever. Another answer ends it.
func Hijack(ctx context.Context, conn *pgconn.PgConn) (*pgconn.HijackedConn, error) {
	ended, cancel := context.WithCancel(ctx)
	cancel() // so that SyncConn only looks, and does not ask what a walsender does not answer
	for range hijackTries {
		if conn.SyncConn(ended) == nil {
			return conn.Hijack()
		}
		if _, err := IdentifySystem(ctx, conn); err != nil {
			closeSoon(ctx, conn)
			return nil, err
		}
	}
	closeSoon(ctx, conn)
	return nil, pgbough.Errorf(pgbough.EUnreachable, "the server at %s does not keep to the protocol: it sends what nobody asked for", conn.Conn().RemoteAddr())
}

// closeSoon closes conn, with a word to the server if that takes no time.
func closeSoon(ctx context.Context, conn *pgconn.PgConn) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
	defer cancel()
	_ = conn.Close(ctx) // nothing is lost with it
}

// majorVersion is the server's, 0 when it did not tell.
func majorVersion(conn *pgconn.PgConn) int {
	version := conn.ParameterStatus("server_version") // "15.18 (Debian ...)", "18beta1"
	end := strings.IndexFunc(version, func(r rune) bool { return r < '0' || r > '9' })
	if end >= 0 {
		version = version[:end]
	}
	major, err := strconv.Atoi(version)
	if err != nil {
		return 0
	}
	return major
}

// address is where a configuration points to, for messages.
func address(config *pgconn.Config) string {
	if strings.HasPrefix(config.Host, "/") {
		return config.Host
	}
	return net.JoinHostPort(config.Host, strconv.Itoa(int(config.Port)))
}

// connectError tells why a connection was not made, and what mends it.
func connectError(config *pgconn.Config, err error) *pgbough.Error {
	e := connectReason(config, err)
	e.Err = err
	return e
}

func connectReason(config *pgconn.Config, err error) *pgbough.Error {
	where := address(config)
	var refused *pgconn.PgError
	if errors.As(err, &refused) {
		return refusal(config, refused)
	}
	var dns *net.DNSError
	var timeout net.Error
	var certificate *tls.CertificateVerificationError
	switch {
	case errors.As(err, &dns):
		return pgbough.Errorf(pgbough.EUnreachable, "the host name %s cannot be resolved", config.Host).
			WithHint("check the host of the connection string")
	case errors.Is(err, syscall.ECONNREFUSED), errors.Is(err, os.ErrNotExist):
		return pgbough.Errorf(pgbough.EUnreachable, "nothing listens at %s", where).
			WithHint("check that Postgres runs there, and its listen_addresses and port")
	case errors.As(err, &certificate):
		return pgbough.Errorf(pgbough.EUnreachable, "the certificate of the server at %s cannot be verified: %v", where, certificate.Err).
			WithHint("name its CA with sslrootcert in the connection string")
	case errors.As(err, &timeout) && timeout.Timeout(), errors.Is(err, context.DeadlineExceeded):
		return pgbough.Errorf(pgbough.EUnreachable, "no answer from %s in %s", where, config.ConnectTimeout).
			WithHint("check the network and firewalls on the way, and whether the server hangs")
	case strings.Contains(err.Error(), "server refused TLS connection"):
		return pgbough.Errorf(pgbough.EUnreachable, "the server at %s offers no TLS, and the connection string asks for it", where).
			WithHint("turn ssl on at the server, or use sslmode=prefer")
	}
	return pgbough.Errorf(pgbough.EUnreachable, "cannot connect to %s: %s", where, innermost(err))
}

// refusal tells why the server at config did not take us as a standby. The
// message is the server's, which never repeats a password.
func refusal(config *pgconn.Config, e *pgconn.PgError) *pgbough.Error {
	out := pgbough.Errorf(pgbough.EUnreachable, "the server at %s refused the replication connection of role %q: %s", address(config), config.User, e.Message)
	switch e.Code {
	case "28P01": // invalid_password
		return out.WithHint("check user and password of the connection string")
	case "28000": // invalid_authorization_specification
		if !strings.Contains(e.Message, "pg_hba.conf") {
			return out.WithHint("check that the role exists and may log in")
		}
		return out.WithHint("add this line to its pg_hba.conf and reload it: host replication %s ADDRESS/32 scram-sha-256", config.User)
	case "42501": // insufficient_privilege
		return out.WithHint("run on it: ALTER ROLE %s REPLICATION", quoteIdentifier(config.User))
	case "53300": // too_many_connections
		return out.WithHint("raise max_wal_senders (or max_connections) on it, or end a standby that is not needed")
	case "57P03": // cannot_connect_now
		return out.WithHint("try again when it has started")
	}
	return out
}

func innermost(err error) string {
	for {
		next := errors.Unwrap(err)
		if next == nil {
			var joined interface{ Unwrap() []error }
			if errors.As(err, &joined) && len(joined.Unwrap()) > 0 {
				next = joined.Unwrap()[0]
			} else {
				return err.Error()
			}
		}
		err = next
	}
}

func quoteIdentifier(s string) string { return `"` + strings.ReplaceAll(s, `"`, `""`) + `"` }

func quoteLiteral(s string) string { return `'` + strings.ReplaceAll(s, `'`, `''`) + `'` }
