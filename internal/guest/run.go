package guest

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
	"syscall"
	"testing"
	"time"
)

// Command is a program to run inside the guest.
type Command struct {
	Args   []string  // the program, found in the guest's usual PATH, and its arguments
	Env    []string  // KEY=VALUE, on top of a login's environment
	Dir    string    // "" stands for /
	UID    int       // user and group to run as
	Stdin  io.Reader // nil stands for /dev/null
	Output io.Writer // receives both outputs as they come, when not nil; Result has them anyway
}

// Result is what a program of the guest left behind.
type Result struct {
	Args   []string
	Stdout string
	Stderr string
	Code   int            // exit status; -1 when a signal ended it
	Signal syscall.Signal // 0 unless a signal ended it
}

// String shows the command, how it ended and what it printed.
func (r Result) String() string {
	var b strings.Builder
	end := fmt.Sprintf("exit status %d", r.Code)
	if r.Signal != 0 {
		end = "ended by " + r.Signal.String()
	}
	fmt.Fprintf(&b, "$ %s\n%s%s[%s]", strings.Join(r.Args, " "), r.Stdout, r.Stderr, end)
	return b.String()
}

// Process is a running program of the guest.
type Process struct {
	args   []string
	cmd    *exec.Cmd
	stdout bytes.Buffer
	stderr bytes.Buffer
	done   chan struct{}
	err    error // of cmd.Wait; valid after done
	ctx    context.Context
}

// Spawn starts a program in all of the guest's namespaces. When ctx ends the program is killed; it also ends with the
// guest. It runs as root in init.scope unless the command says otherwise, not as part of any unit under test.
func (g *Guest) Spawn(ctx context.Context, c Command) (*Process, error) {
	if len(c.Args) == 0 {
		return nil, errors.New("command has no arguments")
	}
	// Next to systemd itself, as the guest's cgroup root must stay empty of processes.
	scope, err := os.Open(filepath.Join(g.cgroup, "init.scope"))
	if err != nil {
		return nil, fmt.Errorf("run %s: %w", c.Args[0], err)
	}
	defer scope.Close()
	p := &Process{args: c.Args, done: make(chan struct{}), ctx: ctx}
	err = g.enter(allNamespaces, func() error {
		path, err := lookPath(c.Args[0])
		if err != nil {
			return err
		}
		p.cmd = exec.CommandContext(ctx, path, c.Args[1:]...)
		p.cmd.Args[0] = c.Args[0]
		p.cmd.Env = append(loginEnv(c.UID), c.Env...)
		p.cmd.Dir = c.Dir
		if c.Dir == "" {
			p.cmd.Dir = "/"
		}
		p.cmd.Stdin = c.Stdin
		p.cmd.Stdout, p.cmd.Stderr = io.Writer(&p.stdout), io.Writer(&p.stderr)
		if c.Output != nil {
			out := &lockedWriter{w: c.Output}
			p.cmd.Stdout, p.cmd.Stderr = io.MultiWriter(&p.stdout, out), io.MultiWriter(&p.stderr, out)
		}
		// A daemon that the program leaves behind may hold on to the pipes.
		p.cmd.WaitDelay = 2 * time.Second
		// No Pdeathsig: Go then compares getppid with its own pid, which is 0 across pid namespaces, and kills the
		// child at once. The end of the guest's PID 1 takes this process along.
		p.cmd.SysProcAttr = &syscall.SysProcAttr{
			Setsid:      true,
			UseCgroupFD: true,
			CgroupFD:    int(scope.Fd()),
		}
		if c.UID != 0 {
			p.cmd.SysProcAttr.Credential = &syscall.Credential{Uid: uint32(c.UID), Gid: uint32(c.UID)}
		}
		return p.cmd.Start()
	})
	if err != nil {
		return nil, fmt.Errorf("run %s: %w", c.Args[0], err)
	}
	// Always waited for, because a zombie whose parent is outside would keep the guest's PID 1 from ending.
	g.procs.Go(func() {
		defer close(p.done)
		p.err = p.cmd.Wait()
	})
	return p, nil
}

// PID returns the process's pid on the host.
func (p *Process) PID() int { return p.cmd.Process.Pid }

// Signal sends a signal to the process, not to its children.
func (p *Process) Signal(sig os.Signal) error { return p.cmd.Process.Signal(sig) }

// Done is closed when the process has ended.
func (p *Process) Done() <-chan struct{} { return p.done }

// Wait waits for the process and returns how it ended. An exit status other than 0 is no error; a context that ended
// is one.
func (p *Process) Wait() (Result, error) {
	<-p.done
	r := Result{Args: p.args, Stdout: p.stdout.String(), Stderr: p.stderr.String(), Code: p.cmd.ProcessState.ExitCode()}
	if ws, ok := p.cmd.ProcessState.Sys().(syscall.WaitStatus); ok && ws.Signaled() {
		r.Signal = ws.Signal()
	}
	var exit *exec.ExitError
	switch {
	case p.err == nil, errors.Is(p.err, exec.ErrWaitDelay):
		return r, nil
	case p.ctx.Err() != nil && r.Signal == syscall.SIGKILL:
		return r, fmt.Errorf("run %s: %w", strings.Join(p.args, " "), p.ctx.Err())
	case errors.As(p.err, &exit):
		return r, nil
	}
	return r, fmt.Errorf("run %s: %w", strings.Join(p.args, " "), p.err)
}

// Exec runs a program to its end.
func (g *Guest) Exec(ctx context.Context, c Command) (Result, error) {
	p, err := g.Spawn(ctx, c)
	if err != nil {
		return Result{Args: c.Args, Code: -1}, err
	}
	return p.Wait()
}

// Run runs a program as root to its end. The exit status is in the result, not in the error.
func (g *Guest) Run(ctx context.Context, args ...string) (Result, error) {
	return g.Exec(ctx, Command{Args: args})
}

// MustRun runs a program as root, ends the test unless its exit status is 0, and returns its standard output without
// the last newline. Not for cleanups: the test's context has ended by then.
func (g *Guest) MustRun(t testing.TB, args ...string) string {
	t.Helper()
	r, err := g.Run(t.Context(), args...)
	if err != nil {
		t.Fatalf("%v\n%s", err, r)
	}
	if r.Code != 0 {
		t.Fatalf("%s", r)
	}
	return strings.TrimSuffix(r.Stdout, "\n")
}

// searchPath is the guest's PATH, /usr being merged in every image.
const searchPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin"

// lookPath finds a program in the guest. The caller is inside; exec.LookPath would use the host's PATH.
func lookPath(name string) (string, error) {
	if strings.Contains(name, "/") {
		return name, nil
	}
	for dir := range strings.SplitSeq(searchPath, ":") {
		path := filepath.Join(dir, name)
		if info, err := os.Stat(path); err == nil && info.Mode().IsRegular() && info.Mode()&0o111 != 0 {
			return path, nil
		}
	}
	return "", fmt.Errorf("%w in the guest", exec.ErrNotFound)
}

// loginEnv is the environment of somebody logged in to the guest.
func loginEnv(uid int) []string {
	env := []string{"PATH=" + searchPath, "LANG=C.UTF-8", "TERM=dumb"}
	switch uid {
	case 0:
		return append(env, "HOME=/root", "USER=root", "LOGNAME=root")
	case UserUID:
		env = append(env, "HOME=/home/"+User, "USER="+User, "LOGNAME="+User)
	}
	runtimeDir := fmt.Sprintf("/run/user/%d", uid)
	return append(env, "XDG_RUNTIME_DIR="+runtimeDir, "DBUS_SESSION_BUS_ADDRESS=unix:path="+runtimeDir+"/bus")
}

// lockedWriter lets the goroutines that copy the two outputs share one writer.
type lockedWriter struct {
	mu sync.Mutex
	w  io.Writer
}

func (l *lockedWriter) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.w.Write(p)
}
