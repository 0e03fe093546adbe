package replication

import (
	"bytes"
	"io"
	"net"
	"os"
	"strconv"
	"sync"
	"syscall"
	"testing"
)

func ownedBy(info os.FileInfo, uid uint32) bool { return info.Sys().(*syscall.Stat_t).Uid == uid }

// line is a TCP line to a server that does what bad lines do.
type line struct {
	upstream  string
	flip      []byte // change the first byte where this comes
	cutAfter  int    // bytes from upstream
	hangAfter int
}

// open starts the line and returns its port.
func (l line) open(t *testing.T) int {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	var done sync.WaitGroup
	stop := make(chan struct{})
	t.Cleanup(func() { close(stop); _ = listener.Close(); done.Wait() })
	done.Go(func() {
		for {
			client, err := listener.Accept()
			if err != nil {
				return
			}
			done.Go(func() { l.serve(client, stop) })
		}
	})
	return listener.Addr().(*net.TCPAddr).Port
}

func (l line) serve(client net.Conn, stop <-chan struct{}) {
	defer func() { _ = client.Close() }()
	server, err := net.Dial("tcp", l.upstream)
	if err != nil {
		return
	}
	defer func() { _ = server.Close() }()
	go func() {
		_, _ = io.Copy(server, client)
		_ = server.Close()
	}()
	buffer := make([]byte, 32<<10)
	flipped := false
	for total := 0; ; {
		n, err := server.Read(buffer)
		if err != nil {
			return
		}
		total += n
		if l.cutAfter > 0 && total > l.cutAfter {
			return
		}
		if l.hangAfter > 0 && total > l.hangAfter {
			<-stop
			return
		}
		if i := bytes.Index(buffer[:n], l.flip); len(l.flip) > 0 && i >= 0 && !flipped {
			buffer[i] ^= 1
			flipped = true
		}
		if _, err := client.Write(buffer[:n]); err != nil {
			return
		}
	}
}

func itoa(n int) string { return strconv.Itoa(n) }

func atoi(s string) int {
	n, _ := strconv.Atoi(s) // digits
	return n
}
