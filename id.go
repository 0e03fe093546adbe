package pgbough

import (
	"crypto/rand"
	"math/big"
	"strings"
)

// The shapes of identifiers are those that Neon's own clients check: a branch
// is br-<adjective>-<noun>-<8 letters or digits>, an endpoint ep-... alike, a
// project <adjective>-<noun>-<8 digits>.
var (
	adjectives = strings.Fields("amber ancient autumn bold broad calm clear cold crimson damp dark dawn deep dry early fair fresh gentle golden green hidden icy late light lively long misty mossy old pale plain proud purple quiet rapid red rough round royal sandy shady sharp shy silent silver small snowy soft solid spring steep still summer sunny sweet tall tender tiny warm white wild winter young")
	nouns      = strings.Fields("acorn alder apple ash aspen bark beech berry birch bloom bough branch briar brook bud bush canopy cedar cherry cone creek crown elder elm fern field fig fir flower forest frost glade grass grove hazel heath hedge hill holly ivy juniper larch laurel leaf lichen lime maple meadow moss oak olive orchard palm pear pine plum pond poplar rain reed ridge river root rowan sap seed shade shoot spruce stem stone sun thicket thorn tree trunk twig vine willow wind wood yew")
)

const (
	lowerAlnum = "abcdefghijklmnopqrstuvwxyz0123456789"
	digits     = "0123456789"
)

// NewProjectID makes a fresh project identifier.
func NewProjectID() string { return pick(adjectives) + "-" + pick(nouns) + "-" + letters(digits, 8) }

// NewBranchID makes a fresh branch identifier.
func NewBranchID() string {
	return "br-" + pick(adjectives) + "-" + pick(nouns) + "-" + letters(lowerAlnum, 8)
}

// NewEndpointID makes a fresh endpoint identifier.
func NewEndpointID() string {
	return "ep-" + pick(adjectives) + "-" + pick(nouns) + "-" + letters(lowerAlnum, 8)
}

// NewVolumeID makes a fresh volume identifier. It is short because it stands in
// the path of a socket, which may have 107 bytes.
func NewVolumeID() string { return "v" + letters(lowerAlnum, 11) }

// NewOperationID makes a fresh operation identifier, a random UUID (version 4).
func NewOperationID() string {
	var b [16]byte
	_, _ = rand.Read(b[:]) // never fails (crypto/rand)
	b[6], b[8] = b[6]&0x0f|0x40, b[8]&0x3f|0x80
	const hex = "0123456789abcdef"
	var s strings.Builder
	for i, c := range b {
		if i == 4 || i == 6 || i == 8 || i == 10 {
			s.WriteByte('-')
		}
		s.WriteByte(hex[c>>4])
		s.WriteByte(hex[c&15])
	}
	return s.String()
}

func pick(words []string) string { return words[below(len(words))] }

func letters(alphabet string, n int) string {
	b := make([]byte, n)
	for i := range b {
		b[i] = alphabet[below(len(alphabet))]
	}
	return string(b)
}

func below(n int) int {
	v, err := rand.Int(rand.Reader, big.NewInt(int64(n)))
	if err != nil {
		panic(err) // crypto/rand does not fail
	}
	return int(v.Int64())
}
