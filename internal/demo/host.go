package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"

	"github.com/zdt-dev/zdt/internal/guest"
)

// home is where the operator of the demo sits in the guest.
const home = "/root"

var errRoot = errors.New("booting systemd in a namespace needs root: sudo make demo")

// program is something the demo builds and puts into the guest.
type program struct {
	pkg, flags, path string
}

// programs are what a host with zdt and three releases of a service has.
func programs() []program {
	hello := func(version, fault string) program {
		return program{"./examples/hello", "-X main.version=" + version + " -X main.fault=" + fault, home + "/hello-" + version}
	}
	return []program{
		{".", "-s -w", "/usr/local/bin/zdt"},
		hello("v1", ""),
		hello("v2", ""),
		hello("v3", "crash"),
	}
}

// install builds the programs and copies them into the guest.
func install(ctx context.Context, g *guest.Guest) error {
	dir, err := os.MkdirTemp("", "zdt-demo-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	for _, p := range programs() {
		built := filepath.Join(dir, filepath.Base(p.path))
		// Static: the guest's C library is not the host's.
		cmd := exec.CommandContext(ctx, "go", "build", "-trimpath", "-buildvcs=false", "-ldflags", p.flags, "-o", built, p.pkg)
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("build %s: %w\n%s", p.pkg, err, out)
		}
		if err := g.Copy(built, p.path, 0o755); err != nil {
			return fmt.Errorf("copy %s into the guest: %w", p.path, err)
		}
	}
	self, err := os.Executable()
	if err != nil {
		return err
	}
	return g.Copy(self, "/usr/local/lib/demo", 0o755)
}

// command is a command that the demo showed, and what came of it.
type command struct {
	line   string
	output string
	code   int
}

// operate runs a command line in the guest as an operator sees it, on a terminal if the demo is on one.
func (d *demo) operate(ctx context.Context, line string) (command, error) {
	fmt.Fprintf(d.out, "\n%s\n", d.style("1", "# "+line))
	args := append([]string{"/bin/sh", "-c", `exec "$@" 2>&1`, "sh"}, strings.Fields(line)...) // one pipe, as with "| cat"
	env := []string{"TERM=dumb"}
	if d.terminal {
		args = append([]string{"/usr/local/lib/demo", "-pty", fmt.Sprintf("%dx50", d.columns), "--"}, strings.Fields(line)...)
		env = []string{"TERM=xterm"}
		if !d.color {
			env = append(env, "NO_COLOR=1")
		}
	}
	var output lockedBuffer
	r, err := d.guest.Exec(ctx, guest.Command{Args: args, Dir: home, Env: env, Output: io.MultiWriter(d.out, &output)})
	return command{line, output.String(), r.Code}, err
}

// lockedBuffer takes what two goroutines write.
type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}
