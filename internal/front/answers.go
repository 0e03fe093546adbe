package front

import (
	"bytes"
	"context"
	"net"

	"github.com/pgbough/pgbough"
)

// answers answers one front.
type answers struct {
	host *Host
	of   *child
}

// Answer implements link.Answerer.
func (a *answers) Answer(ctx context.Context, verb string, in func(any) error) (any, net.Conn, error) {
	s := a.host.o.Service
	switch verb {
	case verbBegin:
		return a.begin()
	case verbCertificate:
		var known []byte
		if err := in(&known); err != nil {
			return nil, nil, err
		}
		c, err := a.certificate(ctx, known)
		return c, nil, err
	case verbHealthy:
		return nil, nil, s.Healthy(ctx)
	case verbKey:
		var key string
		if err := in(&key); err != nil {
			return nil, nil, err
		}
		_, ok, err := s.Authenticate(ctx, key)
		return ok, nil, err
	case verbLogin:
		var r loginRequest
		if err := in(&r); err != nil {
			return nil, nil, err
		}
		l, err := s.Login(ctx, r.Branch, r.Role)
		return l, nil, err
	case verbConnect:
		var id string
		if err := in(&id); err != nil {
			return nil, nil, err
		}
		conn, err := s.Connect(ctx, id)
		return nil, conn, err
	}
	return nil, nil, pgbough.Errorf(pgbough.EInvalid, "there is no %q to ask for", verb)
}

func (a *answers) begin() (any, net.Conn, error) {
	o := &a.host.o
	defer a.of.begins()
	return settings{
		Debug: o.Debug, Plain: o.Plain, Domain: o.Domain, MaxClients: o.MaxClients,
		Decoys: o.Decoys.Reveal(), Held: a.host.took(a.of),
	}, nil, nil
}

// certificate is what clients are to see, unless the front knows it.
func (a *answers) certificate(ctx context.Context, known []byte) (*certificate, error) {
	now := a.host.o.Certificates.Current(ctx)
	if bytes.Equal(now.Binding, known) {
		return nil, nil
	}
	p, err := now.Portable()
	return &certificate{now.Binding, p}, err
}
