package pgproxy

import (
	"bytes"
	"encoding/binary"
	"slices"
	"strings"
)

// The codes that a client's first packets begin with.
const (
	protocol3     = 3 << 16
	protocol32    = protocol3 | 2
	codeCancel    = 1234<<16 | 5678
	codeSSL       = 1234<<16 | 5679
	codeGSS       = 1234<<16 | 5680
	maxStartup    = 10000 // MAX_STARTUP_PACKET_LENGTH
	maxCancelKey  = 256
	firstMajor32  = 18 // the first Postgres that speaks protocol 3.2
	optionsPrefix = "_pq_."
)

// parameter is one of a startup packet. They are kept as a list, since Postgres
// gives a meaning to their order and lets the last of two count.
type parameter struct{ name, value string }

// startup is what a client says it wants.
type startup struct {
	version    uint32
	parameters []parameter
	cancel     []byte // the key of a cancel request, which is all it has
}

// parseStartup reads the body of a startup packet, after its version.
func parseStartup(version uint32, body []byte) (*startup, error) {
	if version>>16 != 3 {
		return nil, fatalf("0A000", "unsupported frontend protocol %d.%d: server supports 3.0 to 3.2", version>>16, version&0xffff)
	}
	s := &startup{version: version}
	for len(body) > 0 && body[0] != 0 {
		name, rest, ok := bytes.Cut(body, []byte{0})
		value, rest, ok2 := bytes.Cut(rest, []byte{0})
		if !ok || !ok2 {
			break
		}
		s.parameters = append(s.parameters, parameter{string(name), string(value)})
		body = rest
	}
	if len(body) != 1 || body[0] != 0 {
		return nil, fatalf("08P01", "invalid startup packet layout: expected terminator as last byte")
	}
	return s, nil
}

// encode is the startup packet.
func (s *startup) encode() []byte {
	b := binary.BigEndian.AppendUint32(make([]byte, 4, 256), s.version)
	for _, p := range s.parameters {
		b = append(append(append(append(b, p.name...), 0), p.value...), 0)
	}
	b = append(b, 0)
	binary.BigEndian.PutUint32(b, uint32(len(b)))
	return b
}

// get is the last value of a parameter.
func (s *startup) get(name string) string {
	for _, p := range slices.Backward(s.parameters) {
		if p.name == name {
			return p.value
		}
	}
	return ""
}

// set replaces all values of a parameter with one; an empty one is taken away.
func (s *startup) set(name, value string) {
	at := slices.IndexFunc(s.parameters, func(p parameter) bool { return p.name == name })
	if at < 0 {
		at = len(s.parameters)
	}
	s.parameters = slices.DeleteFunc(s.parameters, func(p parameter) bool { return p.name == name })
	if value != "" {
		s.parameters = slices.Insert(s.parameters, min(at, len(s.parameters)), parameter{name, value})
	}
}

// user is the role that the client wants to be.
func (s *startup) user() string { return s.get("user") }

// negotiate brings the packet down to what a Postgres of a major version
// understands. What it answers says what that is, in the words of that Postgres;
// nil if it understands everything.
func (s *startup) negotiate(major int) []byte {
	newest := uint32(protocol3)
	if major >= firstMajor32 {
		newest = protocol32
	}
	var unknown []string
	s.parameters = slices.DeleteFunc(s.parameters, func(p parameter) bool {
		if !strings.HasPrefix(p.name, optionsPrefix) {
			return false
		}
		unknown = append(unknown, p.name)
		return true
	})
	if s.version <= newest && len(unknown) == 0 {
		return nil
	}
	// A Postgres that speaks only 3.0 names that, and so does a newer one the
	// version that both speak.
	s.version = min(s.version, newest)
	b := []byte{'v', 0, 0, 0, 0}
	b = binary.BigEndian.AppendUint32(b, s.version)
	b = binary.BigEndian.AppendUint32(b, uint32(len(unknown)))
	for _, name := range unknown {
		b = append(append(b, name...), 0)
	}
	binary.BigEndian.PutUint32(b[1:], uint32(len(b)-1))
	return b
}
