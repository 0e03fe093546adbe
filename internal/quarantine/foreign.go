package quarantine

import (
	"slices"
	"strings"

	"github.com/pgbough/pgbough/internal/postgres"
)

const (
	// nowhere is the host of a foreign server that was cut off. A path means a
	// unix socket below it, which fails at once and needs no network, and the
	// error that Postgres prints holds it.
	nowhere = "/foreign-servers-are-cut-off-in-a-pgbough-branch"
	// cut stands for a credential that was taken away.
	cut = "cut-off-by-pgbough"
)

// libpqKept are the options of servers and mappings of postgres_fdw and dblink
// that are neither a way to production nor a credential.
var libpqKept = []string{
	"port", "dbname", "user", "application_name", "use_remote_estimate", "fdw_startup_cost", "fdw_tuple_cost", "fetch_size", "batch_size",
	"extensions", "updatable", "truncatable", "async_capable", "parallel_commit", "parallel_abort", "analyze_sampling", "keep_connections",
	"password_required",
}

// foreignObject is a row with options in "name=value" form.
type foreignObject struct {
	OID     string   `json:"oid"`
	Name    string   `json:"name"`
	Owner   string   `json:"owner"` // of a mapping: its user
	Wrapper string   `json:"wrapper"`
	Libpq   bool     `json:"libpq"` // its options are those of libpq
	Options []string `json:"options"`
}

// cutServer rewrites the options of a foreign server, so that they lead nowhere
// and hold no credential.
func cutServer(o foreignObject) []string {
	if !o.Libpq {
		return cutOptions(o.Options, false)
	}
	out := []string{"host=" + nowhere}
	for _, opt := range o.Options {
		name, value, _ := strings.Cut(opt, "=")
		if slices.Contains(libpqKept, name) && !strings.ContainsAny(value, "=:") {
			out = append(out, opt)
		}
	}
	return out
}

// cutMapping rewrites the options of a user mapping. A password stays there in
// name only, since without one postgres_fdw tells the user to set one instead
// of telling that the server is cut off.
func cutMapping(o foreignObject) []string {
	if !o.Libpq {
		return cutOptions(o.Options, true)
	}
	var out []string
	for _, opt := range o.Options {
		name, value, _ := strings.Cut(opt, "=")
		switch {
		case name == "password":
			out = append(out, "password="+cut)
		case slices.Contains(libpqKept, name) && !strings.ContainsAny(value, "=:"):
			out = append(out, opt)
		}
	}
	return out
}

// cutOptions serves wrappers that pgbough does not know: every option stays,
// since a wrapper may crash without one, and every value that could be an
// address or a credential goes.
func cutOptions(options []string, all bool) []string {
	out := make([]string, 0, len(options))
	for _, opt := range options {
		name, value, _ := strings.Cut(opt, "=")
		if all || postgres.SecretName(name) || !harmless(value) {
			opt = name + "=" + cut
		}
		out = append(out, opt)
	}
	return out
}

// cutSecrets takes the values of those options that look like credentials.
func cutSecrets(o foreignObject) []string {
	out := slices.Clone(o.Options)
	for i, opt := range out {
		if name, _, _ := strings.Cut(opt, "="); postgres.SecretName(name) {
			out[i] = name + "=" + cut
		}
	}
	return out
}

// isCut tells whether options hold a mark of quarantine.
func isCut(options []string) bool {
	return slices.ContainsFunc(options, func(opt string) bool { return strings.HasSuffix(opt, "="+nowhere) || strings.HasSuffix(opt, "="+cut) })
}

// harmless tells whether a value is a switch or a small number.
func harmless(value string) bool {
	switch strings.ToLower(value) {
	case "on", "off", "true", "false", "yes", "no", "":
		return true
	}
	return len(value) <= 5 && strings.Trim(value, "0123456789.") == ""
}

// address is what of a server's options a person needs to put it back: never a
// credential.
func address(o foreignObject) string {
	var parts []string
	for _, opt := range o.Options {
		name, value, _ := strings.Cut(opt, "=")
		if slices.Contains([]string{"host", "hostaddr", "port", "dbname", "user"}, name) && !strings.ContainsAny(value, "=@ ") && !isCut([]string{opt}) {
			parts = append(parts, opt)
		}
	}
	return strings.Join(parts, " ")
}
