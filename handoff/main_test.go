package handoff

import (
	"flag"
	"fmt"
	"maps"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"sync"
	"testing"

	"golang.org/x/sys/unix"
)

// envRole makes the test binary play a program of a scenario. Which one is the
// base name of the file it was executed as, so that a candidate differs from its
// incumbent in the file alone, as it does in life.
const envRole = "ZDT_TEST_DIR"

// roles are the programs. Each must be used by some test.
func roles() map[string]func() error {
	return map[string]func() error{
		"service":           serviceMain,
		"service-next":      serviceMain,
		"service-early":     serviceMain,
		"service-short":     shortServiceMain,
		"crossing":          crossingMain,
		"crash":             func() error { return fmt.Errorf("read configuration: %w", os.ErrNotExist) },
		"hang":              func() error { select {} },
		"exit0":             func() error { return nil },
		"crash-after-ready": crashAfterReadyMain,
		"other-wire":        otherWireMain,
		"closes-handoff":    closesHandoffMain,
		"deaf-to-term":      deafToTermMain,
		"candidate-v1":      otherCandidateMain,
		"candidate-v3":      otherCandidateMain,
		"list-fds":          listFDsMain,
		"ask-control":       askControlMain,
		"tasks":             tasksMain,
		"swaps":             swapsMain,
		"group":             groupMain,
	}
}

// cast remembers which roles were played.
type cast struct {
	mu     sync.Mutex
	played map[string]bool
}

func (c *cast) play(role string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.played[role] = true
}

var theCast = &cast{played: map[string]bool{}}

func TestMain(m *testing.M) {
	if os.Getenv(envRole) != "" {
		os.Exit(playRole())
	}
	// Generations whose predecessor is gone become children of this process,
	// as they become systemd's: so their exit statuses can be seen.
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		fmt.Fprintln(os.Stderr, "become subreaper:", err)
		os.Exit(1)
	}
	// The runtime's signal goroutine must not be started inside of a synctest bubble.
	signal.Notify(make(chan os.Signal, 1), handoffSignals()...)
	code := m.Run()
	partial := flag.Lookup("test.run").Value.String() != "" || flag.Lookup("test.skip").Value.String() != "" || testing.Short() ||
		flag.Lookup("test.list").Value.String() != "" || flag.Lookup("test.fuzz").Value.String() != ""
	if code == 0 && !partial {
		for _, role := range slices.Sorted(maps.Keys(roles())) {
			if !theCast.played[role] {
				fmt.Fprintf(os.Stderr, "no test plays the role %q\n", role)
				code = 1
			}
		}
	}
	os.Exit(code)
}

func playRole() int {
	exe, err := os.Executable()
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	role := roles()[filepath.Base(exe)]
	if role == nil {
		fmt.Fprintf(os.Stderr, "unknown role %q\n", exe)
		return 1
	}
	if err := role(); err != nil {
		fmt.Fprintf(os.Stderr, "%s[%d]: %v\n", filepath.Base(exe), os.Getpid(), err)
		return 1
	}
	return 0
}
