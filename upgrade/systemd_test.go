package upgrade

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/zdt-dev/zdt/handoff/control"
)

// envUnit marks the processes of a fake unit: what its control group is.
const envUnit = "ZDT_TEST_UNIT"

// systemd plays the manager of one unit: it starts it, follows MAINPID= on a
// notification socket, notices the end of its own children only, and restarts
// what dies. It is faithful where the engine depends on it (FACTS §3).
type systemd struct {
	t      *testing.T
	dir    string
	exec   string // ExecStart=, through current
	helper string // a file that runs exec as "zdt run" would; "": exec is its own runtime
	env    []string
	notify *net.UnixConn
	bus    net.Listener // for a zdt in another process
	wg     sync.WaitGroup

	mu       sync.Mutex
	unit     Unit
	news     chan struct{} // closed and replaced at every change
	restart  bool          // Restart=
	old      bool          // before 254: NOTIFYACCESS= is not understood
	all      bool          // NotifyAccess=all for now
	mute     bool          // MAINPID= is ignored
	terse    bool          // a watch is never told that the unit is deactivating: it may skip what is short
	unitErr  error         // what asking for the unit gives
	watchers map[chan struct{}]struct{}
	closed   bool
}

func newSystemd(t *testing.T, dir, exec string, env ...string) *systemd {
	s := &systemd{t: t, dir: dir, exec: exec, env: env, restart: true, news: make(chan struct{}), watchers: map[chan struct{}]struct{}{}}
	s.unit = Unit{Name: "web.service", LoadState: "loaded", ActiveState: "inactive", Result: "success", Type: "notify", NotifyAccess: "main",
		ControlGroup: "/test", Program: exec, Runtime: true}
	var err error
	if s.notify, err = net.ListenUnixgram("unixgram", &net.UnixAddr{Name: filepath.Join(dir, "notify"), Net: "unixgram"}); err != nil {
		t.Fatal(err)
	}
	raw, err := s.notify.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	raw.Control(func(fd uintptr) { unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_PASSCRED, 1) })
	if s.bus, err = net.Listen("unix", filepath.Join(dir, "bus")); err != nil {
		t.Fatal(err)
	}
	s.wg.Add(2)
	go s.listen()
	go s.serveBus()
	t.Cleanup(s.close)
	return s
}

// set changes the unit and tells everybody.
func (s *systemd) set(f func(*Unit)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.setLocked(f)
}

func (s *systemd) setLocked(f func(*Unit)) {
	f(&s.unit)
	close(s.news)
	s.news = make(chan struct{})
}

func (s *systemd) state() (Unit, <-chan struct{}, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.unit, s.news, s.unitErr
}

func (s *systemd) mainPID() int { u, _, _ := s.state(); return u.MainPID }

// watch is Host.WatchUnit.
func (s *systemd) watch(ctx context.Context) (<-chan Unit, error) {
	if _, _, err := s.state(); err != nil {
		return nil, err
	}
	out, lost := make(chan Unit), make(chan struct{})
	s.mu.Lock()
	s.watchers[lost] = struct{}{}
	s.mu.Unlock()
	s.wg.Add(1)
	go func() {
		defer s.wg.Done()
		defer close(out)
		for {
			u, news, _ := s.state()
			send := out
			if s.terse && u.ActiveState == "deactivating" {
				send = nil
			}
			select {
			case <-news:
				continue
			case send <- u:
			case <-ctx.Done():
				return
			case <-lost:
				return
			}
			select {
			case <-news:
			case <-ctx.Done():
				return
			case <-lost:
				return
			}
		}
	}()
	return out, nil
}

// hangUp ends all watches, as the bus does that goes down.
func (s *systemd) hangUp(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.unitErr = err
	for w := range s.watchers {
		close(w)
		delete(s.watchers, w)
	}
}

// start starts the unit and waits until it is active.
func (s *systemd) start() {
	s.t.Helper()
	s.launch()
	until(s.t, "the unit is active", func() bool { u, _, _ := s.state(); return u.ActiveState == "active" })
}

func (s *systemd) launch() {
	log, err := os.OpenFile(filepath.Join(s.dir, "log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		s.t.Error(err)
		return
	}
	defer log.Close()
	argv, role := []string{s.exec}, "service"
	if s.helper != "" {
		argv, role = []string{s.helper, "run", "--", s.exec}, "helper"
	}
	env := append([]string{envRole + "=" + role, envUnit + "=" + s.dir, "NOTIFY_SOCKET=" + filepath.Join(s.dir, "notify"),
		"RUNTIME_DIRECTORY=" + s.dir, "ZDT_SERVICE=web", "PATH=/usr/bin:/bin", "GORACE=" + os.Getenv("GORACE")}, s.env...)
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return
	}
	pid, err := syscall.ForkExec(argv[0], argv, &syscall.ProcAttr{Env: env, Files: []uintptr{0, log.Fd(), log.Fd()}})
	if err != nil {
		s.t.Logf("execute %s: %v", argv[0], err)
		s.setLocked(func(u *Unit) { u.ActiveState, u.Result, u.MainPID = "failed", "exec-condition", 0 })
		return
	}
	s.setLocked(func(u *Unit) { u.ActiveState, u.SubState, u.MainPID, u.Stopped = "activating", "start", pid, false })
	s.superviseLocked(pid, 0)
}

// superviseLocked follows a main process. Who is not a child dies unnoticed,
// until its parent has died too; by then somebody else may be the main process.
func (s *systemd) superviseLocked(pid, parent int) {
	p, err := openProcess(pid)
	if err != nil {
		s.t.Error(err)
		return
	}
	pp, err := openProcess(parent)
	if err != nil && parent != 0 {
		s.t.Error(err)
		return
	}
	s.wg.Add(1)
	go func() {
		defer s.wg.Done()
		defer p.close()
		<-p.gone
		if parent != 0 {
			<-pp.gone
			pp.close()
		}
		var ws unix.WaitStatus
		for {
			if _, err := unix.Wait4(pid, &ws, 0, nil); err == unix.EINTR {
				continue
			} else if err != nil {
				ws = 0 // its parent had seen to it: nobody knows how it ended
			}
			break
		}
		s.mainExited(pid, ws)
	}()
}

func (s *systemd) mainExited(pid int, ws unix.WaitStatus) {
	s.mu.Lock()
	again := false
	if s.unit.MainPID == pid {
		stopping := s.unit.ActiveState == "deactivating"
		up := s.unit.ActiveState == "active" || s.unit.ActiveState == "reloading" // RestartSec= is long for what never came up
		again = s.restart && !stopping && !s.closed && up
		s.killAll()
		s.setLocked(func(u *Unit) {
			u.MainPID, u.Stopped = 0, stopping && u.Result == "success"
			switch {
			case again:
				u.ActiveState, u.SubState = "activating", "auto-restart"
			case stopping || ws.Exited() && ws.ExitStatus() == 0:
				u.ActiveState = "inactive"
			default:
				u.ActiveState, u.Result = "failed", "exit-code"
			}
		})
	}
	s.mu.Unlock()
	if again {
		s.launch()
	}
}

// stop is systemctl stop, the news of which may come late.
func (s *systemd) stop(lastFirst bool) {
	pids := s.processes()
	if lastFirst {
		slices.Reverse(pids)
	} else {
		s.set(func(u *Unit) { u.ActiveState = "deactivating" })
	}
	for _, pid := range pids {
		unix.Kill(pid, unix.SIGTERM)
		if lastFirst && pid != pids[len(pids)-1] {
			c, err := control.Dial(context.Background(), filepath.Join(s.dir, "control.sock"))
			if err != nil {
				continue
			}
			for st, err := range c.Watch(context.Background()) { // until the incumbent has noticed
				if err != nil || st.Last != nil || st.Phase == control.Draining || st.Phase == control.Idle {
					break
				}
			}
			c.Close()
		}
	}
	s.set(func(u *Unit) {
		if u.MainPID != 0 { // it may be over already
			u.ActiveState = "deactivating"
		}
	})
}

// restartJob is systemctl restart: it waits until the unit has started, or has not.
func (s *systemd) restartJob(ctx context.Context) error {
	if err := s.stopJob(ctx); err != nil {
		return err
	}
	s.set(func(u *Unit) { u.Result = "success" })
	s.launch()
	for {
		u, news, err := s.state()
		switch {
		case err != nil:
			return err
		case u.ActiveState == "active":
			return nil
		case u.ActiveState == "failed" || u.SubState == "auto-restart":
			return fmt.Errorf("job for %s failed (%s)", u.Name, u.Result)
		}
		select {
		case <-news:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// stopJob is systemctl stop, and waits for the end.
func (s *systemd) stopJob(ctx context.Context) error {
	s.mu.Lock()
	if s.unit.MainPID == 0 { // also while it waits for its next try
		s.setLocked(func(u *Unit) { u.ActiveState, u.SubState = "inactive", "" })
	}
	s.mu.Unlock()
	if u, _, _ := s.state(); u.MainPID != 0 {
		s.stop(false)
	}
	for {
		u, news, err := s.state()
		if err != nil || u.MainPID == 0 {
			return err
		}
		select {
		case <-news:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// processes are those of the unit.
func (s *systemd) processes() []int {
	entries, _ := os.ReadDir("/proc")
	var pids []int
	for _, e := range entries {
		if pid, err := strconv.Atoi(e.Name()); err == nil && ofUnit(pid, s.dir) {
			pids = append(pids, pid)
		}
	}
	return pids
}

func ofUnit(pid int, dir string) bool {
	env, err := os.ReadFile(fmt.Sprintf("/proc/%d/environ", pid))
	return err == nil && bytes.Contains(env, []byte(envUnit+"="+dir+"\x00"))
}

// killAll kills what there is, and waits until nothing is left: systemd starts nothing into a control group that is not empty, and
// neither would a start find the port free.
func (s *systemd) killAll() {
	for {
		pids := s.processes()
		if len(pids) == 0 {
			return
		}
		for _, pid := range pids {
			unix.Kill(pid, unix.SIGKILL)
		}
		pause(context.Background(), poll/10)
	}
}
