package pgbough

import "time"

// Login is what a client must prove to be a role of a branch, as the branch's
// own pg_authid has it. A role that does not exist has no verifier: to a client
// it looks like one whose password is wrong.
type Login struct {
	BranchID   string
	Role       string
	Major      int       // of the branch's Postgres
	Verifier   string    // rolpassword: "SCRAM-SHA-256$...", "md5...", or empty; a secret
	ValidUntil time.Time // of the password; zero is for ever
}
