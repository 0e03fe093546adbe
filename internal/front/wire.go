package front

import (
	"github.com/pgbough/pgbough/internal/credential"
	"github.com/pgbough/pgbough/internal/pgproxy"
)

// What the front asks of the engine.
const (
	verbBegin       = "begin"       // nothing → settings
	verbCertificate = "certificate" // the ID of one → certificate, if clients are to see another now
	verbHealthy     = "healthy"     // nothing → nothing, or why the engine cannot serve
	verbKey         = "key"         // a string → whether it is a good API key
	verbLogin       = "login"       // loginRequest → pgbough.Login
	verbConnect     = "connect"     // a branch's id → a connection with its Postgres
)

// What the engine asks of the front.
const (
	verbStats   = "stats"   // nothing → pgproxy.Stats
	verbClients = "clients" // a branch's id → how many are connected
	verbHold    = "hold"    // a branch's id
	verbRelease = "release" // a branch's id
	verbEnd     = "end"     // endRequest
	verbStop    = "stop"    // farewell to all clients; it ends soon after the answer
)

// settings are what a front has to know to begin.
type settings struct {
	Debug      bool
	Plain      pgproxy.Plain
	Domain     string
	MaxClients int
	Decoys     []byte   // of credential.Decoys
	Held       []string // branches
}

type loginRequest struct{ Branch, Role string }

type endRequest struct{ Branch, Code, Message string }

// certificate is one that clients are to see, and what it is known by.
type certificate struct {
	ID []byte
	credential.Portable
}
