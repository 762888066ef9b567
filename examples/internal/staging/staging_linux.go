// Package staging runs an example in a test as what it is, a service of real
// processes that replace each other, without systemd: SIGUSR2 by hand.
package staging

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/zdt-dev/zdt/handoff/control"
)

// patience bounds every wait. Only a test that fails reaches it.
const patience = 20 * time.Second

// envDir makes the test binary play the example. It also tells a service's
// processes from all others.
const envDir = "ZDT_EXAMPLE_DIR"

// Main is the TestMain of an example whose main function is program.
func Main(m *testing.M, program func()) {
	if os.Getenv(envDir) != "" {
		program()
		os.Exit(0)
	}
	// A generation whose predecessor has ended becomes a child of this process,
	// as it becomes one of systemd's.
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		fmt.Fprintln(os.Stderr, "become subreaper:", err)
		os.Exit(1)
	}
	os.Exit(m.Run())
}

// Service is an example that runs.
type Service struct {
	Dir  string // its runtime directory, removed at the end
	Addr string // of its first socket
	t    testing.TB
	log  *os.File
}

// Start starts the example and waits until it serves. The test's end ends it.
func Start(t testing.TB, args ...string) *Service {
	t.Helper()
	// Not t.TempDir: the path of a socket has 107 bytes at most.
	dir, err := os.MkdirTemp("", "zdt")
	if err != nil {
		t.Fatal(err)
	}
	s := &Service{Dir: dir, t: t}
	t.Cleanup(s.strike)
	// A file and not a pipe: exec.Cmd would wait for all who hold it.
	if s.log, err = os.Create(filepath.Join(dir, "log")); err != nil {
		t.Fatal(err)
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(self, append([]string{"-listen", "127.0.0.1:0"}, args...)...)
	// The race detector would make each process sleep for a second as it exits.
	cmd.Env = append(os.Environ(), envDir+"="+dir, "RUNTIME_DIRECTORY="+dir, "GORACE=halt_on_error=1 exitcode=66 atexit_sleep_ms=0")
	cmd.Stdout, cmd.Stderr = s.log, s.log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	cmd.Process.Release() // reaped with all its successors
	s.Addr = s.AwaitIdle(1).Sockets[0].Address
	return s
}

// Status asks whoever is the service now.
func (s *Service) Status() (control.Status, error) {
	return s.ask(func(ctx context.Context, c *control.Client) (control.Status, error) { return c.Status(ctx) })
}

func (s *Service) ask(f func(context.Context, *control.Client) (control.Status, error)) (control.Status, error) {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	c, err := control.Dial(ctx, filepath.Join(s.Dir, "control.sock"))
	if err != nil {
		return control.Status{}, err
	}
	defer c.Close()
	return f(ctx, c)
}

// Await waits until the service's status is as cond wants it.
func (s *Service) Await(what string, cond func(control.Status) bool) control.Status {
	s.t.Helper()
	var st control.Status
	Eventually(s.t, what, func() bool {
		var err error
		st, err = s.Status()
		return err == nil && cond(st)
	})
	return st
}

// AwaitIdle waits until generation n serves and is alone.
func (s *Service) AwaitIdle(n int) control.Status {
	s.t.Helper()
	return s.Await(fmt.Sprintf("generation %d serves alone", n), func(st control.Status) bool {
		return st.Generation == n && st.Phase == control.Idle && st.Predecessor == nil
	})
}

// Upgrade hands over to the next generation and waits until the old process
// has ended, as it should. It returns what became of the connections.
func (s *Service) Upgrade() control.Counts {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	c, err := control.Dial(ctx, filepath.Join(s.Dir, "control.sock"))
	if err != nil {
		s.t.Fatal(err)
	}
	defer c.Close()
	var last control.Status
	for st, err := range c.Watch(ctx) {
		if err != nil {
			s.t.Fatalf("watch an upgrade (last: %+v): %v", last, err)
		}
		if last.PID == 0 {
			if err := unix.Kill(st.PID, unix.SIGUSR2); err != nil {
				s.t.Fatal(err)
			}
		}
		last = st
	}
	s.AwaitIdle(last.Generation + 1)
	s.AwaitExit(last.PID)
	return last.Connections
}

// Hold starts a handoff and stops before it is decided: both generations serve,
// the new one what is new.
func (s *Service) Hold() control.Status {
	s.t.Helper()
	st, err := s.ask(func(ctx context.Context, c *control.Client) (control.Status, error) {
		return c.Arm(ctx, control.Arm{TxID: "test", Hold: true, HoldFor: patience})
	})
	if err == nil {
		err = unix.Kill(st.PID, unix.SIGUSR2)
	}
	if err != nil {
		s.t.Fatal(err)
	}
	return s.Await("a candidate is held", func(st control.Status) bool { return st.Phase == control.Held })
}

// Commit decides a held handoff for the candidate.
func (s *Service) Commit() {
	s.t.Helper()
	if _, err := s.ask(func(ctx context.Context, c *control.Client) (control.Status, error) { return c.Commit(ctx, "test") }); err != nil {
		s.t.Fatal(err)
	}
}

// Abort undoes a held handoff and waits until the candidate has ended.
func (s *Service) Abort() {
	s.t.Helper()
	st, err := s.ask(func(ctx context.Context, c *control.Client) (control.Status, error) { return c.Abort(ctx, "test", "") })
	if err != nil {
		s.t.Fatal(err)
	}
	s.AwaitIdle(st.Generation)
}

// AwaitExit waits until a process has ended and checks that it did so well. The
// first generation and those without a predecessor are children of the test.
func (s *Service) AwaitExit(pid int) {
	s.t.Helper()
	var status unix.WaitStatus
	Eventually(s.t, fmt.Sprintf("process %d ends", pid), func() bool {
		got, err := unix.Wait4(pid, &status, unix.WNOHANG, nil)
		if err != nil && err != unix.EINTR {
			s.t.Fatalf("wait for process %d: %v", pid, err)
		}
		return got == pid
	})
	if !status.Exited() || status.ExitStatus() != 0 {
		s.t.Errorf("process %d: exited %d, signal %v", pid, status.ExitStatus(), status.Signal())
	}
}

// strike ends what is left, and shows what was said if the test failed.
func (s *Service) strike() {
	Eventually(s.t, "no process is left", func() bool {
		left := s.processes()
		for _, pid := range left {
			unix.Kill(pid, syscall.SIGKILL)
			unix.Wait4(pid, nil, unix.WNOHANG, nil)
		}
		return len(left) == 0
	})
	said, _ := os.ReadFile(filepath.Join(s.Dir, "log"))
	if strings.Contains(string(said), "DATA RACE") {
		s.t.Error("data race in the service")
	}
	if s.t.Failed() {
		s.t.Logf("the service said:\n%s", said)
	}
	s.log.Close()
	os.RemoveAll(s.Dir)
}

// processes lists the service's processes, those included that are not reaped.
func (s *Service) processes() []int {
	var pids []int
	entries, _ := os.ReadDir("/proc")
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		environ, err := os.ReadFile(filepath.Join("/proc", e.Name(), "environ"))
		if err == nil && strings.Contains(string(environ), envDir+"="+s.Dir+"\x00") {
			pids = append(pids, pid)
		}
	}
	return pids
}

// Eventually waits until cond holds.
func Eventually(t testing.TB, what string, cond func() bool) {
	t.Helper()
	for deadline := time.Now().Add(patience); !cond(); time.Sleep(3 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("waited in vain until %s", what)
		}
	}
}

// AwaitRead waits until the service has read all that was sent from the local
// address of a TCP connection: until the kernel holds none of it.
func AwaitRead(t testing.TB, local string) {
	t.Helper()
	Eventually(t, "the service has read from "+local, func() bool {
		unread, err := unread(local)
		if err != nil {
			t.Fatal(err)
		}
		return unread == 0
	})
}

// unread looks for the other end of a loopback connection in /proc/net/tcp,
// whose rx_queue is what its owner has not read.
func unread(remote string) (int64, error) {
	_, port, ok := strings.Cut(remote, "127.0.0.1:")
	n, err := strconv.Atoi(port)
	if !ok || err != nil {
		return 0, fmt.Errorf("%q is no address of 127.0.0.1", remote)
	}
	table, err := os.ReadFile("/proc/net/tcp")
	if err != nil {
		return 0, err
	}
	want := fmt.Sprintf("0100007F:%04X", n)
	for line := range strings.Lines(string(table)) {
		// sl local_address rem_address st tx_queue:rx_queue …
		fields := strings.Fields(line)
		if len(fields) > 4 && fields[2] == want {
			_, queue, _ := strings.Cut(fields[4], ":")
			return strconv.ParseInt(queue, 16, 64)
		}
	}
	return 0, errors.New("no connection from " + remote)
}
