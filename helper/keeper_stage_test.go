//go:build linux

package helper

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/zdt-dev/zdt/handoff/control"
)

// stage is a service under a helper with a systemd that listens, in a directory of its own:
//
//	releases/ACTOR.ID/app   a release: a symlink to the test binary
//	current                 a symlink to one of them
type stage struct {
	stageConfig
	t      *testing.T
	helper *exec.Cmd
	ended  chan struct{} // closed when the helper has ended
	addr   string        // of the socket http
	client *http.Client

	notify *net.UnixConn
	heard  chan struct{} // closed when the systemd listens no more
	last   control.Status
	mu     sync.Mutex
	words  []string // for systemd
}

// begin starts a service and waits until it serves.
func begin(t *testing.T, c stageConfig, more ...func(*exec.Cmd)) *stage {
	t.Helper()
	s := enter(t, c, more...)
	st := s.await("up", func(st control.Status) bool { return st.Phase == control.Idle })
	s.addr = st.Sockets[0].Address
	return s
}

// enter starts a service and does not wait.
func enter(t *testing.T, c stageConfig, more ...func(*exec.Cmd)) *stage {
	t.Helper()
	t.Parallel()
	return raise(t, c, more...)
}

// raise is enter for one of several services of a test.
func raise(t *testing.T, c stageConfig, more ...func(*exec.Cmd)) *stage {
	t.Helper()
	dir, err := os.MkdirTemp("", "zdt") // not t.TempDir: a socket's path has 107 bytes at most
	if err != nil {
		t.Fatal(err)
	}
	c.Dir = dir
	if c.Program == "" {
		c.Program = "web"
	}
	for _, d := range []*time.Duration{&c.ReadyTimeout, &c.DrainTimeout, &c.HoldTimeout} {
		if *d == 0 {
			*d = patience
		}
	}
	s := &stage{stageConfig: c, t: t, ended: make(chan struct{}), heard: make(chan struct{})}
	s.flip(s.release("one", c.Program))
	if s.notify, err = net.ListenUnixgram("unixgram", &net.UnixAddr{Name: s.path("systemd"), Net: "unixgram"}); err != nil {
		t.Fatal(err)
	}
	go s.listen()
	stderr, err := os.Create(s.path("stderr")) // a file: exec.Cmd waits for all who hold a pipe
	if err != nil {
		t.Fatal(err)
	}
	defer stderr.Close()
	config, _ := json.Marshal(c)
	s.helper = exec.Command("/proc/self/exe", "role:helper")
	s.helper.Env = append(os.Environ(), envStage+"="+string(config), "NOTIFY_SOCKET="+s.path("systemd"), "GORACE=atexit_sleep_ms=0")
	s.helper.Stdout, s.helper.Stderr = stderr, stderr
	s.helper.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	for _, f := range more {
		f(s.helper)
	}
	if err := s.helper.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		s.helper.Wait()
		close(s.ended)
	}()
	// A client that keeps nothing open: a connection is a request.
	s.client = &http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: patience}
	t.Cleanup(s.strike)
	return s
}

// strike ends everything that is left and checks that nothing should have been.
func (s *stage) strike() {
	select {
	case <-s.ended:
		if left := s.processes(); len(left) > 0 {
			s.t.Errorf("the helper has left processes %v", left)
		}
		if names, _ := filepath.Glob(s.path("*.sock")); len(slices.DeleteFunc(names, func(n string) bool { return strings.Contains(n, "app-") })) > 0 {
			s.t.Errorf("the helper has left %v", names)
		}
	default:
		s.helper.Process.Signal(unix.SIGQUIT)
		select {
		case <-s.ended:
		case <-time.After(patience):
			s.t.Error("the helper does not end at SIGQUIT")
			s.helper.Process.Kill()
			<-s.ended
		}
	}
	for _, pid := range s.processes() {
		unix.Kill(pid, unix.SIGKILL)
	}
	s.notify.Close()
	<-s.heard
	if s.t.Failed() {
		b, _ := os.ReadFile(s.path("stderr"))
		l, _ := os.ReadFile(s.path("log"))
		s.t.Logf("systemd heard %q\nlog:\n%s\nhelper:\n%s", s.said(), l, b)
	}
	os.RemoveAll(s.Dir)
}

// release makes a release with one program, an actor, and returns its file.
func (s *stage) release(id string, actor string) string {
	s.t.Helper()
	if actors()[actor] == nil {
		s.t.Fatalf("no actor %q", actor)
	}
	self, err := os.Executable()
	if err != nil {
		s.t.Fatal(err)
	}
	file := s.path("releases", actor+"."+id, "app")
	os.MkdirAll(filepath.Dir(file), 0o700)
	if err := os.Symlink(self, file); err != nil {
		s.t.Fatal(err)
	}
	return file
}

// flip makes current lead to the release of the file.
func (s *stage) flip(file string) {
	s.t.Helper()
	os.Remove(s.path("current"))
	if err := os.Symlink(filepath.Dir(file), s.path("current")); err != nil {
		s.t.Fatal(err)
	}
}

// processes are those of the stage that live, but for the helper. They have its environment.
func (s *stage) processes() []int {
	var pids []int
	for _, p := range processes() {
		if p.pid == s.helper.Process.Pid || p.ended() {
			continue
		}
		env, _ := os.ReadFile(fmt.Sprintf("/proc/%d/environ", p.pid))
		if bytes.Contains(env, []byte(`{"Dir":"`+s.Dir+`"`)) {
			pids = append(pids, p.pid)
		}
	}
	return pids
}

// listen is systemd's.
func (s *stage) listen() {
	defer close(s.heard)
	var buf, oob [4096]byte
	for {
		n, oobn, _, _, err := s.notify.ReadMsgUnix(buf[:], oob[:])
		if err != nil {
			return
		}
		text := strings.ReplaceAll(strings.TrimSpace(string(buf[:n])), "\n", " ")
		if messages, _ := unix.ParseSocketControlMessage(oob[:oobn]); len(messages) > 0 {
			fds, _ := unix.ParseUnixRights(&messages[0])
			text += fmt.Sprintf(" +%d", len(fds))
			closeAll(fds) // which is what a barrier waits for
		}
		s.mu.Lock()
		s.words = append(s.words, text)
		s.mu.Unlock()
	}
}

func (s *stage) said() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.words)
}

// awaitSaid waits until systemd has heard it.
func (s *stage) awaitSaid(text string) {
	s.t.Helper()
	eventually(s.t, fmt.Sprintf("systemd hears %q", text), func() bool { return s.hasSaid(text) })
}

func (s *stage) hasSaid(text string) bool { return slices.Contains(s.said(), text) }

func (s *stage) pid() int { return s.helper.Process.Pid }

func (s *stage) signal(pid int, sig syscall.Signal) {
	s.t.Helper()
	if err := unix.Kill(pid, sig); err != nil {
		s.t.Fatalf("signal %v to %d: %v", sig, pid, err)
	}
}

// awaitExit waits for the end of the helper and checks how it ended: "exited 7", "killed TERM".
func (s *stage) awaitExit(want string) {
	s.t.Helper()
	waitFor(s.t, "the end of the helper", s.ended)
	if got := exitOf(s.helper.ProcessState.Sys().(syscall.WaitStatus)).String(); got != want {
		s.t.Errorf("the helper %s, want %s", got, want)
	}
}

// ask is a client of the control socket for one request.
func (s *stage) ask(f func(context.Context, *control.Client) (control.Status, error)) (control.Status, error) {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	c, err := control.Dial(ctx, s.controlPath())
	if err != nil {
		return control.Status{}, err
	}
	defer c.Close()
	return f(ctx, c)
}

func (s *stage) status() (control.Status, error) {
	return s.ask(func(ctx context.Context, c *control.Client) (control.Status, error) { return c.Status(ctx) })
}

// await waits for a status.
func (s *stage) await(what string, cond func(control.Status) bool) control.Status {
	s.t.Helper()
	var st control.Status
	eventually(s.t, "the status is "+what, func() bool {
		var err error
		st, err = s.status()
		return err == nil && cond(st)
	})
	return st
}

// awaitGeneration waits until generation n serves and is alone.
func (s *stage) awaitGeneration(n int) control.Status {
	s.t.Helper()
	return s.await(fmt.Sprintf("generation %d, alone", n), func(st control.Status) bool {
		return st.Generation == n && st.Phase == control.Idle && st.Predecessor == nil
	})
}

// awaitUndone waits until a handoff was undone and everything of it is gone.
func (s *stage) awaitUndone(reason string) control.Status {
	s.t.Helper()
	st := s.await("undone", func(st control.Status) bool {
		return st.Phase == control.Idle && st.Last != nil && !st.Last.Committed
	})
	if st.Last.Reason != reason {
		s.t.Errorf("reason %q (%s), want %q", st.Last.Reason, st.Last.Detail, reason)
	}
	return st
}

// arm arms a handoff, which is to be accepted.
func (s *stage) arm(a control.Arm) {
	s.t.Helper()
	if a.TxID == "" {
		a.TxID = "tx"
	}
	if _, err := s.ask(func(ctx context.Context, c *control.Client) (control.Status, error) { return c.Arm(ctx, a) }); err != nil {
		s.t.Fatal(err)
	}
}

// hold starts a handoff to exe and waits until it is held.
func (s *stage) hold(exe string) control.Status {
	s.t.Helper()
	s.arm(control.Arm{Exe: exe, Hold: true})
	s.signal(s.pid(), unix.SIGUSR2)
	return s.await("held", func(st control.Status) bool { return st.Phase == control.Held })
}

func (s *stage) commit(txid string) (control.Status, error) {
	return s.ask(func(ctx context.Context, c *control.Client) (control.Status, error) { return c.Commit(ctx, txid) })
}

func (s *stage) abort(txid string) (control.Status, error) {
	return s.ask(func(ctx context.Context, c *control.Client) (control.Status, error) { return c.Abort(ctx, txid, "") })
}

// get asks the service and returns what it answers, which is the pid of who did.
func (s *stage) get(path string) (int, error) {
	resp, err := s.client.Get("http://" + s.addr + path)
	if err != nil {
		return 0, err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		return 0, err
	}
	return strconv.Atoi(string(b))
}

// hang makes a request that is not answered until the program is told to, and returns where its end comes.
func (s *stage) hang(app int) <-chan error {
	s.t.Helper()
	answered := make(chan error, 1)
	go func() {
		_, err := s.get("/hang")
		answered <- err
	}()
	s.awaitNote(app, "hangs")
	return answered
}

// awaitNote waits for a line of a program in the log.
func (s *stage) awaitNote(app int, what string) {
	s.t.Helper()
	eventually(s.t, fmt.Sprintf("process %d notes %q", app, what), func() bool { return s.noted(app, what) })
}

func (s *stage) noted(app int, what string) bool { return s.notes(app, what) > 0 }

// notes is how often a program has noted it.
func (s *stage) notes(app int, what string) (n int) {
	b, _ := os.ReadFile(s.path("log"))
	for line := range strings.Lines(string(b)) {
		if line == fmt.Sprintf("%d %s\n", app, what) {
			n++
		}
	}
	return n
}

// tell has a program do something and returns its answer.
func (s *stage) tell(app int, order string) string {
	s.t.Helper()
	var conn net.Conn
	var err error
	eventually(s.t, fmt.Sprintf("process %d takes orders", app), func() bool { // the file is there from bind(2) on, and refuses until listen(2)
		conn, err = net.Dial("unix", s.path(fmt.Sprintf("app-%d.sock", app)))
		return !errors.Is(err, unix.ECONNREFUSED)
	})
	if err != nil {
		s.t.Fatal(err)
	}
	defer conn.Close()
	fmt.Fprintln(conn, order)
	line, _ := bufio.NewReader(conn).ReadString('\n') // one that is to exit does not answer
	return strings.TrimSpace(line)
}

// events are those in the helper's log, as "kind generation" with the values of the fields.
func (s *stage) events(kind string, fields ...string) []string {
	f, err := os.Open(s.path("stderr"))
	if err != nil {
		s.t.Fatal(err)
	}
	defer f.Close()
	var events []string
	for lines := bufio.NewScanner(f); lines.Scan(); {
		var e map[string]any
		if json.Unmarshal(lines.Bytes(), &e) != nil || e["event"] != kind {
			continue
		}
		text := fmt.Sprintf("%s %v", kind, e["generation"])
		for _, name := range fields {
			text += fmt.Sprintf(" %v", e[name])
		}
		events = append(events, text)
	}
	return events
}
