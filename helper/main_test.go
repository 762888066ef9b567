//go:build linux

package helper

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"
)

// patience bounds every wait for a condition. It is only reached by a test
// that fails.
const patience = 20 * time.Second

// roles are the programs that the test binary plays, by its first argument.
func roles() map[string]func(args []string) error {
	return map[string]func(args []string) error{
		"role:die":           dieMain,
		"role:family":        familyMain,
		"role:parent-leaves": parentLeavesMain,
		"role:leaves":        leavesMain,
		"role:helper":        helperMain,
		"role:library":       libraryMain,
	}
}

func TestMain(m *testing.M) {
	CheckState(os.Args[1:])
	Shim(os.Args[1:])
	act()
	if len(os.Args) > 1 && strings.HasPrefix(os.Args[1], "role:") {
		if err := roles()[os.Args[1]](os.Args[2:]); err != nil {
			fmt.Fprintf(os.Stderr, "%s: %v\n", os.Args[1], err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// envAlone names the test that a process was started for.
const envAlone = "ZDT_TEST_ALONE"

// alone has the test run in a process of its own: a reaper takes every child of
// its process, also those of other tests. It returns true there; where it returns false the
// test is over. before may change how the process is started.
func alone(t *testing.T, before ...func(*exec.Cmd)) bool {
	t.Helper()
	if os.Getenv(envAlone) == t.Name() {
		return true
	}
	cmd := exec.Command("/proc/self/exe", "-test.run=^"+t.Name()+"$", "-test.timeout=60s", "-test.v")
	cmd.Args[0] = os.Args[0]
	cmd.Env = append(os.Environ(), envAlone+"="+t.Name())
	for _, f := range before {
		f(cmd)
	}
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Errorf("alone: %v\n%s", err, out)
	}
	if bytes.Contains(out, []byte("--- SKIP")) {
		t.Skipf("%s", out)
	}
	return false
}

// eventually waits until cond holds.
func eventually(t *testing.T, what string, cond func() bool) {
	t.Helper()
	for deadline := time.Now().Add(patience); !cond(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("waited in vain until %s", what)
		}
	}
}

// waitFor waits until c is closed.
func waitFor(t *testing.T, what string, c <-chan struct{}) {
	t.Helper()
	select {
	case <-c:
	case <-time.After(patience):
		t.Fatalf("waited in vain for %s", what)
	}
}
