package e2e

import (
	"fmt"
	"io"
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
)

// held is what a server has for itself at one moment: what of it grows with its
// age is a leak.
type held struct {
	goroutines int
	files      map[string]int // descriptors, by what they are of
	zombies    int
}

// A few more are what is just being done.
const slack = 12

// holds looks at all processes of the server, but not at those in sandboxes.
func (s *server) holds() held {
	s.t.Helper()
	h := held{goroutines: s.goroutines(), files: map[string]int{}}
	for _, pid := range s.ownProcesses() {
		if stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid)); err == nil && strings.Contains(string(stat), ") Z ") {
			h.zombies++
		}
		links, _ := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", pid))
		for _, link := range links {
			of, err := os.Readlink(link)
			if err != nil {
				continue // it was closed
			}
			h.files[kindOf(of)]++
		}
	}
	return h
}

var numbers = regexp.MustCompile(`[0-9a-f]*[0-9][0-9a-f]*`)

// kindOf is what a descriptor is of, without what tells it from others of its kind.
func kindOf(file string) string {
	if strings.HasPrefix(file, "/") {
		return filepath.Base(filepath.Dir(file)) + "/" + numbers.ReplaceAllString(filepath.Base(file), "*")
	}
	return numbers.ReplaceAllString(file, "*")
}

// total is the number of descriptors. User namespaces are not counted: the server
// keeps one for each of the users that sandboxes have had, and there are 500.
func (h held) total() int {
	n := 0
	for kind, count := range h.files {
		if kind != "user:[*]" {
			n += count
		}
	}
	return n
}

func (h held) String() string {
	var files []string
	for _, kind := range slices.Sorted(maps.Keys(h.files)) {
		files = append(files, fmt.Sprintf("%d %s", h.files[kind], kind))
	}
	return fmt.Sprintf("%d goroutines, %d zombies, descriptors: %s", h.goroutines, h.zombies, strings.Join(files, ", "))
}

// holdsNoMore waits until the server has about as much for itself as it had.
func (s *server) holdsNoMore(before held) {
	s.t.Helper()
	var now held
	for deadline := time.Now().Add(30 * time.Second); time.Now().Before(deadline); time.Sleep(200 * time.Millisecond) {
		now = s.holds()
		if now.goroutines <= before.goroutines+slack && now.total() <= before.total()+slack && now.zombies == 0 {
			return
		}
	}
	s.t.Errorf("the server had %v\nand has %v", before, now)
}

// ownProcesses are the server's own.
func (s *server) ownProcesses() []int {
	children := map[int][]int{}
	stats, _ := filepath.Glob("/proc/[0-9]*/stat")
	for _, path := range stats {
		b, _ := os.ReadFile(path) // it may have ended
		head, tail, _ := strings.Cut(string(b), " (")
		pid, _ := strconv.Atoi(head)
		if fields := strings.Fields(tail[strings.LastIndexByte(tail, ')')+1:]); len(fields) > 1 {
			parent, _ := strconv.Atoi(fields[1])
			children[parent] = append(children[parent], pid)
		}
	}
	all := []int{s.cmd.Process.Pid}
	for i := 0; i < len(all); i++ {
		for _, child := range children[all[i]] {
			exe, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", child))
			if err != nil || exe == racing { // a zombie has none
				all = append(all, child)
			}
		}
	}
	return all
}

// goroutines is what both processes of the server say of themselves.
func (s *server) goroutines() int {
	s.t.Helper()
	key, err := os.ReadFile(filepath.Join(s.data(), "admin.key"))
	check(s.t, err)
	req, err := http.NewRequest(http.MethodGet, "http://"+s.api+"/metrics", nil)
	check(s.t, err)
	req.Header.Set("Authorization", "Bearer "+strings.TrimSpace(string(key)))
	transport := &http.Transport{DisableKeepAlives: true}
	res, err := (&http.Client{Transport: transport}).Do(req)
	check(s.t, err)
	defer func() { _ = res.Body.Close() }()
	text, err := io.ReadAll(res.Body)
	check(s.t, err)
	n := 0
	for _, of := range []string{"go_goroutines", "pgbough_proxy_goroutines"} {
		m := regexp.MustCompile(`(?m)^` + of + ` ([0-9]+)$`).FindSubmatch(text)
		if m == nil {
			s.t.Fatalf("metrics do not tell %s: %.200s", of, text)
		}
		one, err := strconv.Atoi(string(m[1]))
		check(s.t, err)
		n += one
	}
	return n
}
