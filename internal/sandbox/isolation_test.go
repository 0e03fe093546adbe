package sandbox

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func TestIsolation(t *testing.T) {
	l := newLauncher(t)
	other := newSpec(t, l)
	start(t, l, other)
	connect(t, other)
	s := newSpec(t, l)
	s.Relay = filepath.Join(filepath.Dir(s.DataDir), "relay")
	if err := os.Mkdir(s.Relay, 0o755); err != nil {
		t.Fatal(err)
	}
	tcp, accepted := listen(t, "tcp", "127.0.0.1:0")
	_, port, err := net.SplitHostPort(tcp)
	if err != nil {
		t.Fatal(err)
	}
	abstract, _ := listen(t, "unix", fmt.Sprintf("@sandbox-test-%d", os.Getpid()))
	host := filepath.Join(t.TempDir(), "host.sock")
	listen(t, "unix", host)
	relay, _ := listen(t, "unix", filepath.Join(s.Relay, "sock"))
	if err := testCredential.Chown(relay); err != nil {
		t.Fatal(err)
	}
	p := start(t, l, s)
	conn := connect(t, s)

	dial := func(family, address string) string {
		return `perl -MSocket -e 'socket(my $s, ` + family + `, SOCK_STREAM, 0) or die "no: $!\n"; connect($s, ` + address + `) or die "no: $!\n"; print "yes\n"'`
	}
	tests := []struct{ name, script, want string }{
		{"control: it runs programs", "echo $((6*7))", "42"},
		{"who", "id", "uid=64420(pgbough) gid=64420(pgbough) groups=64420(pgbough)"},
		{"capabilities", "grep -E '^(Cap|NoNewPrivs|Seccomp:)' /proc/self/status | tr -s '\\t ' ' '", "CapInh: 0000000000000000\nCapPrm: 0000000000000000\nCapEff: 0000000000000000\nCapBnd: 0000000000000000\nCapAmb: 0000000000000000\nNoNewPrivs: 1\nSeccomp: 2"},
		{"user namespace", "tr -s ' ' </proc/self/uid_map; cat /proc/sys/user/max_user_namespaces", fmt.Sprintf(" 64420 %d 1\n0", p.(*process).uid)},
		{"new user namespace", "unshare -U true", "unshare: unshare failed: Operation not permitted"},
		{"new namespaces by clone", fmt.Sprintf(`perl -e 'syscall(%d, %d, 0, 0, 0, 0) < 0 and print "no: $!\n"'`, unix.SYS_CLONE, unix.CLONE_NEWUSER|unix.SIGCHLD), "no: Operation not permitted"},
		{"mount", "mount -t tmpfs x /tmp | head -1; ls -d /tmp", ""},
		{"interfaces", "ls /sys 2>&1; tail -n +3 /proc/net/dev | cut -d: -f1 | tr -d ' '", "ls: cannot access '/sys': No such file or directory\nlo"},
		{"routes", "tail -n +2 /proc/net/route | wc -l", "0"},
		{"the host's TCP", dial("PF_INET", `sockaddr_in(`+port+`, inet_aton("127.0.0.1"))`), "no: Connection refused"},
		{"another address", dial("PF_INET", `sockaddr_in(53, inet_aton("8.8.8.8"))`), "no: Network is unreachable"},
		{"the host's abstract sockets", dial("PF_UNIX", `pack("S a*", PF_UNIX, "\0`+abstract[1:]+`")`), "no: Connection refused"},
		{"the host's sockets", dial("PF_UNIX", `sockaddr_un("`+host+`")`), "no: No such file or directory"},
		{"control: the relay's socket", dial("PF_UNIX", `sockaddr_un("/run/pgbough/relay/sock")`), "yes"},
		{"vsock", `perl -e 'socket(my $s, 40, 1, 0) or print "no: $!\n"'`, "no: Address family not supported by protocol"},
		{"keyrings", fmt.Sprintf(`perl -e 'syscall(%d, 0, -4, 1) < 0 and print "no: $!\n"'`, unix.SYS_KEYCTL), "no: Operation not permitted"},
		{"processes", "grep -lsE 'sandbox|systemd' /proc/[0-9]*/comm; ls -d /proc/[0-9]* | wc -l | awk '{print ($1 < 20)}'", "1"},
		{"other volumes", "ls -d " + other.DataDir, "ls: cannot access '" + other.DataDir + "': No such file or directory"},
		{"the host's /tmp", "ls -A /tmp", ""},
		{"top", "ls / | grep -v -E '^s?bin$|^lib'", "dev\netc\npgdata\nproc\nrun\ntmp\nusr\nvar\nvolume-id"},
		{"etc", "ls /etc /run /run/pgbough | grep -v -E '^(alternatives|localtime|ld.so.cache)$'", "/etc:\ngroup\nhosts\npasswd\npgbough\n\n/run:\npgbough\n\n/run/pgbough:\nrelay\nsocket"},
		{"the root is read-only", "touch /volume-id /x /etc/pgbough/x /usr/x /run/pgbough/relay/x 2>&1 | sed 's/.*: //' | sort -u", "Permission denied\nRead-only file system"},
		{"host name", "cat /proc/sys/kernel/hostname", hostPrefix + s.ID},
		{"shared memory", "ls -ld /dev/shm /tmp | cut -c1-10", "drwxrwxrwt\ndrwxrwxrwt"},
		{"setuid programs", "su root -c id 2>&1 | head -1 | cut -c1-3", "su:"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if tt.name == "mount" {
				if got := inside(t, conn, tt.script); !strings.Contains(got, "must be superuser") {
					t.Errorf("got %q", got)
				}
				return
			}
			if got := inside(t, conn, tt.script); got != tt.want {
				t.Errorf("%s\ngot  %q\nwant %q", tt.script, got, tt.want)
			}
		})
	}
	select {
	case <-accepted:
		t.Error("the host's TCP server was reached")
	default:
	}
	// Parallel query is the user of /dev/shm.
	exec1(t, conn, "SET force_parallel_mode = on; SELECT count(*) FROM pg_class")
}

// TestWithoutUserNamespace is what machines without them get.
func TestWithoutUserNamespace(t *testing.T) {
	l := newLauncher(t)
	userns := l.userns
	l.userns, l.shared = nil, errors.New("for a test")
	defer func() { l.userns = userns }()
	s := newSpec(t, l)
	start(t, l, s)
	conn := connect(t, s)
	if got := inside(t, conn, "id -u; grep -E '^Cap(Eff|Bnd)' /proc/self/status | cut -f2; unshare -U true"); got != "64420\n0000000000000000\n0000000000000000\nunshare: unshare failed: Operation not permitted" {
		t.Errorf("got %q", got)
	}
}

// listen accepts connections and tells of the first.
func listen(t *testing.T, network, address string) (string, <-chan struct{}) {
	t.Helper()
	ln, err := net.Listen(network, address)
	if err != nil {
		t.Fatal(err)
	}
	accepted := make(chan struct{}, 1)
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			_ = c.Close()
			select {
			case accepted <- struct{}{}:
			default:
			}
		}
	}()
	t.Cleanup(func() { _ = ln.Close(); <-done })
	return ln.Addr().String(), accepted
}
