package source

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"os"
	"regexp"
	"strings"
	"syscall"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/pgbough/pgbough"
)

// SQLSTATEs that tell why a connection or a statement was refused (Postgres
// documentation, appendix A).
const (
	stateInvalidPassword   = "28P01"
	stateInvalidAuth       = "28000"
	stateNoDatabase        = "3D000"
	stateNoPrivilege       = "42501"
	stateTooMany           = "53300"
	stateStarting          = "57P03"
	stateShutdown          = "57P01"
	stateProtocolViolation = "08P01"
	stateUndefinedObject   = "42704"
	stateObjectInUse       = "55006"
)

// trouble is why something could not be asked of production, for a person, and
// what mends it. Neither holds a secret.
type trouble struct{ reason, fix string }

// unreachable is the error of a question that production did not answer.
func unreachable(config *pgconn.Config, err error) error {
	t := diagnose(config, err, false)
	return (&pgbough.Error{
		Code:    pgbough.EUnreachable,
		Message: fmt.Sprintf("production cannot be asked: %s", t.reason),
		Err:     err,
	}).WithHint("%s", t.fix)
}

// asUnreachable is unreachable for what a question on an open connection
// returned; errors that are meant for a person already, and nil, pass.
func asUnreachable(config *pgconn.Config, err error) error {
	var told *pgbough.Error
	if err == nil || errors.As(err, &told) {
		return err
	}
	return unreachable(config, err)
}

func reason(config *pgconn.Config, err error) string { return diagnose(config, err, false).reason }

// diagnose explains a failed connection or question. replication tells that the
// connection was one for replication, which has its own lines in pg_hba.conf.
func diagnose(config *pgconn.Config, err error, replication bool) trouble {
	var refused *pgconn.PgError
	if errors.As(err, &refused) {
		return diagnoseRefusal(config, refused, replication)
	}
	if t, ok := diagnoseTLS(config, err); ok {
		return t
	}
	return diagnoseNetwork(config, err)
}

func diagnoseNetwork(config *pgconn.Config, err error) trouble {
	where := hostPort(config)
	var dns *net.DNSError
	switch {
	case errors.Is(err, ErrClosed):
		return trouble{ErrClosed.Error(), "ask the server that follows it now"}
	case errors.As(err, &dns):
		return trouble{
			fmt.Sprintf("the host name %q cannot be resolved (%s)", dns.Name, dns.Err),
			"correct host in the connection string, or make the name resolve on this machine",
		}
	case pgconn.Timeout(err), errors.Is(err, context.DeadlineExceeded), errors.Is(err, os.ErrDeadlineExceeded):
		return trouble{
			fmt.Sprintf("no answer from %s in time", where),
			"see that the server runs and answers, and that no firewall between this machine and it drops the packets",
		}
	case errors.Is(err, context.Canceled):
		return trouble{"the request was cancelled", "ask again"}
	case errors.Is(err, syscall.ECONNREFUSED) && strings.HasPrefix(config.Host, "/"),
		errors.Is(err, os.ErrNotExist):
		return trouble{
			fmt.Sprintf("no server listens on the socket %s/.s.PGSQL.%d", config.Host, config.Port),
			"start the server, or correct host (the directory of the socket) and port in the connection string",
		}
	case errors.Is(err, os.ErrPermission):
		return trouble{fmt.Sprintf("this user may not open the socket in %s", config.Host), "use host=NAME instead, or allow it"}
	case errors.Is(err, syscall.ECONNREFUSED):
		return trouble{
			fmt.Sprintf("nothing listens on %s (connection refused)", where),
			"start the server, correct host and port in the connection string, or on production: ALTER SYSTEM SET listen_addresses = '*'; and restart it",
		}
	case errors.Is(err, syscall.EHOSTUNREACH), errors.Is(err, syscall.ENETUNREACH):
		return trouble{fmt.Sprintf("there is no route to %s", where), "correct host in the connection string, or the routes of this machine"}
	}
	return trouble{
		fmt.Sprintf("the connection to %s was lost (%s)", where, innermost(err)),
		"see that the server runs; its log says more",
	}
}

func diagnoseTLS(config *pgconn.Config, err error) (trouble, bool) {
	var (
		authority x509.UnknownAuthorityError
		host      x509.HostnameError
		invalid   x509.CertificateInvalidError
		alert     tls.AlertError
		record    tls.RecordHeaderError
	)
	switch {
	case strings.Contains(err.Error(), "server refused TLS connection"): // pgconn has no type for it
		return trouble{
			fmt.Sprintf("%s offers no TLS, which the connection string requires", hostPort(config)),
			"on production: ALTER SYSTEM SET ssl = on; SELECT pg_reload_conf(); (with a certificate), or use sslmode=prefer in the connection string",
		}, true
	case errors.As(err, &authority):
		return trouble{
			fmt.Sprintf("the certificate of %s is signed by nobody this machine trusts", hostPort(config)),
			"name its authority in the connection string: sslrootcert=FILE",
		}, true
	case errors.As(err, &host):
		return trouble{
			fmt.Sprintf("the certificate of %s is not for that name (%s)", hostPort(config), host.Error()),
			"use the name that the certificate has, or sslmode=verify-ca",
		}, true
	case errors.As(err, &invalid):
		return trouble{
			fmt.Sprintf("the certificate of %s is not valid: %s", hostPort(config), invalid.Error()),
			"renew it on production",
		}, true
	case errors.As(err, &alert), errors.As(err, &record):
		return trouble{
			fmt.Sprintf("TLS with %s failed: %s", hostPort(config), innermost(err)),
			"check sslmode, sslcert and sslkey in the connection string",
		}, true
	}
	return trouble{}, false
}

// diagnoseRefusal explains an ErrorResponse of the server.
func diagnoseRefusal(config *pgconn.Config, e *pgconn.PgError, replication bool) trouble {
	user := config.User
	switch e.Code {
	case stateInvalidPassword:
		return trouble{
			fmt.Sprintf("password authentication failed for role %q at %s", user, hostPort(config)),
			fmt.Sprintf("give the right password in the connection string, or set it on production: ALTER ROLE %s PASSWORD '...';", quoteIdent(user)),
		}
	case stateInvalidAuth:
		return diagnoseAuth(config, e, replication)
	case stateNoDatabase:
		return trouble{fmt.Sprintf("there is no database %q on %s", config.Database, hostPort(config)), "name one that exists: dbname=... in the connection string"}
	case stateNoPrivilege:
		if replication {
			return trouble{fmt.Sprintf("role %q may not replicate", user), fmt.Sprintf("ALTER ROLE %s REPLICATION;", quoteIdent(user))}
		}
		if e.Severity == "FATAL" || e.SeverityUnlocalized == "FATAL" {
			return trouble{
				fmt.Sprintf("role %q may not connect to database %q", user, config.Database),
				fmt.Sprintf("GRANT CONNECT ON DATABASE %s TO %s;", quoteIdent(config.Database), quoteIdent(user)),
			}
		}
	case stateTooMany:
		if replication {
			return trouble{"production has no free walsender (" + e.Message + ")", "ALTER SYSTEM SET max_wal_senders = 20; -- then restart production"}
		}
		return trouble{"production takes no more connections (" + e.Message + ")", "raise max_connections, or the role's CONNECTION LIMIT, on production"}
	case stateStarting, stateShutdown:
		return trouble{"production is starting or stopping (" + e.Message + ")", "try again when it is up"}
	case stateProtocolViolation:
		if strings.Contains(e.Message, "startup parameter") { // pgbouncer's words
			return trouble{
				"a connection pooler answers at " + hostPort(config) + " (" + e.Message + ")",
				"name Postgres's own host and port in the connection string",
			}
		}
	}
	return trouble{fmt.Sprintf("production refused: %s (SQLSTATE %s)", e.Message, e.Code), "its log says more"}
}

// quotedHost finds the address that production saw in its refusal, in whatever
// language it is: the only quoted word that is an IP address.
var quotedHost = regexp.MustCompile(`["«„“']([0-9a-fA-F.:]+)(?:%\w+)?["»“”']`)

// diagnoseAuth explains SQLSTATE 28000, which stands for several things that only
// the routine of the server which raised it tells apart (auth.c, miscinit.c).
func diagnoseAuth(config *pgconn.Config, e *pgconn.PgError, replication bool) trouble {
	user := config.User
	switch e.Routine {
	case "ClientAuthentication": // no entry, or a reject line
		line := hbaLine(config, peerAddress(config, e.Message), replication, "scram-sha-256")
		kind := "an ordinary connection"
		if replication {
			kind = "a replication connection"
		}
		return trouble{
			fmt.Sprintf("production's pg_hba.conf has no line that lets role %q in for %s (%s)", user, kind, e.Message),
			hbaFix(line),
		}
	case "InitializeSessionUserId":
		if strings.Contains(e.Message, "not permitted to log in") {
			return trouble{fmt.Sprintf("role %q may not log in", user), fmt.Sprintf("ALTER ROLE %s LOGIN;", quoteIdent(user))}
		}
		return trouble{
			fmt.Sprintf("there is no role %q on production (%s)", user, e.Message),
			fmt.Sprintf("CREATE ROLE %s LOGIN REPLICATION PASSWORD '...';", quoteIdent(user)),
		}
	case "auth_failed": // ident, peer, certificate and their like
		return trouble{
			fmt.Sprintf("production did not accept role %q: %s", user, e.Message),
			hbaFix(hbaLine(config, peerAddress(config, e.Message), replication, "scram-sha-256")),
		}
	}
	return trouble{fmt.Sprintf("production did not accept role %q: %s", user, e.Message), "its log and pg_hba.conf say more"}
}

func hbaFix(line string) string {
	return "put this line into production's pg_hba.conf, above any other that matches: " + line + " -- then: SELECT pg_reload_conf();"
}

// peerAddress is our address as production sees it: from its message, or empty
// when that does not tell.
func peerAddress(config *pgconn.Config, message string) string {
	if strings.HasPrefix(config.Host, "/") {
		return "local"
	}
	for _, m := range quotedHost.FindAllStringSubmatch(message, -1) {
		if net.ParseIP(m[1]) != nil {
			return m[1]
		}
	}
	return ""
}

// hbaLine is the line of pg_hba.conf that lets our connection in. addr is an IP
// address, "local" for a socket, or empty when it is not known.
func hbaLine(config *pgconn.Config, addr string, replication bool, method string) string {
	database := hbaName(config.Database)
	if replication {
		database = "replication" // unquoted: the keyword
	}
	if addr == "local" {
		return fmt.Sprintf("local %s %s %s", database, hbaName(config.User), method)
	}
	kind := "host"
	if config.TLSConfig != nil && !plaintextFallback(config) {
		kind = "hostssl"
	}
	cidr := "THIS-MACHINE'S-ADDRESS/32"
	if ip := net.ParseIP(addr); ip != nil {
		cidr = addr + "/128"
		if ip.To4() != nil {
			cidr = addr + "/32"
		}
	}
	return fmt.Sprintf("%s %s %s %s %s", kind, database, hbaName(config.User), cidr, method)
}

// plaintextFallback tells whether the connection string allows a connection
// without TLS (sslmode=prefer or allow).
func plaintextFallback(config *pgconn.Config) bool {
	for _, f := range config.Fallbacks {
		if f.TLSConfig == nil {
			return true
		}
	}
	return false
}

// hbaName quotes a database or role for pg_hba.conf, where some words and signs
// have a meaning of their own.
func hbaName(name string) string {
	plain := regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_$-]*$`).MatchString(name)
	switch name {
	case "all", "replication", "sameuser", "samerole", "samegroup":
		plain = false
	}
	if plain {
		return name
	}
	return `"` + name + `"`
}

// quoteIdent quotes an identifier for SQL where it needs it.
func quoteIdent(name string) string {
	if regexp.MustCompile(`^[a-z_][a-z0-9_]*$`).MatchString(name) && !reserved(name) {
		return name
	}
	return `"` + strings.ReplaceAll(name, `"`, `""`) + `"`
}

// reserved tells whether a word could not stand for a role or a database without
// quotes (Postgres documentation, appendix C, and the pseudo-roles).
func reserved(name string) bool {
	switch name {
	case "all", "analyse", "analyze", "and", "any", "array", "as", "asc", "both", "case", "cast", "check", "collate", "column",
		"constraint", "create", "current_role", "current_user", "default", "desc", "distinct", "do", "else", "end", "except",
		"false", "fetch", "for", "foreign", "from", "grant", "group", "having", "in", "initially", "intersect", "into", "lateral",
		"leading", "limit", "localtime", "not", "null", "offset", "on", "only", "or", "order", "placing", "primary", "public",
		"references", "returning", "select", "session_user", "some", "symmetric", "system_user", "table", "then", "to",
		"trailing", "true", "union", "unique", "user", "using", "variadic", "when", "where", "window", "with", "none":
		return true
	}
	return false
}

// quoteLiteral quotes a string for SQL (standard_conforming_strings on).
func quoteLiteral(s string) string { return "'" + strings.ReplaceAll(s, "'", "''") + "'" }

// innermost is the text of the first cause, without what pgconn puts around it.
func innermost(err error) string {
	for {
		next := errors.Unwrap(err)
		if next == nil {
			var many interface{ Unwrap() []error }
			if !errors.As(err, &many) || len(many.Unwrap()) == 0 {
				return err.Error()
			}
			next = many.Unwrap()[0]
		}
		err = next
	}
}
