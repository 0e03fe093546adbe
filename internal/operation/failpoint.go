package operation

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
)

// Failpoints reads a description of faults, for tests of what a crash or a
// failure at one exact place leaves behind, and returns the function that
// carries them out when it is called with the name of a place:
//
//	create_branch/promote/done=kill       end this process at once, as a crash would
//	create_branch/promote/before=error    fail the step
//	create_branch/take/undo/before=error:3   fail it the first three times
//	refill_spare/clone/before=sleep:100ms
//
// Several are separated by semicolons. The function is nil for an empty text.
func Failpoints(text string) (func(name string), error) {
	faults := map[string]func(name string){}
	for item := range strings.SplitSeq(text, ";") {
		if item = strings.TrimSpace(item); item == "" {
			continue
		}
		name, action, ok := strings.Cut(item, "=")
		fault, err := parseFault(action)
		if !ok || err != nil {
			return nil, fmt.Errorf("failpoint %q: want place=kill, place=error[:times] or place=sleep:duration", item)
		}
		faults[strings.TrimSpace(name)] = fault
	}
	if len(faults) == 0 {
		return nil, nil
	}
	return func(name string) {
		if fault, ok := faults[name]; ok {
			fault(name)
		}
	}, nil
}

func parseFault(action string) (func(name string), error) {
	verb, arg, hasArg := strings.Cut(strings.TrimSpace(action), ":")
	switch {
	case verb == "kill" && !hasArg:
		return func(string) {
			_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
			select {} // the signal may take a moment
		}, nil
	case verb == "error":
		times := -1
		if hasArg {
			n, err := strconv.Atoi(arg)
			if err != nil || n < 1 {
				return nil, fmt.Errorf("%q is not a number of times", arg)
			}
			times = n
		}
		return failTimes(times), nil
	case verb == "sleep":
		d, err := time.ParseDuration(arg)
		return func(string) { <-time.After(d) }, err
	}
	return nil, fmt.Errorf("unknown action %q", action)
}

// failTimes panics, which the Engine takes as the step's error, the first so
// many times, or always when times is negative.
func failTimes(times int) func(name string) {
	var mu sync.Mutex
	return func(name string) {
		mu.Lock()
		defer mu.Unlock()
		if times == 0 {
			return
		}
		times--
		panic(injectedError{name})
	}
}

// injectedError is the error of a failpoint.
type injectedError struct{ name string }

func (e injectedError) Error() string { return "failpoint " + e.name }
