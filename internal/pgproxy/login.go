package pgproxy

import (
	"context"
	"crypto/rand"
	"errors"
	"io"
	"time"

	"github.com/jackc/pgx/v5/pgproto3"

	"github.com/pgbough/pgbough"
	"github.com/pgbough/pgbough/internal/credential"
)

// login finds the branch and lets the client prove who it is. When it returns
// without an error, what the client still has to be told about that is in
// c.pending.
func (p *Proxy) login(ctx context.Context, c *client, s *startup) (pgbough.Login, error) {
	if s.user() == "" {
		return pgbough.Login{}, fatalf("28000", "no PostgreSQL user name specified in startup packet")
	}
	waiting, stop := c.watch(ctx)
	within, cancel := context.WithTimeout(waiting, p.Wait)
	login, err := p.find(within, c, s)
	cancel()
	stop()
	if err != nil {
		if errors.Is(context.Cause(waiting), errGone) {
			err = errGone
		}
		return login, p.noBranch(ctx, c, s, err)
	}
	c.limit(p.Login)
	c.pending = append(c.pending, s.negotiate(login.Major)...)
	if err := p.prove(c, login); err != nil {
		return login, p.notProved(ctx, c, login, err)
	}
	return login, nil
}

// noBranch is what becomes of a client whose branch cannot be found. It has not
// proved anything, so it is told no more than find has decided: not what other
// names the branch has, nor how it is.
func (p *Proxy) noBranch(ctx context.Context, c *client, s *startup, err error) error {
	var f *fatal
	var ours *pgbough.Error
	switch {
	case ctx.Err() != nil:
		return err
	case errors.As(err, &f):
		p.counts.failures.Add(1)
	case errors.Is(err, context.DeadlineExceeded):
		return fatalf("57P03", "the branch is not ready yet").hinted("Connect again later.")
	case errors.As(err, &ours):
		f = fatalf("57P03", "the branch cannot be connected to now").
			hinted("`pgbough branch get` says why. Where several projects have a branch of that name, it is named project/name.").because(err)
	default:
		return err
	}
	p.Log.InfoContext(ctx, "a client was refused", "peer", c.peer, "role", s.user(), "database", s.get("database"), "error", f)
	return f
}

// notProved is what becomes of a client that has not proved who it is. A client
// that has no password asks its user after it has seen that one is wanted, and
// comes back.
func (p *Proxy) notProved(ctx context.Context, c *client, login pgbough.Login, err error) error {
	if errors.Is(err, io.EOF) || isReset(err) || ctx.Err() != nil {
		return err
	}
	p.counts.failures.Add(1)
	p.Log.InfoContext(ctx, "a client was refused", "peer", c.peer, "role", login.Role, "branch", login.BranchID, "error", err)
	switch {
	case errors.Is(err, credential.ErrWrongPassword):
		return fatalf("28P01", "password authentication failed for user \"%s\"", login.Role).because(err)
	case errors.Is(err, credential.ErrBinding):
		return fatalf("28000", "SCRAM channel binding check failed").because(err)
	case errors.Is(err, credential.ErrMalformed):
		return fatalf("08P01", "malformed SCRAM message").because(err)
	}
	return err
}

// prove lets a client prove that it knows the password of a role. To know that a
// role does not exist, has no password or one that is no longer valid, must not
// be quicker than to know that the password is wrong.
func (p *Proxy) prove(c *client, login pgbough.Login) error {
	v, err := credential.ParseVerifier(login.Verifier)
	expired := !login.ValidUntil.IsZero() && !time.Now().Before(login.ValidUntil)
	if decoy := p.Decoys.Verifier(login.BranchID, login.Role); err != nil || expired {
		v = decoy
	}
	if v.IsMD5() {
		return c.proveMD5(v)
	}
	return c.proveSCRAM(v)
}

func (c *client) proveMD5(v credential.Verifier) error {
	var salt [4]byte
	_, _ = rand.Read(salt[:]) // never fails (crypto/rand)
	answer, err := c.ask(&pgproto3.AuthenticationMD5Password{Salt: salt})
	if err != nil {
		return err
	}
	var m pgproto3.PasswordMessage
	if err := m.Decode(answer); err != nil {
		return fatalf("08P01", "invalid password packet size").because(err)
	}
	if !v.MatchesMD5(salt, m.Password) {
		return credential.ErrWrongPassword
	}
	return nil
}

func (c *client) proveSCRAM(v credential.Verifier) error {
	offer := []string{credential.SCRAM}
	if c.binding != nil {
		offer = []string{credential.SCRAMPlus, credential.SCRAM}
	}
	answer, err := c.ask(&pgproto3.AuthenticationSASL{AuthMechanisms: offer})
	if err != nil {
		return err
	}
	var m pgproto3.SASLInitialResponse
	if err := m.Decode(answer); err != nil {
		return credential.ErrMalformed
	}
	server, err := credential.NewSCRAMServer(v, m.AuthMechanism, c.binding)
	if err != nil {
		return err
	}
	challenge, err := server.First(m.Data)
	if err != nil {
		return err
	}
	if answer, err = c.ask(&pgproto3.AuthenticationSASLContinue{Data: challenge}); err != nil {
		return err
	}
	final, err := server.Final(answer)
	if err != nil {
		return err
	}
	c.pending, err = (&pgproto3.AuthenticationSASLFinal{Data: final}).Encode(c.pending)
	return err
}

// ask sends what is pending and m, and returns the body of the answer.
func (c *client) ask(m pgproto3.BackendMessage) ([]byte, error) {
	b, err := m.Encode(c.pending)
	if err != nil {
		return nil, err
	}
	c.pending = nil
	if _, err := c.conn.Write(b); err != nil {
		return nil, err
	}
	kind, body, err := c.message()
	if err == nil && kind != 'p' {
		err = fatalf("08P01", "expected a password or SASL response, got message type %d", kind)
	}
	return body, err
}
