package systest

import (
	"bytes"
	"debug/elf"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
)

// program is a build of examples/hello: good(2) is a release that works, bad(3, crash) one that does not.
type program struct {
	version int    // answers say v0002 in X-Version, log lines begin with "hello v0002: "
	fault   string // one of the faults below
	race    bool   // built with the race detector
	foreign bool   // for a machine that is not this one
}

// What can be wrong with a program; see examples/hello.
const (
	crash           = "crash"             // ends with status 1 before it opens anything
	hang            = "hang"              // is never READY
	exit0           = "exit0"             // ends with status 0 before READY
	complain        = "complain"          // serves, and logs an error every 50 ms
	crashAfterReady = "crash-after-ready" // says READY, then panics
)

func good(version int) program              { return program{version: version} }
func bad(version int, fault string) program { return program{version: version, fault: fault} }

// version is what the answers of release n say in X-Version.
func version(n int) string { return fmt.Sprintf("v%04d", n) }

func (p program) String() string {
	name := version(p.version)
	if p.fault != "" {
		name += "-" + p.fault
	}
	if p.race {
		name += "-race"
	}
	if p.foreign {
		name += "-foreign"
	}
	return name
}

// placeholder is the version that programs are built with. Versions have its length, so that one build yields them all:
// linking 25 of them would take longer than all scenarios. Nothing else in the file looks like it.
const placeholder = "v@.@#"

// built are the programs of this test run. TestMain makes and removes the directory; each file is built by the first
// scenario that asks for it, so that -run of one scenario builds only what that needs.
var built struct {
	dir string
	mu  sync.Mutex
	log map[string]error // by file name: built, and how that went
}

// zdt is the host's path of the zdt under test.
func zdt(t testing.TB) string {
	return build(t, "zdt", func(out string) error { return goBuild(out, "../..", false, "") })
}

// steppedZdt is a zdt that can be stopped at each of its steps; see cmd/steps_on.go.
func steppedZdt(t testing.TB) string {
	return build(t, "zdt-steps", func(out string) error { return goBuild(out, "../..", false, "", "-tags", "zdtsteps") })
}

// file is the host's path of the program.
func (p program) file(t testing.TB) string {
	raw := "hello-raw-" + p.fault
	if p.race {
		raw += "-race"
	}
	raw = build(t, raw, func(out string) error {
		return goBuild(out, "../../examples/hello", p.race, "-X main.version="+placeholder+" -X main.fault="+p.fault)
	})
	return build(t, "hello-"+p.String(), func(out string) error {
		data, err := os.ReadFile(raw)
		if err != nil {
			return err
		}
		data = bytes.ReplaceAll(data, []byte(placeholder), []byte(version(p.version)))
		if p.foreign {
			setMachine(data)
		}
		return os.WriteFile(out, data, 0o755)
	})
}

// setMachine makes an ELF program one for ARM, or, on an ARM host, for x86. All that execve(2) and zdt look at is this
// field; a true cross build takes a minute for the standard library.
func setMachine(program []byte) {
	m := byte(elf.EM_AARCH64)
	if program[18] == m {
		m = byte(elf.EM_X86_64)
	}
	program[18] = m
}

func goBuild(out, pkg string, race bool, ldflags string, flags ...string) error {
	args := append([]string{"build", "-o", out, "-ldflags", "-s -w " + ldflags}, flags...)
	env := append(os.Environ(), "CGO_ENABLED=0")
	if race {
		// The guest's C library may be older than the host's.
		args = []string{"build", "-race", "-o", out, "-ldflags", "-linkmode=external -extldflags=-static " + ldflags}
		env = append(os.Environ(), "CGO_ENABLED=1")
	}
	cmd := exec.Command("go", append(args, pkg)...)
	cmd.Env = env
	if text, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("go %s: %w\n%s", strings.Join(cmd.Args[1:], " "), err, text)
	}
	return nil
}

// build makes a file with the given name unless it is there.
func build(t testing.TB, name string, make func(out string) error) string {
	t.Helper()
	built.mu.Lock()
	defer built.mu.Unlock()
	out := filepath.Join(built.dir, name)
	err, done := built.log[name]
	if !done {
		err = make(out)
		built.log[name] = err
	}
	if err != nil {
		t.Fatal(err)
	}
	return out
}
