package credential

import (
	"crypto"
	"crypto/x509"
	"errors"
	"fmt"
	"strings"

	"github.com/xdg-go/scram"
)

// The mechanisms that a SCRAMServer can speak; the second binds the login to
// the TLS connection that it is made over.
const (
	SCRAM     = "SCRAM-SHA-256"
	SCRAMPlus = "SCRAM-SHA-256-PLUS"
)

// The ways in which a login over SCRAM fails.
var (
	ErrWrongPassword = errors.New("the client does not know the password")
	ErrBinding       = errors.New("the client and the server do not see the same TLS connection")
	ErrMalformed     = errors.New("the client's message is not one of SCRAM")
)

// SCRAMServer is the server's side of one login.
type SCRAMServer struct {
	conversation *scram.ServerConversation
	plus         bool
}

// NewSCRAMServer begins a login with a mechanism that the client has chosen.
// binding is EndPoint of the certificate of the TLS connection, nil where there
// is none, or where SCRAMPlus was not offered.
func NewSCRAMServer(v Verifier, mechanism string, binding []byte) (*SCRAMServer, error) {
	plus := mechanism == SCRAMPlus
	if v.IsMD5() || mechanism != SCRAM && !plus || plus && binding == nil {
		return nil, fmt.Errorf("%w: mechanism %q was not offered", ErrMalformed, mechanism)
	}
	server, err := scram.SHA256.NewServer(func(string) (scram.StoredCredentials, error) {
		return v.scram, nil // Postgres takes the role of the startup packet, and so do all clients
	})
	if err != nil {
		return nil, fmt.Errorf("begin SCRAM: %w", err)
	}
	if binding == nil {
		return &SCRAMServer{server.NewConversation(), false}, nil
	}
	b := scram.ChannelBinding{Type: scram.ChannelBindingTLSServerEndpoint, Data: binding}
	if plus {
		return &SCRAMServer{server.NewConversationWithChannelBindingRequired(b), true}, nil
	}
	return &SCRAMServer{server.NewConversationWithChannelBinding(b), false}, nil
}

// First answers the client's first message.
func (s *SCRAMServer) First(message []byte) ([]byte, error) {
	if !s.plus && strings.HasPrefix(string(message), "p=") {
		return nil, fmt.Errorf("%w: channel binding with %s", ErrMalformed, SCRAM)
	}
	return s.step(message)
}

// Final answers the client's last message. Only without an error has the client
// proved that it knows the password.
func (s *SCRAMServer) Final(message []byte) ([]byte, error) {
	answer, err := s.step(message)
	if err == nil && !s.conversation.Valid() {
		return nil, ErrWrongPassword
	}
	return answer, err
}

func (s *SCRAMServer) step(message []byte) ([]byte, error) {
	answer, err := s.conversation.Step(string(message))
	switch {
	case err == nil:
		return []byte(answer), nil
	case answer == scram.ErrInvalidProof:
		return nil, ErrWrongPassword
	case answer == scram.ErrChannelBindingsDontMatch, answer == scram.ErrServerDoesSupportChannelBinding,
		answer == scram.ErrChannelBindingNotSupported, answer == scram.ErrUnsupportedChannelBindingType:
		return nil, ErrBinding
	default:
		return nil, ErrMalformed // err has parts of the message, which has the proof
	}
}

// EndPoint is what SCRAMPlus binds a login to: the hash of the server's
// certificate (tls-server-end-point, RFC 5929). It is nil for a certificate whose
// signature names no hash, such as Ed25519: SCRAMPlus cannot be offered then.
func EndPoint(cert *x509.Certificate) []byte {
	var hash crypto.Hash
	switch cert.SignatureAlgorithm {
	case x509.SHA1WithRSA, x509.ECDSAWithSHA1, x509.MD5WithRSA,
		x509.SHA256WithRSA, x509.SHA256WithRSAPSS, x509.ECDSAWithSHA256:
		hash = crypto.SHA256
	case x509.SHA384WithRSA, x509.SHA384WithRSAPSS, x509.ECDSAWithSHA384:
		hash = crypto.SHA384
	case x509.SHA512WithRSA, x509.SHA512WithRSAPSS, x509.ECDSAWithSHA512:
		hash = crypto.SHA512
	default:
		return nil
	}
	h := hash.New()
	h.Write(cert.Raw)
	return h.Sum(nil)
}
