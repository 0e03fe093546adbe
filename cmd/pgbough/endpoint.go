//go:build linux

package main

import (
	"context"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"slices"

	"github.com/spf13/cobra"

	"github.com/pgbough/pgbough"
	"github.com/pgbough/pgbough/internal/branch"
	"github.com/pgbough/pgbough/internal/credential"
	"github.com/pgbough/pgbough/internal/front"
	"github.com/pgbough/pgbough/internal/pgproxy"
)

// endpointFlags say how clients reach branches.
type endpointFlags struct {
	proxy, domain string
	cert, key     string
	plain         bool
	clients       int
}

func (e *endpointFlags) add(cmd *cobra.Command) {
	f := cmd.Flags()
	f.StringVar(&e.proxy, "proxy", envOr("PGBOUGH_PROXY", "127.0.0.1:7432"), "address where clients reach all branches (PGBOUGH_PROXY)")
	f.StringVar(&e.domain, "domain", "", "URIs name each branch as <endpoint>.`DOMAIN`; DNS has to lead *.DOMAIN to this server")
	f.StringVar(&e.cert, "tls-cert", "", "`file` with the certificate that clients of branches and of the API see (default: one signed by the server's own authority, ca.crt in the data directory)")
	f.StringVar(&e.key, "tls-key", "", "`file` with its key")
	f.BoolVar(&e.plain, "allow-plain", false, "let clients of other machines in without TLS")
	f.IntVar(&e.clients, "max-clients", 0, "how many clients may have logged in to all branches; 0 for no limit")
}

// check refuses flags that contradict each other.
func (e *endpointFlags) check() error {
	if (e.cert == "") != (e.key == "") {
		return pgbough.Errorf(pgbough.EInvalid, "--tls-cert and --tls-key belong together").WithHint("give both, or none")
	}
	return nil
}

// listen takes the port.
func (e *endpointFlags) listen(ctx context.Context) (*net.TCPListener, error) {
	l, err := listenTCP(ctx, e.proxy)
	if err != nil {
		return nil, pgbough.Errorf(pgbough.EConflict, "clients of branches cannot be served on %s: %w", e.proxy, err).
			WithHint("another server may run; choose another address with --proxy")
	}
	return l, nil
}

func listenTCP(ctx context.Context, address string) (*net.TCPListener, error) {
	l, err := (&net.ListenConfig{}).Listen(ctx, "tcp", address)
	if err != nil {
		return nil, err
	}
	return l.(*net.TCPListener), nil // what "tcp" is
}

// endpoint is what connection URIs name. A listener on all addresses is named by
// the machine's host name, since 127.0.0.1 would lead other machines astray.
func (e *endpointFlags) endpoint(l net.Listener) (branch.Endpoint, error) {
	host, port, err := net.SplitHostPort(l.Addr().String())
	if err != nil {
		return branch.Endpoint{}, err
	}
	return branch.Endpoint{Host: named(host), Port: port, Domain: e.domain}, nil
}

// named is a host that a listener has, for clients of other machines.
func named(host string) string {
	if ip := net.ParseIP(host); ip != nil && ip.IsUnspecified() {
		if name, err := os.Hostname(); err == nil {
			return name
		}
	}
	return host
}

// options are the front's, as far as it is about how clients reach the server. The
// authority that signs its certificate is in the data directory; clients that verify
// need what stands in ca.crt beside it.
func (e *endpointFlags) options(data string, key *credential.Key, log *slog.Logger, api, clients *net.TCPListener) (front.Options, error) {
	o := front.Options{
		Log: log, APIListener: api, ProxyListener: clients,
		Plain: pgproxy.PlainLoopback, Domain: e.domain, MaxClients: e.clients,
	}
	if e.plain {
		o.Plain = pgproxy.PlainAlways
	}
	var err error
	if o.Decoys, err = key.Decoys(); err == nil {
		o.Certificates, err = e.certificates(data, log, []net.Listener{api, clients})
	}
	return o, err
}

func (e *endpointFlags) certificates(data string, log *slog.Logger, listeners []net.Listener) (*credential.Certificates, error) {
	if e.cert != "" {
		return credential.NewCertificates(e.cert, e.key, log)
	}
	ca, err := credential.EnsureCA(filepath.Join(data, "ca.pem"))
	if err != nil {
		return nil, err
	}
	if err := os.WriteFile(filepath.Join(data, "ca.crt"), ca.PEM(), 0o644); err != nil {
		return nil, err
	}
	names := addresses(listeners)
	if e.domain != "" {
		names = append(names, "*."+e.domain, e.domain)
	}
	return credential.OwnCertificates(ca, log, names...)
}

// addresses are the names and addresses under which a machine can reach any of
// the listeners: where one is on all addresses, those that this machine has now.
func addresses(listeners []net.Listener) []string {
	names := []string{"localhost", "127.0.0.1", "::1"}
	if host, err := os.Hostname(); err == nil {
		names = append(names, host)
	}
	for _, l := range listeners {
		tcp, ok := l.Addr().(*net.TCPAddr)
		if !ok {
			continue
		}
		names = append(names, tcp.IP.String())
		if !tcp.IP.IsUnspecified() {
			continue
		}
		own, err := net.InterfaceAddrs()
		if err != nil {
			continue // clients then use the host name
		}
		for _, a := range own {
			if n, ok := a.(*net.IPNet); ok && !n.IP.IsLinkLocalUnicast() {
				names = append(names, n.IP.String())
			}
		}
	}
	slices.Sort(names)
	return slices.DeleteFunc(slices.Compact(names), func(name string) bool {
		ip := net.ParseIP(name)
		return ip != nil && ip.IsUnspecified()
	})
}
