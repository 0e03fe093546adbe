package pgproxy

import (
	"errors"
	"fmt"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

const (
	// bufferSize is for one read.
	bufferSize = 32 << 10
	// eventsAtOnce is how many events are taken from epoll in one call.
	eventsAtOnce = 128
	// always is what epoll looks for at each port, and tells once: a port
	// remembers it.
	always = unix.EPOLLIN | unix.EPOLLRDHUP | unix.EPOLLET
)

// loop moves the bytes of many relays, with one goroutine that waits for all
// their sockets in one system call. Nothing else that it does waits.
type loop struct {
	epoll int
	quit  int // an eventfd

	mu     sync.Mutex
	relays map[uint64]*relay
	last   uint64 // the id that was given last
}

// loops are those of a proxy that serves.
type loops struct {
	all  []*loop
	next atomic.Uint64
	done sync.WaitGroup
}

// startLoops starts one loop for two processors: the other one is for the
// Postgres at the far end. stop must follow.
func startLoops() (*loops, error) {
	l := &loops{}
	for range max(1, runtime.GOMAXPROCS(0)/2) {
		one, err := newLoop()
		if err != nil {
			l.stop()
			return nil, fmt.Errorf("start a loop of the proxy: %w", err)
		}
		l.all = append(l.all, one)
		l.done.Go(one.run)
	}
	return l, nil
}

// pick is the loop for the next client.
func (l *loops) pick() *loop { return l.all[l.next.Add(1)%uint64(len(l.all))] }

// stop ends loops that have no relays any more.
func (l *loops) stop() {
	for _, one := range l.all {
		_, _ = unix.Write(one.quit, []byte{1, 0, 0, 0, 0, 0, 0, 0}) // fails only when the counter is full
	}
	l.done.Wait()
	for _, one := range l.all {
		one.close()
	}
}

func newLoop() (*loop, error) {
	epoll, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return nil, err
	}
	l := &loop{epoll: epoll, quit: -1, relays: map[uint64]*relay{}}
	if l.quit, err = unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK); err == nil {
		err = l.control(unix.EPOLL_CTL_ADD, l.quit, unix.EPOLLIN, 0)
	}
	if err != nil {
		l.close()
		return nil, err
	}
	return l, nil
}

func (l *loop) close() {
	_ = unix.Close(l.epoll)
	_ = unix.Close(l.quit)
}

// control tells epoll about a descriptor. Its events come with a tag, so that
// one of a descriptor that has been closed meanwhile is not taken for that of
// another.
func (l *loop) control(op, fd int, events uint32, tag uint64) error {
	return unix.EpollCtl(l.epoll, op, fd, &unix.EpollEvent{Events: events, Fd: int32(uint32(tag)), Pad: int32(uint32(tag >> 32))})
}

// The lowest bit of a tag tells the ports of a relay apart.
const backBit = 1

func tagOf(e *unix.EpollEvent) uint64 { return uint64(uint32(e.Fd)) | uint64(uint32(e.Pad))<<32 }

// run serves until quit. That is the event with tag 0.
func (l *loop) run() {
	buf := make([]byte, bufferSize)
	events := make([]unix.EpollEvent, eventsAtOnce)
	var busy []*relay // that have more to do at once
	for {
		timeout := -1
		if len(busy) > 0 {
			timeout = 0
		}
		n, err := unix.EpollWait(l.epoll, events, timeout)
		if err != nil && !errors.Is(err, unix.EINTR) {
			panic(fmt.Sprintf("epoll_wait: %v", err)) // only a descriptor that is not ours any more can do that
		}
		busy = slices.DeleteFunc(busy, func(r *relay) bool {
			r.busy = r.turn(buf)
			return !r.busy
		})
		for i := range max(n, 0) {
			tag := tagOf(&events[i])
			if tag == 0 {
				return
			}
			r := l.find(tag)
			if r == nil || !r.happened(tag&backBit != 0, events[i].Events, buf) || r.busy {
				continue
			}
			r.busy = true
			busy = append(busy, r)
		}
	}
}

func (l *loop) find(tag uint64) *relay {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.relays[tag&^backBit]
}

// add lets l look after r.
func (l *loop) add(r *relay) error {
	l.mu.Lock()
	l.last += 2
	r.id = l.last
	l.relays[r.id] = r
	l.mu.Unlock()
	err := r.front.watch(l, unix.EPOLL_CTL_ADD, always, r.id)
	if err == nil {
		// There is room at first, so this is the event that has it begin.
		err = r.back.watch(l, unix.EPOLL_CTL_ADD, always|unix.EPOLLOUT, r.id|backBit)
	}
	return err
}

// remove undoes add. Events of r may still be under way, and do nothing.
func (l *loop) remove(r *relay) {
	l.mu.Lock()
	delete(l.relays, r.id)
	l.mu.Unlock()
	for _, p := range []*port{&r.front, &r.back} {
		_ = l.control(unix.EPOLL_CTL_DEL, p.fd, 0, 0) // fails only where add has failed
	}
}

// watch has epoll look for events at p. What is so already is an event, too.
func (p *port) watch(l *loop, op int, events uint32, tag uint64) error {
	p.watched = events
	return l.control(op, p.fd, events, tag)
}
