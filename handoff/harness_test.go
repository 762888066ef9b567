package handoff

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/zdt-dev/zdt/handoff/control"
	"github.com/zdt-dev/zdt/internal/wire"
)

// patience bounds every wait for a condition. It is only reached by a test
// that fails.
const patience = 20 * time.Second

// eventually waits until cond holds.
func eventually(t *testing.T, what string, cond func() bool) {
	t.Helper()
	for deadline := time.Now().Add(patience); !cond(); time.Sleep(3 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("waited in vain until %s", what)
		}
	}
}

// stage is a service with its fake systemd, in a directory of its own.
type stage struct {
	t       *testing.T
	dir     string
	cfg     serviceConfig
	systemd *fakeSystemd
	first   *exec.Cmd
	stderr  *os.File
	addr    string // of the socket "http"

	mu     sync.Mutex
	exits  map[int]string
	opener sync.WaitGroup
}

// quick makes idle connections short-lived in drains, for tests that are not
// about them.
func quick(cfg serviceConfig) serviceConfig {
	if cfg.IdleGrace == 0 {
		cfg.IdleGrace = 50 * time.Millisecond
	}
	if cfg.StopGrace == 0 {
		cfg.StopGrace = 20 * time.Millisecond
	}
	if cfg.Sockets == nil {
		cfg.Sockets = []socketSpec{{"http", "tcp", "127.0.0.1:0"}}
	}
	return cfg
}

// newStage prepares everything and starts nothing.
func newStage(t *testing.T, cfg serviceConfig) *stage {
	t.Helper()
	// Not t.TempDir: a socket's path has 107 bytes at most.
	dir, err := os.MkdirTemp("", "zdt")
	if err != nil {
		t.Fatal(err)
	}
	s := &stage{t: t, dir: dir, cfg: cfg, exits: map[int]string{}}
	// A file and not a pipe: exec.Cmd waits for all who hold a pipe.
	if s.stderr, err = os.Create(filepath.Join(dir, "stderr")); err != nil {
		t.Fatal(err)
	}
	s.systemd = startSystemd(t, filepath.Join(dir, "notify"))
	t.Cleanup(s.strike)
	return s
}

// play puts the role's file into the stage and returns its path.
func (s *stage) play(role string) string {
	s.t.Helper()
	if roles()[role] == nil {
		s.t.Fatalf("no role %q", role)
	}
	theCast.play(role)
	path := filepath.Join(s.dir, role)
	self, err := os.Executable()
	if err != nil {
		s.t.Fatal(err)
	}
	if err := os.Link(self, path); err != nil && !os.IsExist(err) {
		data, rerr := os.ReadFile(self)
		if rerr != nil {
			s.t.Fatal(err, rerr)
		}
		if err := os.WriteFile(path, data, 0o755); err != nil {
			s.t.Fatal(err)
		}
	}
	return path
}

// flip makes role the program that a bare SIGUSR2 executes.
func (s *stage) flip(target string) {
	s.t.Helper()
	if !filepath.IsAbs(target) {
		target = s.play(target)
	}
	tmp := filepath.Join(s.dir, ".current")
	os.Remove(tmp)
	if err := os.Symlink(target, tmp); err != nil {
		s.t.Fatal(err)
	}
	if err := os.Rename(tmp, filepath.Join(s.dir, "current")); err != nil {
		s.t.Fatal(err)
	}
}

// start starts the first generation with sockets as systemd passes them.
func (s *stage) start(inherited ...inheritedSocket) {
	s.t.Helper()
	s.flip("service")
	cfg, err := json.Marshal(s.cfg)
	if err != nil {
		s.t.Fatal(err)
	}
	// LISTEN_PID has to be right, and exec.Cmd knows no pid before the fork.
	s.first = exec.Command("/bin/sh", "-c", `test "$ZDT_APP_PID" = own && export ZDT_APP_PID=$$; LISTEN_PID=$$ exec "$0" "$@"`, filepath.Join(s.dir, "current"), "arg")
	s.first.Dir = s.dir
	s.first.Env = append(os.Environ(),
		envRole+"="+s.dir, envConfig+"="+string(cfg), "NOTIFY_SOCKET="+s.systemd.path,
		"RUNTIME_DIRECTORY="+s.dir, "ZDT_SERVICE=web", "GORACE=halt_on_error=1 exitcode=66 atexit_sleep_ms=0", "WATCHDOG_PID=1", "SYSTEMD_EXEC_PID=1",
	)
	var names []string
	for _, i := range inherited {
		names = append(names, i.name)
		s.first.ExtraFiles = append(s.first.ExtraFiles, i.file)
	}
	if inherited != nil {
		s.first.Env = append(s.first.Env, "LISTEN_FDS="+strconv.Itoa(len(names)), "LISTEN_FDNAMES="+strings.Join(names, ":"))
	}
	s.first.Stderr = s.stderr
	s.first.Stdout = s.stderr
	if err := s.first.Start(); err != nil {
		s.t.Fatal(err)
	}
	s.opener.Add(1)
	go func() {
		defer s.opener.Done()
		s.first.Wait()
		s.mu.Lock()
		defer s.mu.Unlock()
		s.exits[s.first.Process.Pid] = exitOf(s.first.ProcessState, nil).Code + " " + exitOf(s.first.ProcessState, nil).Status
	}()
	for _, i := range inherited {
		i.file.Close()
	}
	s.systemd.setMain(s.first.Process.Pid)
}

// startReady starts the first generation and waits until it serves.
func (s *stage) startReady(inherited ...inheritedSocket) control.Status {
	s.t.Helper()
	s.start(inherited...)
	st := s.await("idle", func(st control.Status) bool { return st.Phase == control.Idle })
	for _, sock := range st.Sockets {
		if sock.Name == "http" {
			s.addr = sock.Address
		}
	}
	return st
}

// stand is startReady for tests of what comes after.
func stand(t *testing.T, cfg serviceConfig) *stage {
	t.Helper()
	s := newStage(t, quick(cfg))
	s.startReady()
	return s
}

// processes lists the living processes of this stage.
func (s *stage) processes() []int {
	var out []int
	entries, _ := os.ReadDir("/proc")
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil || pid == os.Getpid() {
			continue
		}
		env, err := os.ReadFile("/proc/" + e.Name() + "/environ")
		if err == nil && bytes.Contains(env, []byte(envRole+"="+s.dir+"\x00")) {
			out = append(out, pid)
		}
	}
	return out
}

// strike ends what is left and tells what happened if the test failed.
func (s *stage) strike() {
	for deadline := time.Now().Add(patience); ; time.Sleep(3 * time.Millisecond) {
		pids := s.processes()
		if len(pids) == 0 {
			break
		}
		for _, pid := range pids {
			unix.Kill(pid, unix.SIGKILL)
			s.reap(pid)
		}
		if time.Now().After(deadline) {
			s.t.Errorf("processes %v do not end", pids)
			break
		}
	}
	s.opener.Wait()
	for pid, exit := range s.exits {
		if exit == "exited 66" {
			s.t.Errorf("data race in process %d", pid)
		}
	}
	s.stderr.Close()
	stderr, _ := os.ReadFile(s.stderr.Name())
	if text := string(stderr); s.t.Failed() || strings.Contains(text, "DATA RACE") {
		if strings.Contains(text, "DATA RACE") {
			s.t.Error("data race in the service")
		}
		s.t.Logf("stderr of the service:\n%s\ndiary:\n%s\nsystemd: %v", text, s.readDiary(), s.systemd.all())
	}
	os.RemoveAll(s.dir)
}

// reap collects the exit of pid if it has ended as a child of the test.
func (s *stage) reap(pid int) {
	if s.first != nil && s.first.Process != nil && pid == s.first.Process.Pid {
		return // the goroutine of start does
	}
	var ws syscall.WaitStatus
	if got, err := syscall.Wait4(pid, &ws, syscall.WNOHANG, nil); err != nil || got != pid {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case ws.Signaled():
		s.exits[pid] = "killed " + signalName(ws.Signal())
	default:
		s.exits[pid] = fmt.Sprintf("exited %d", ws.ExitStatus())
	}
}

// awaitExit waits for the end of a generation and checks how it ended.
func (s *stage) awaitExit(pid int, want string) {
	s.t.Helper()
	var got string
	eventually(s.t, fmt.Sprintf("process %d ends", pid), func() bool {
		s.reap(pid)
		s.mu.Lock()
		defer s.mu.Unlock()
		got = s.exits[pid]
		return got != ""
	})
	if got != want {
		s.t.Errorf("process %d: %s, want %s", pid, got, want)
	}
}

// awaitEmpty waits until no process of the stage is left.
func (s *stage) awaitEmpty() {
	s.t.Helper()
	eventually(s.t, "no process is left", func() bool { return len(s.processes()) == 0 })
}

func (s *stage) controlPath() string { return filepath.Join(s.dir, "control.sock") }

// client connects to whoever is the service now.
func (s *stage) client() (*control.Client, error) {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	c, err := control.Dial(ctx, s.controlPath())
	return c, err
}

// mustClient is client without an error; the test closes it at its end.
func (s *stage) mustClient() *control.Client {
	s.t.Helper()
	c, err := s.client()
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { c.Close() })
	return c
}

// ask runs f with a client of whoever is the service now.
func (s *stage) ask(f func(ctx context.Context, c *control.Client) (control.Status, error)) (control.Status, error) {
	c, err := s.client()
	if err != nil {
		return control.Status{}, err
	}
	defer c.Close()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	return f(ctx, c)
}

func (s *stage) status() (control.Status, error) {
	return s.ask(func(ctx context.Context, c *control.Client) (control.Status, error) { return c.Status(ctx) })
}

func (s *stage) mustStatus() control.Status {
	s.t.Helper()
	st, err := s.status()
	if err != nil {
		s.t.Fatal(err)
	}
	return st
}

func (s *stage) await(what string, cond func(control.Status) bool) control.Status {
	s.t.Helper()
	var st control.Status
	eventually(s.t, "status is "+what, func() bool {
		var err error
		st, err = s.status()
		return err == nil && cond(st)
	})
	return st
}

// awaitGeneration waits until generation n is the service and alone.
func (s *stage) awaitGeneration(n int) control.Status {
	s.t.Helper()
	return s.await(fmt.Sprintf("generation %d, idle, alone", n), func(st control.Status) bool {
		return st.Generation == n && st.Phase == control.Idle && st.Predecessor == nil
	})
}

// awaitFailure waits until a handoff has ended for reason and everything of it is gone.
func (s *stage) awaitFailure(reason string) control.Status {
	s.t.Helper()
	st := s.await("failed: "+reason, func(st control.Status) bool {
		return st.Phase == control.Idle && st.Last != nil && !st.Last.Committed
	})
	if st.Last.Reason != reason {
		s.t.Errorf("reason %q (%s), want %q", st.Last.Reason, st.Last.Detail, reason)
	}
	return st
}

func (s *stage) signal(pid int, sig syscall.Signal) {
	s.t.Helper()
	if err := unix.Kill(pid, sig); err != nil {
		s.t.Fatalf("signal %v to %d: %v", sig, pid, err)
	}
}

// arm prepares a handoff that is held, for role or an absolute path, and
// starts it.
func (s *stage) armAndSignal(pid int, a control.Arm) {
	s.t.Helper()
	if a.Exe != "" && !filepath.IsAbs(a.Exe) {
		a.Exe = s.play(a.Exe)
	}
	if _, err := s.ask(func(ctx context.Context, c *control.Client) (control.Status, error) { return c.Arm(ctx, a) }); err != nil {
		s.t.Fatal(err)
	}
	s.signal(pid, syscall.SIGUSR2)
}

// hold brings the service to a held handoff and returns its status.
func (s *stage) hold(txid string) control.Status {
	s.t.Helper()
	s.armAndSignal(s.mustStatus().PID, control.Arm{TxID: txid, Exe: "service-next", Hold: true, HoldFor: patience})
	return s.await("held", func(st control.Status) bool { return st.Phase == control.Held })
}

// nextWorks is what every failure ends with: the same service hands over to a
// good release and serves.
func (s *stage) nextWorks() {
	s.t.Helper()
	st := s.mustStatus()
	s.flip("service-next")
	s.signal(st.PID, syscall.SIGUSR2)
	next := s.awaitGeneration(st.Generation + 1)
	s.awaitExit(st.PID, "exited 0")
	if got, want := s.get("/"), fmt.Sprintf("%d %d", next.Generation, next.PID); got != want {
		s.t.Errorf("GET / after the next handoff: %q, want %q", got, want)
	}
	if got := s.systemd.mainPID(); got != next.PID {
		s.t.Errorf("systemd's main process is %d, want %d", got, next.PID)
	}
}

func (s *stage) readDiary() string {
	text, _ := os.ReadFile(filepath.Join(s.dir, "diary"))
	return string(text)
}

// fresh is an HTTP client that opens a connection for each request.
func fresh() *http.Client {
	return &http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: patience}
}

func (s *stage) get(path string) string {
	s.t.Helper()
	resp, err := fresh().Get("http://" + s.addr + path)
	if err != nil {
		s.t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		s.t.Fatal(err)
	}
	return string(body)
}

func (s *stage) report(query string) report {
	s.t.Helper()
	var r report
	if err := json.Unmarshal([]byte(s.get("/report"+query)), &r); err != nil {
		s.t.Fatal(err)
	}
	return r
}

// inheritedSocket is a socket that systemd has bound.
type inheritedSocket struct {
	name string
	file *os.File
}

// bindTCP binds like a socket unit does, and leaves the socket blocking.
func bindTCP(t *testing.T, name string) (inheritedSocket, string) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	f, err := ln.(*net.TCPListener).File()
	if err != nil {
		t.Fatal(err)
	}
	return inheritedSocket{name, f}, ln.Addr().String()
}

func quiet() *slog.Logger { return slog.New(slog.DiscardHandler) }

func numGoroutines() int { return runtime.NumGoroutine() }

func readFile(path string) string {
	text, _ := os.ReadFile(path)
	return string(text)
}

// pair returns two ends of a wire.
func pair(t *testing.T) (a, b *wire.Link) {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	for i, l := range []**wire.Link{&a, &b} {
		if *l, err = wire.NewLink(fds[i]); err != nil {
			t.Fatal(err)
		}
		t.Cleanup((*l).Close)
	}
	return a, b
}
