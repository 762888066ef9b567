package dbusctl

import (
	"flag"
	"fmt"
	"os"
	"runtime"
	"runtime/pprof"
	"testing"
	"time"
)

// TestMain fails the suite when goroutines or descriptors are left over: a
// long-lived zdt watch must not gather them.
func TestMain(m *testing.M) {
	if helper() {
		return
	}
	goroutines, fds := runtime.NumGoroutine(), openFDs()
	code := m.Run()
	if flag.Lookup("test.fuzz").Value.String() != "" {
		os.Exit(code) // the fuzzing engine keeps goroutines of its own
	}
	// Goroutines of the D-Bus library end on their own soon after a Close.
	for end := time.Now().Add(5 * time.Second); ; {
		if runtime.NumGoroutine() <= goroutines && openFDs() <= fds {
			break
		}
		if time.Now().After(end) {
			fmt.Fprintf(os.Stderr, "left over: goroutines %d → %d, descriptors %d → %d\n", goroutines, runtime.NumGoroutine(), fds, openFDs())
			pprof.Lookup("goroutine").WriteTo(os.Stderr, 1)
			if code == 0 {
				code = 1
			}
			break
		}
		runtime.Gosched()
	}
	os.Exit(code)
}

// openFDs counts open descriptors but for those of Go's own poller, which come
// with the first socket and stay.
func openFDs() int {
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		return 0
	}
	n := 0
	for _, e := range entries {
		switch to, err := os.Readlink("/proc/self/fd/" + e.Name()); {
		case err != nil, to == "anon_inode:[eventpoll]", to == "anon_inode:[eventfd]", to == "anon_inode:[pidfd]":
		default:
			n++
		}
	}
	return n
}

// eventually waits for a condition that another process or goroutine brings about.
func eventually(t *testing.T, what string, cond func() bool) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); !cond(); {
		if time.Now().After(end) {
			t.Fatalf("never happened: %s", what)
		}
		time.Sleep(2 * time.Millisecond)
	}
}
