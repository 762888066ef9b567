package upgrade

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/zdt-dev/zdt/handoff/control"
)

// helped makes the service of a world run under a helper.
const helped = "ZDT_TEST_HELPED=1"

// toy is a helper as upgrade needs one: it holds a socket, starts programs with it, and speaks as docs/protocol.md says. It
// takes the short way everywhere else.
type toy struct {
	dir, program string
	socket       *os.File
	drain        time.Duration

	mu                 sync.Mutex
	st                 control.Status
	news               chan struct{} // closed and replaced at every change
	txid               string        // of the handoff
	serving, next, old *toyGroup
}

// toyGroup is one program. What it leaves behind it leaves to systemd.
type toyGroup struct {
	cmd  *exec.Cmd
	exe  string
	stop bool // it was told to end
	why  control.Exit
}

func helperMain() error {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	t := &toy{dir: os.Getenv("RUNTIME_DIRECTORY"), program: os.Args[3], drain: 10 * time.Second, news: make(chan struct{})}
	if d, err := time.ParseDuration(os.Getenv("ZDT_DRAIN_TIMEOUT")); err == nil {
		t.drain = d
	}
	if t.socket, err = ln.(*net.TCPListener).File(); err != nil {
		return err
	}
	t.st = control.Status{Version: 1, Service: "web", Runtime: control.RuntimeHelper, PID: os.Getpid(), Generation: 1, Phase: control.Starting,
		StartedAt: time.Now(), Sockets: []control.Socket{{Name: "http", Network: "tcp", Address: ln.Addr().String(), InUse: true}}}
	ln.Close()
	path := filepath.Join(t.dir, "control.sock")
	os.Remove(path)
	server, err := net.Listen("unix", path)
	if err != nil {
		return err
	}
	signals := make(chan os.Signal, 8)
	signal.Notify(signals, syscall.SIGUSR2, syscall.SIGUSR1, syscall.SIGTERM)
	t.mu.Lock()
	exe, _ := filepath.EvalSymlinks(t.program)
	t.serving, err = t.start(exe)
	t.mu.Unlock()
	if err != nil {
		return err
	}
	go func() {
		for {
			c, err := server.Accept()
			if err != nil {
				return
			}
			go t.serve(c)
		}
	}()
	for sig := range signals {
		t.change(func() {
			switch sig {
			case syscall.SIGUSR2:
				t.fork()
			case syscall.SIGUSR1:
				t.undo("signal", "SIGUSR1", nil)
			case syscall.SIGTERM:
				t.undo("stopping", "the service stops", nil)
				t.st.Phase = control.Stopping
				for _, g := range []*toyGroup{t.serving, t.old} {
					t.end(g)
				}
			}
		})
	}
	return nil
}

// change runs f, which may change everything, and tells the watchers.
func (t *toy) change(f func()) {
	t.mu.Lock()
	defer t.mu.Unlock()
	f()
	t.st.App, t.st.Exe = t.serving.cmd.Process.Pid, t.serving.exe
	t.st.Predecessor = nil
	if t.old != nil {
		t.st.Predecessor = &control.Peer{PID: t.old.cmd.Process.Pid, Generation: t.st.Generation - 1}
	}
	close(t.news)
	t.news = make(chan struct{})
}

// start starts a program; t is locked, or nobody else knows of it.
func (t *toy) start(exe string) (*toyGroup, error) {
	r, w, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer w.Close()
	g := &toyGroup{cmd: exec.Command(exe), exe: exe}
	g.cmd.Env = append(os.Environ(), envRole+"=program")
	g.cmd.ExtraFiles = []*os.File{t.socket, w}
	g.cmd.Stdout, g.cmd.Stderr = os.Stdout, os.Stderr
	if err := g.cmd.Start(); err != nil {
		r.Close()
		return nil, err
	}
	go func() {
		defer r.Close()
		if n, _ := r.Read(make([]byte, 1)); n > 0 {
			t.change(func() { t.ready(g) })
		}
	}()
	go func() {
		g.cmd.Wait()
		ws := g.cmd.ProcessState.Sys().(syscall.WaitStatus)
		g.why = control.Exit{Code: "exited", Status: fmt.Sprint(ws.ExitStatus())}
		if ws.Signaled() {
			g.why = control.Exit{Code: "killed", Status: strings.TrimPrefix(unix.SignalName(ws.Signal()), "SIG")}
		}
		t.change(func() { t.ended(g) })
	}()
	return g, nil
}

func (t *toy) ready(g *toyGroup) {
	switch {
	case g == t.serving && t.st.Phase == control.Starting:
		t.st.Phase = control.Idle
		if c, err := net.Dial("unixgram", os.Getenv("NOTIFY_SOCKET")); err == nil {
			c.Write([]byte("READY=1"))
			c.Close()
		}
	case g == t.next && t.st.Phase == control.Forked:
		t.st.Phase, t.st.Handoff.ReadyAt = control.Held, time.Now()
	}
}

func (t *toy) ended(g *toyGroup) {
	switch {
	case t.st.Phase == control.Stopping:
		if g == t.old {
			t.old = nil
		}
		if g == t.serving {
			t.exit(0)
		}
	case g == t.next:
		t.next = nil
		if t.st.Phase == control.Aborting {
			t.st.Phase = control.Idle
			return
		}
		t.failed("crashed", fmt.Sprintf("the candidate ended (%s, %s)", g.why.Code, g.why.Status), &g.why)
		t.st.Phase = control.Idle
	case g == t.old:
		t.old = nil
	case g == t.serving && t.old != nil:
		t.failed("crashed", fmt.Sprintf("the new program ended (%s, %s)", g.why.Code, g.why.Status), &g.why)
		next, err := t.start(t.old.exe)
		if err != nil {
			t.exit(1)
		}
		t.serving, t.st.TookOver, t.st.Phase = next, true, control.Starting
		t.st.Generation++
	case g == t.serving:
		t.exit(g.cmd.ProcessState.ExitCode())
	}
}

// exit ends the helper as its program ended.
func (t *toy) exit(code int) {
	if code < 0 {
		unix.Kill(os.Getpid(), unix.SIGKILL)
	}
	os.Exit(code)
}

func (t *toy) fork() {
	if t.st.Phase != control.Idle || t.old != nil || t.next != nil {
		t.st.Refused++
		t.st.LastRefusal = "busy"
		return
	}
	arm := control.Arm{}
	if t.st.Armed != nil {
		arm = *t.st.Armed
	}
	exe := arm.Exe
	if exe == "" {
		exe, _ = filepath.EvalSymlinks(t.program)
	}
	t.txid, t.st.Armed = arm.TxID, nil
	t.st.Attempts++
	t.st.TookOver = false
	t.st.Handoff = &control.Handoff{TxID: arm.TxID, Exe: exe, Hold: arm.Hold, StartedAt: time.Now()}
	next, err := t.start(exe)
	if err != nil {
		t.failed("start-failed", err.Error(), nil)
		return
	}
	t.next, t.st.Phase = next, control.Forked
	t.st.Handoff.Candidate = next.cmd.Process.Pid
	deadline := 10 * time.Second
	if arm.ReadyTimeout > 0 {
		deadline = arm.ReadyTimeout
	}
	time.AfterFunc(deadline, func() {
		t.change(func() {
			if t.next == next && t.st.Phase == control.Forked {
				t.undo("ready-timeout", "the candidate did not say READY in time", nil)
			}
		})
	})
}

func (t *toy) failed(reason, detail string, exit *control.Exit) {
	o := &control.Outcome{TxID: t.txid, Reason: reason, Detail: detail, Exit: exit, EndedAt: time.Now()}
	if h := t.st.Handoff; h != nil {
		o.Exe, o.Candidate = h.Exe, h.Candidate
	} else if t.st.Last != nil {
		o.Exe, o.Candidate = t.st.Last.Exe, t.st.Last.Candidate
	}
	t.st.Last, t.st.Handoff = o, nil
}

func (t *toy) undo(reason, detail string, exit *control.Exit) {
	if t.st.Phase != control.Forked && t.st.Phase != control.Held {
		return
	}
	t.failed(reason, detail, exit)
	t.st.Phase = control.Aborting
	t.end(t.next)
}

// end tells a program to end, and after the drain timeout makes it.
func (t *toy) end(g *toyGroup) {
	if g == nil || g.stop {
		return
	}
	g.stop = true
	g.cmd.Process.Signal(syscall.SIGTERM)
	time.AfterFunc(t.drain, func() { g.cmd.Process.Kill() })
}

func (t *toy) answer(req control.Request) (code, text string) {
	var txid string
	if t.st.Handoff != nil {
		txid = t.st.Handoff.TxID
	}
	undecided := t.st.Phase == control.Forked || t.st.Phase == control.Held
	switch req.Op {
	case control.OpArm:
		if t.st.Phase != control.Idle || t.old != nil || t.next != nil || t.st.Armed != nil && t.st.Armed.TxID != req.Arm.TxID {
			return control.CodeBusy, "busy"
		}
		t.st.Armed = req.Arm
	case control.OpDisarm:
		if t.st.Armed != nil && t.st.Armed.TxID == req.TxID {
			t.st.Armed = nil
		}
	case control.OpCommit, control.OpAbort:
		switch {
		case !undecided:
			return control.CodeNotHeld, "no handoff waits for a decision"
		case req.TxID != "" && req.TxID != txid:
			return control.CodeTxID, "another transaction"
		case req.Op == control.OpAbort:
			t.undo("requested", req.Reason, nil)
		default:
			t.old, t.serving, t.next = t.serving, t.next, nil
			t.st.Generation++
			t.st.Last = &control.Outcome{TxID: txid, Exe: t.serving.exe, Candidate: t.serving.cmd.Process.Pid, Committed: true, EndedAt: time.Now()}
			t.st.Handoff, t.st.Phase = nil, control.Idle
			t.end(t.old)
		}
	}
	return "", ""
}

func (t *toy) serve(c net.Conn) {
	defer c.Close()
	in, out := bufio.NewReader(c), json.NewEncoder(c)
	for {
		line, err := control.ReadLine(in)
		if err != nil {
			return
		}
		var req control.Request
		if json.Unmarshal(line, &req) != nil {
			return
		}
		var resp control.Response
		t.change(func() { resp.Code, resp.Error = t.answer(req) })
		for {
			t.mu.Lock()
			st, news := t.st, t.news
			t.mu.Unlock()
			resp.Status = &st
			if out.Encode(resp) != nil {
				return
			}
			if req.Op != control.OpWatch {
				break
			}
			<-news
		}
	}
}

// programMain is a program that knows nothing of zdt: it has its socket as descriptor 3, says on 4 that it is ready, and
// finishes its requests after SIGTERM. A script names it as its interpreter.
func programMain() error {
	file := "/proc/self/exe"
	if len(os.Args) > 2 && os.Args[1] == "script" {
		file = os.Args[2]
	}
	role, version, err := readTrailer(file)
	if err != nil {
		return err
	}
	switch role {
	case "crash":
		return errors.New("read configuration: no such file")
	case "exit0":
		return nil
	case "hang":
		time.Sleep(time.Hour)
	}
	ln, err := net.FileListener(os.NewFile(3, "socket"))
	if err != nil {
		return err
	}
	srv := &http.Server{Handler: handler(version)}
	stop := make(chan os.Signal, 1)
	signal.Notify(stop, syscall.SIGTERM)
	go func() { srv.Serve(ln) }()
	os.NewFile(4, "ready").Write([]byte{1})
	if role == "crash-after-ready" {
		return errors.New("the first request was one too many")
	}
	<-stop
	return srv.Shutdown(context.Background())
}

// underHelper makes the unit one that "zdt init --runtime helper" writes.
func (s *systemd) underHelper() {
	self, err := os.Executable()
	if err != nil {
		s.t.Fatal(err)
	}
	s.helper = self
	s.unit.ExecReload = []string{"/usr/local/bin/zdt", "handoff"}
}

// reload is systemctl reload, and "zdt handoff" as its ExecReload=.
func (s *systemd) reload(ctx context.Context) error {
	s.mu.Lock()
	if s.unit.ActiveState != "active" {
		s.mu.Unlock()
		return fmt.Errorf("the unit is %s", s.unit.ActiveState)
	}
	s.setLocked(func(u *Unit) { u.ActiveState, u.Job = "reloading", true })
	pid := s.unit.MainPID
	s.mu.Unlock()
	err := handOver(ctx, s.dir, pid)
	s.set(func(u *Unit) {
		if u.Job = false; u.ActiveState == "reloading" {
			u.ActiveState = "active"
		}
	})
	return err
}

func handOver(ctx context.Context, dir string, pid int) error {
	c, err := control.Dial(ctx, filepath.Join(dir, "control.sock"))
	if err != nil {
		return err
	}
	defer c.Close()
	st, err := c.Status(ctx)
	if err != nil {
		return err
	}
	arm := control.Arm{TxID: "reload"}
	if st.Armed != nil {
		arm = *st.Armed
	}
	arm.Environ = []string{"FRESH=1"}
	if _, err := c.Arm(ctx, arm); err != nil {
		return err
	}
	if err := unix.Kill(pid, unix.SIGUSR2); err != nil {
		return err
	}
	for st, err := range c.Watch(ctx) {
		switch l := st.Last; {
		case err != nil:
			return err
		case l != nil && l.TxID == arm.TxID && !l.Committed:
			return errors.New("ExecReload= exited with status 11")
		case l != nil && l.TxID == arm.TxID, st.Phase == control.Held && arm.Hold:
			return nil
		}
	}
	return errors.New("ExecReload= exited with status 12")
}
