package helper

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// stageReaper starts a reaper that ends with the test, and with it everything it has started.
func stageReaper(t *testing.T) *reaper {
	t.Helper()
	r, err := startReaper()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(r.stop)
	return r
}

// output is a file for what a program writes. A pipe would have to be read meanwhile.
type output struct{ *os.File }

func newOutput(t *testing.T) output {
	t.Helper()
	f, err := os.Create(filepath.Join(t.TempDir(), "output"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return output{f}
}

func (o output) text() string {
	b, _ := os.ReadFile(o.Name())
	return string(b)
}

// pids waits until n numbers are written, one a line.
func (o output) pids(t *testing.T, n int) []int {
	t.Helper()
	var pids []int
	eventually(t, fmt.Sprintf("%d pids are written", n), func() bool {
		pids = nil
		for line := range strings.Lines(o.text()) {
			if pid, err := strconv.Atoi(strings.TrimSuffix(line, "\n")); err == nil && strings.HasSuffix(line, "\n") {
				pids = append(pids, pid)
			}
		}
		return len(pids) == n
	})
	return pids
}

func shell(o output, script string) program {
	return program{Path: "/bin/sh", Argv: []string{"sh", "-c", script}, Env: os.Environ(), Stdio: [3]int{-1, int(o.Fd()), 2}}
}

func asRole(o output, args ...string) program {
	return program{Path: "/proc/self/exe", Argv: append([]string{"app"}, args...), Env: os.Environ(), Stdio: [3]int{-1, int(o.Fd()), 2}}
}

// start is reaper.start for programs that must start. What is left is killed at the end.
func start(t *testing.T, r *reaper, p program) *group {
	t.Helper()
	g, err := r.start(p)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(g.Kill)
	return g
}

// finish waits until the group is gone and returns how its leader ended.
func finish(t *testing.T, g *group) Exit {
	t.Helper()
	waitFor(t, "the end of the group", g.Done())
	e, ok := g.LeaderExit()
	if !ok {
		t.Error("the group is gone and its leader has not ended")
	}
	return e
}

// living reports whether the process is there and no zombie.
func living(pid int) bool {
	p, ok := readProcess(pid)
	return ok && !p.ended()
}

func children() (pids []int) {
	for _, p := range processes() {
		if p.parent == os.Getpid() {
			pids = append(pids, p.pid)
		}
	}
	return pids
}

// openFDs counts the descriptors of this process but for those of Go's runtime.
func openFDs(t *testing.T) (n int) {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		link, err := os.Readlink("/proc/self/fd/" + e.Name())
		if err == nil && !strings.Contains(link, "[event") { // eventpoll, eventfd
			n++
		}
	}
	return n
}

func TestExitIsTheLeaders(t *testing.T) {
	if !alone(t) {
		return
	}
	r := stageReaper(t)
	for script, want := range map[string]Exit{
		"exit 0":                      {cldExited, 0},
		"exit 7":                      {cldExited, 7},
		"kill -TERM $$":               {cldKilled, int(unix.SIGTERM)},
		"kill -KILL $$":               {cldKilled, int(unix.SIGKILL)},
		"ulimit -c 0; kill -ABRT $$":  {cldKilled, int(unix.SIGABRT)},
		"ulimit -c 0; kill -PIPE $$":  {cldKilled, int(unix.SIGPIPE)},
		"(exit 4) & wait $!; exit $?": {cldExited, 4},
	} {
		g := start(t, r, shell(newOutput(t), script))
		if got := finish(t, g); got != want {
			t.Errorf("%s: %v, want %v", script, got, want)
		}
		if err := g.Signal(unix.SIGTERM); !errors.Is(err, os.ErrProcessDone) {
			t.Errorf("signal to a leader that is gone: %v", err)
		}
		if err := g.SignalAll(unix.SIGTERM); !errors.Is(err, os.ErrProcessDone) {
			t.Errorf("signal to a group that is gone: %v", err)
		}
	}
}

func TestStrangersAreReaped(t *testing.T) {
	if !alone(t) {
		return
	}
	r := stageReaper(t)
	o := newOutput(t)
	// Orphans, in a session of their own so that they are nobody's members.
	g := start(t, r, shell(o, `for i in 1 2 3 4 5; do (setsid sh -c 'echo $$; sleep 0.1' &) ; done`))
	finish(t, g)
	o.pids(t, 5)
	eventually(t, "no child is left", func() bool { return len(children()) == 0 })
}

func TestManyStartsLeaveNothing(t *testing.T) {
	if !alone(t) {
		return
	}
	fds, goroutines := openFDs(t), runtime.NumGoroutine()
	r, err := startReaper()
	if err != nil {
		t.Fatal(err)
	}
	out, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	var all sync.WaitGroup
	for worker := range 4 {
		all.Go(func() {
			for i := range 50 {
				p := shell(output{out}, `(sleep 0 &); exit 3`)
				if i%10 == 0 {
					p.Path = "/nonexistent"
				}
				g, err := r.start(p)
				if i%10 == 0 {
					if !errors.Is(err, os.ErrNotExist) {
						t.Errorf("start of nothing: %v", err)
					}
					continue
				}
				if err != nil {
					t.Error(worker, i, err)
					continue
				}
				if got := finish(t, g); got != (Exit{cldExited, 3}) {
					t.Errorf("exit %v", got)
				}
			}
		})
	}
	all.Wait()
	r.do(func() {
		if left := len(r.leaders) + len(r.lingering); left != 0 {
			t.Errorf("%d groups in the table", left)
		}
	})
	eventually(t, "no child is left", func() bool { return len(children()) == 0 })
	r.stop()
	out.Close()
	// os/signal keeps one. Those that said that they are done may have a last instruction before them: stop waits
	// for a channel that the reaper's goroutine closes, and WaitGroup.Wait for a count.
	eventually(t, "no goroutine is left", func() bool { return runtime.NumGoroutine() <= goroutines+1 })
	if n := openFDs(t); n != fds {
		t.Errorf("%d descriptors before, %d after", fds, n)
	}
}

func TestStop(t *testing.T) {
	if !alone(t) {
		return
	}
	fds := openFDs(t)
	r, err := startReaper()
	if err != nil {
		t.Fatal(err)
	}
	g, err := r.start(program{Path: "sleep", Argv: []string{"sleep", "1000"}, Env: os.Environ(), Stdio: [3]int{-1, -1, -1}})
	if err != nil {
		t.Fatal(err)
	}
	r.stop()
	defer syscall.Kill(g.Leader(), syscall.SIGKILL) // our child, and nobody reaps it
	if n := openFDs(t); n != fds {
		t.Errorf("%d descriptors before, %d after", fds, n)
	}
	if !living(g.Leader()) {
		t.Error("the group ended with the reaper")
	}
	if _, err := r.start(program{Path: "true", Argv: []string{"true"}}); !errors.Is(err, errStopped) {
		t.Errorf("start afterwards: %v", err)
	}
	if err := g.SignalAll(unix.SIGTERM); !errors.Is(err, errStopped) {
		t.Errorf("signal afterwards: %v", err)
	}
	g.Kill()
}

func TestParseStat(t *testing.T) {
	stat, err := os.ReadFile("/proc/self/stat")
	if err != nil {
		t.Fatal(err)
	}
	session, _ := unix.Getsid(0)
	p, ok := parseStat(stat)
	if !ok || p.pid != os.Getpid() || p.parent != os.Getppid() || p.group != unix.Getpgrp() || p.session != session || p.start == 0 || p.ended() {
		t.Errorf("%+v, %v", p, ok)
	}
	nasty := "12 (a) Z 1 (b) R 3 4 5" + strings.Repeat(" 0", 15) + " 99 0"
	if p, ok = parseStat([]byte(nasty)); !ok || p != (process{12, 3, 4, 5, 99, 'R'}) {
		t.Errorf("%+v, %v", p, ok)
	}
	if !slices.ContainsFunc(processes(), func(p process) bool { return p.pid == os.Getpid() }) {
		t.Error("not in the table of processes")
	}
}

func FuzzParseStat(f *testing.F) {
	f.Add([]byte("12 (a) Z 1 (b) R 3 4 5" + strings.Repeat(" 0", 20)))
	f.Add([]byte("1 () S"))
	f.Fuzz(func(t *testing.T, stat []byte) {
		if p, ok := parseStat(stat); ok && (p.pid < 0 || p.parent < 0 || p.group < 0 || p.session < 0) {
			t.Errorf("%q: %+v", stat, p)
		}
	})
}

// limited starts the test's process with a soft limit of its own.
func limited(cmd *exec.Cmd) {
	cmd.Args = append([]string{"sh", "-c", `ulimit -Sn 700; exec "$0" "$@"`, os.Args[0]}, cmd.Args[1:]...)
	cmd.Path = "/bin/sh"
}
