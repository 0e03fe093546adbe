package pgproxy

import (
	"context"
	"net"
	"strings"

	"github.com/pgbough/pgbough"
)

// maxBranchName is a project and a branch, with a slash between them.
const maxBranchName = 63 + 1 + 63

// target is one way to read what a client wants.
type target struct{ branch, database string }

// targets takes the name of the branch out of s, in the order in which the ways
// to say it count. There are two only where a database's name could have the '@'
// itself.
func (s *startup) targets(sni, domain string) ([]target, error) {
	database := s.get("database")
	rest, named := cutEndpoint(s.get("options"))
	if len(named) > 0 {
		for _, n := range named {
			if n != named[0] {
				return nil, fatalf("08004", "the connection's options name two branches")
			}
		}
		s.set("options", rest)
		return []target{{named[0], database}}, nil
	}
	var all []target
	if at := strings.LastIndexByte(database, '@'); at >= 0 && at+1 < len(database) {
		all = append(all, target{database[at+1:], database[:at]})
	}
	if endpoint := endpointOf(sni, domain); endpoint != "" {
		all = append(all, target{endpoint, database})
	}
	if len(all) == 0 {
		return nil, fatalf("08004", "the connection does not say which branch it is for").
			hinted("Name it in one of three ways: options=endpoint%%3D<endpoint id> in the URI, <database>@<branch> as the database, " +
				"or a host name that begins with the endpoint id, with TLS. `pgbough url` prints a URI that has it.")
	}
	return all, nil
}

// cutEndpoint takes endpoint=... out of the options of a startup packet, which
// Postgres reads like a command line: words with blanks between them, where a
// backslash takes the next character as it is.
func cutEndpoint(options string) (rest string, named []string) {
	var kept strings.Builder
	for i := 0; i < len(options); {
		end := wordEnd(options, i)
		word := options[i:end]
		name, ok := strings.CutPrefix(strings.TrimPrefix(word, "--"), "endpoint=")
		switch {
		case word == "":
			kept.WriteByte(options[i])
			i++
			continue
		case ok:
			named = append(named, name)
		default:
			kept.WriteString(word)
		}
		i = end
	}
	if len(named) == 0 {
		return options, nil
	}
	return strings.TrimSpace(kept.String()), named
}

func wordEnd(s string, i int) int {
	for ; i < len(s) && !blank(s[i]); i++ {
		if s[i] == '\\' && i+1 < len(s) {
			i++
		}
	}
	return i
}

func blank(c byte) bool { return c == ' ' || c >= '\t' && c <= '\r' }

// endpointOf is the endpoint id that a host name begins with.
func endpointOf(host, domain string) string {
	first, rest, ok := strings.Cut(strings.ToLower(host), ".")
	if !ok || !strings.HasPrefix(first, "ep-") || net.ParseIP(host) != nil {
		return ""
	}
	if domain != "" && !strings.EqualFold(strings.TrimSuffix(rest, "."), domain) {
		return ""
	}
	return first
}

// find asks the service for the branch that a client wants, and makes its packet
// one that the branch's Postgres understands.
//
// A client is told that there is no such branch, before it has proved anything:
// who guesses names can learn them. To somebody with a slip in the name, or whose
// branch has been deleted, an answer that blames the password would be worse,
// and a name opens nothing. Names that must not be known do not belong on a port
// that others can reach.
func (p *Proxy) find(ctx context.Context, c *client, s *startup) (pgbough.Login, error) {
	all, err := s.targets(c.sni, p.Domain)
	if err != nil {
		return pgbough.Login{}, err
	}
	for _, t := range all {
		var login pgbough.Login
		login, err = pgbough.Login{}, pgbough.Errorf(pgbough.ENotFound, "too long")
		if len(t.branch) <= maxBranchName {
			login, err = p.Service.Login(ctx, t.branch, s.user())
		}
		if err == nil {
			s.set("database", t.database)
			return login, nil
		}
		if pgbough.ErrorCode(err) != pgbough.ENotFound {
			return pgbough.Login{}, err
		}
	}
	return pgbough.Login{}, fatalf("3D000", "branch %.130q does not exist", all[0].branch).
		hinted("`pgbough branch list` shows those that do.").because(err)
}
