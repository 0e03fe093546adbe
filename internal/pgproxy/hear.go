package pgproxy

import (
	"bufio"
	"context"
	"crypto/tls"
	"encoding/binary"
	"fmt"
	"io"
)

// tlsHandshake is the first byte of TLS.
const tlsHandshake = 0x16

// hear finds out what a client wants: a session or to cancel something in one.
func (p *Proxy) hear(ctx context.Context, c *client) (*startup, error) {
	c.limit(p.Startup)
	first, err := c.r.Peek(1)
	if err != nil {
		return nil, err
	}
	if first[0] == tlsHandshake {
		if err := p.secure(ctx, c, true); err != nil {
			return nil, err
		}
	}
	var askedSSL, askedGSS bool
	for {
		code, body, err := c.packet()
		if err != nil {
			return nil, err
		}
		switch {
		case code == codeSSL && !askedSSL && !c.secure():
			askedSSL = true
			err = p.answerSSL(ctx, c)
		case code == codeGSS && !askedGSS && !c.secure():
			askedGSS = true
			err = c.reply('N')
		case code == codeCancel:
			if len(body) < 8 || len(body) > 4+maxCancelKey {
				return nil, fatalf("08P01", "invalid length of a cancel request")
			}
			return &startup{cancel: body}, nil
		default:
			s, err := parseStartup(code, body)
			if err != nil {
				return nil, err
			}
			return s, p.admit(c)
		}
		if err != nil {
			return nil, err
		}
	}
}

// packet reads one of the packets that come before a session, which have no type.
func (c *client) packet() (code uint32, body []byte, err error) {
	var head [8]byte
	if _, err := io.ReadFull(c.r, head[:]); err != nil {
		return 0, nil, err
	}
	n := binary.BigEndian.Uint32(head[:])
	if n < 8 || n > maxStartup {
		return 0, nil, fatalf("08P01", "invalid length of startup packet")
	}
	body = make([]byte, n-8)
	_, err = io.ReadFull(c.r, body)
	return binary.BigEndian.Uint32(head[4:]), body, err
}

// reply is the one byte that answers a request for encryption.
func (c *client) reply(b byte) error {
	// What was sent before the answer was not encrypted; to take it as if it had
	// been would let somebody in the middle say something in the client's name.
	if c.r.Buffered() > 0 {
		return fatalf("08P01", "received unencrypted data after SSL request").
			hinted("This could be either a client-software bug or evidence of an attempted man-in-the-middle attack.")
	}
	_, err := c.raw.Write([]byte{b})
	return err
}

func (p *Proxy) answerSSL(ctx context.Context, c *client) error {
	if p.TLS == nil {
		return c.reply('N')
	}
	if err := c.reply('S'); err != nil {
		return err
	}
	return p.secure(ctx, c, false)
}

// secure begins TLS. A client that begins with it, without asking, has to name
// the protocol, so that no other protocol's client can be led here.
func (p *Proxy) secure(ctx context.Context, c *client, direct bool) error {
	if p.TLS == nil {
		return fmt.Errorf("%w: it wants TLS, and there is none", errGone)
	}
	config, binding := p.shown.config(p.TLS.Current(ctx))
	c.below = &buffered{Conn: c.raw, r: c.r}
	conn := tls.Server(c.below, config)
	if err := conn.HandshakeContext(ctx); err != nil {
		return fmt.Errorf("%w: TLS: %w", errGone, err) // TLS has told it
	}
	state := conn.ConnectionState()
	c.conn, c.r, c.sni, c.binding = conn, bufio.NewReaderSize(conn, readSize), state.ServerName, binding
	if direct && state.NegotiatedProtocol != alpn {
		return fatalf("08P01", "received direct SSL connection request without ALPN protocol negotiation extension")
	}
	return nil
}

// admit refuses a client that ought to have begun with TLS. It has said its
// name by now, and nothing secret.
func (p *Proxy) admit(c *client) error {
	if c.secure() || p.Plain == PlainAlways || p.Plain == PlainLoopback && c.local() {
		return nil
	}
	return fatalf("28000", "this server does not take connections without TLS from there").hinted("Connect with sslmode=require.")
}
