package credential

import (
	"crypto/md5"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/xdg-go/scram"

	"github.com/pgbough/pgbough"
)

// client is the other side of a login; the library's own client is held against
// real Postgres servers by others.
func client(t *testing.T, password string, flag func(*scram.Client) *scram.ClientConversation) *scram.ClientConversation {
	t.Helper()
	c, err := scram.SHA256.NewClient("", password, "")
	if err != nil {
		t.Fatal(err)
	}
	return flag(c)
}

func plainClient(c *scram.Client) *scram.ClientConversation { return c.NewConversation() }

func login(t *testing.T, v Verifier, mechanism string, binding []byte, c *scram.ClientConversation) error {
	t.Helper()
	s, err := NewSCRAMServer(v, mechanism, binding)
	if err != nil {
		return err
	}
	first, err := c.Step("")
	if err != nil {
		t.Fatal(err)
	}
	challenge, err := s.First([]byte(first))
	if err != nil {
		return err
	}
	proof, err := c.Step(string(challenge))
	if err != nil {
		t.Fatal(err)
	}
	final, err := s.Final([]byte(proof))
	if err != nil {
		return err
	}
	if _, err := c.Step(string(final)); err != nil || !c.Valid() {
		t.Errorf("the client does not believe the server: %v", err)
	}
	return nil
}

func mustVerifier(t *testing.T, password string, iterations int) Verifier {
	t.Helper()
	text, err := NewSCRAM(password, iterations)
	if err != nil {
		t.Fatal(err)
	}
	v, err := ParseVerifier(text)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

func TestSCRAMServer(t *testing.T) {
	v := mustVerifier(t, "pencil", 5000)
	binding := func(data string) func(*scram.Client) *scram.ClientConversation {
		return func(c *scram.Client) *scram.ClientConversation {
			return c.NewConversationWithChannelBinding(scram.ChannelBinding{Type: scram.ChannelBindingTLSServerEndpoint, Data: []byte(data)})
		}
	}
	unaware := func(c *scram.Client) *scram.ClientConversation { return c.NewConversationAdvertisingChannelBinding() }
	for name, try := range map[string]struct {
		password, mechanism string
		binding             []byte
		client              func(*scram.Client) *scram.ClientConversation
		want                error
	}{
		"right":                         {"pencil", SCRAM, nil, plainClient, nil},
		"wrong":                         {"pencil2", SCRAM, nil, plainClient, ErrWrongPassword},
		"over TLS, unbound":             {"pencil", SCRAM, []byte("hash"), plainClient, nil},
		"bound":                         {"pencil", SCRAMPlus, []byte("hash"), binding("hash"), nil},
		"bound, wrong":                  {"pencil2", SCRAMPlus, []byte("hash"), binding("hash"), ErrWrongPassword},
		"bound to another certificate":  {"pencil", SCRAMPlus, []byte("hash"), binding("other"), ErrBinding},
		"bound, but unbound mechanism":  {"pencil", SCRAM, []byte("hash"), binding("hash"), ErrMalformed},
		"plus without binding":          {"pencil", SCRAMPlus, []byte("hash"), plainClient, ErrBinding},
		"plus that was not offered":     {"pencil", SCRAMPlus, nil, binding("hash"), ErrMalformed},
		"another mechanism":             {"pencil", "PLAIN", nil, plainClient, ErrMalformed},
		"thinks that plus is unoffered": {"pencil", SCRAM, []byte("hash"), unaware, ErrBinding},
		"could bind, nothing offered":   {"pencil", SCRAM, nil, unaware, nil},
	} {
		if err := login(t, v, try.mechanism, try.binding, client(t, try.password, try.client)); !errors.Is(err, try.want) {
			t.Errorf("%s: got %v, want %v", name, err, try.want)
		}
	}
}

func TestDecoys(t *testing.T) {
	decoys := func() *Decoys {
		d, err := mustKey(t, filepath.Join(t.TempDir(), "secret.key")).Decoys()
		if err != nil {
			t.Fatal(err)
		}
		return d
	}
	d := decoys()
	v := d.Verifier("br-1", "app")
	if err := login(t, v, SCRAM, nil, client(t, "pencil", plainClient)); !errors.Is(err, ErrWrongPassword) {
		t.Errorf("got %v, want a wrong password", err)
	}
	if d.Verifier("br-1", "app").scram.Salt != v.scram.Salt {
		t.Error("the same role has another salt the second time")
	}
	for name, other := range map[string]Verifier{
		"role": d.Verifier("br-1", "app2"), "branch": d.Verifier("br-2", "app"),
		"server": decoys().Verifier("br-1", "app"), "shifted": d.Verifier("br-1a", "pp"),
	} {
		if other.scram.Salt == v.scram.Salt {
			t.Errorf("another %s has the same salt", name)
		}
	}
	genuine := mustVerifier(t, "pencil", SCRAMIterations)
	if len(genuine.scram.Salt) != len(v.scram.Salt) || genuine.scram.Iters != v.scram.Iters {
		t.Error("a decoy does not look like a real one")
	}
}

func TestMD5Verifier(t *testing.T) {
	sum := func(text string) string { d := md5.Sum([]byte(text)); return hex.EncodeToString(d[:]) }
	v, err := ParseVerifier("md5" + sum("pencil"+"app"))
	if err != nil || !v.IsMD5() {
		t.Fatalf("got %v, md5 %v", err, v.IsMD5())
	}
	salt := [4]byte{1, 2, 3, 4}
	right := "md5" + sum(sum("pencil"+"app")+string(salt[:]))
	if !v.MatchesMD5(salt, right) || v.MatchesMD5([4]byte{}, right) || v.MatchesMD5(salt, "") || (Verifier{}).MatchesMD5(salt, "md5"+sum(string(salt[:]))) {
		t.Error("MatchesMD5 is wrong")
	}
	if _, err := NewSCRAMServer(v, SCRAM, nil); !errors.Is(err, ErrMalformed) {
		t.Errorf("SCRAM with an MD5 verifier: %v", err)
	}
}

func TestBadVerifiers(t *testing.T) {
	good, _ := NewSCRAM("pencil", 4096)
	for _, bad := range []string{
		"", "pencil", "md5", "md5zz", "md5" + strings.Repeat("0", 30), strings.Replace(good, "4096", "0", 1), strings.Replace(good, "4096", "x", 1),
		good[:len(good)-4], good[:len("SCRAM-SHA-256$4096:")], strings.Replace(good, "256", "512", 1),
	} {
		if _, err := ParseVerifier(bad); err == nil {
			t.Errorf("%q was taken", bad)
		}
	}
	v := mustVerifier(t, "pencil", 4096)
	for _, text := range []string{fmt.Sprint(v), fmt.Sprintf("%+v %#v", v, v), v.LogValue().String()} {
		if text != "[verifier]" && text != "[verifier] [verifier]" {
			t.Errorf("the verifier shows in %q", text)
		}
	}
}

func TestCA(t *testing.T) {
	path := filepath.Join(t.TempDir(), "ca.pem")
	ca, err := EnsureCA(path)
	if err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(path); err != nil || info.Mode() != 0o600 {
		t.Errorf("the file: %v, %v", info, err)
	}
	if again, err := EnsureCA(path); err != nil || string(again.PEM()) != string(ca.PEM()) {
		t.Errorf("a second look at the file gave another authority: %v", err)
	}
	if strings.Contains(string(ca.PEM()), "KEY") || strings.Contains(fmt.Sprintf("%v %+v %#v", ca, ca, ca), "0x") {
		t.Error("the key shows")
	}
	cert, err := ca.Issue(time.Now(), "localhost", "*.db.example.com", "127.0.0.1", "::1")
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(ca.PEM())
	for name, want := range map[string]bool{
		"localhost": true, "ep-x.db.example.com": true, "db.example.com": false, "127.0.0.1": true, "::1": true, "127.0.0.2": false,
	} {
		if _, err := cert.Leaf.Verify(x509.VerifyOptions{Roots: roots, DNSName: name}); (err == nil) != want {
			t.Errorf("%s: %v, want good %v", name, err, want)
		}
	}
	if len(EndPoint(cert.Leaf)) != 32 {
		t.Errorf("its end point has %d bytes", len(EndPoint(cert.Leaf)))
	}
	if err := os.WriteFile(path, []byte("nothing"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := EnsureCA(path); pgbough.ErrorCode(err) != pgbough.EInvalid {
		t.Errorf("a file without an authority: %v", err)
	}
}

func FuzzSCRAMServer(f *testing.F) {
	f.Add("n,,n=,r=abc", "c=biws,r=abc,p=AAAA", true)
	f.Add("p=tls-server-end-point,,n=,r=abc", "c=eSws,r=,p=", true)
	f.Add("y,a=x,n=*,r=", ",,", false)
	text, _ := NewSCRAM("pencil", 1)
	v, err := ParseVerifier(text)
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, first, final string, plus bool) {
		mechanism, binding := SCRAM, []byte(nil)
		if plus {
			mechanism, binding = SCRAMPlus, []byte("hash")
		}
		s, err := NewSCRAMServer(v, mechanism, binding)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := s.First([]byte(first)); err != nil {
			return
		}
		if _, err := s.Final([]byte(final)); err == nil {
			t.Errorf("%q, %q logged in", first, final)
		}
	})
}

func FuzzParseVerifier(f *testing.F) {
	f.Add("md5d41d8cd98f00b204e9800998ecf8427e")
	f.Add("SCRAM-SHA-256$4096:AAAA$AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=:AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=")
	f.Fuzz(func(t *testing.T, text string) {
		if v, err := ParseVerifier(text); err == nil && !v.IsMD5() && (v.scram.Iters < 1 || v.scram.Salt == "") {
			t.Errorf("%q makes an unusable verifier", text)
		}
	})
}
