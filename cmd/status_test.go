package cmd

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/zdt-dev/zdt/dbusctl"
	"github.com/zdt-dev/zdt/handoff/control"
	"github.com/zdt-dev/zdt/release"
)

func mustDuration(t *testing.T, s string) time.Duration {
	t.Helper()
	d, err := time.ParseDuration(s)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// fakeSystemd knows the units it is given.
type fakeSystemd struct {
	systemd // what is not overridden here must not be called
	units   map[string]dbusctl.Unit
	reload  func(ctx context.Context) error
}

func (f fakeSystemd) Close() error { return nil }

func (f fakeSystemd) Reload(ctx context.Context, _ string) error { return f.reload(ctx) }

func (f fakeSystemd) Unit(ctx context.Context, name string) (dbusctl.Unit, error) {
	if u, ok := f.units[name]; ok {
		return u, nil
	}
	return dbusctl.Unit{Name: name, LoadState: "not-found", ActiveState: "inactive"}, &dbusctl.Error{Op: "read", Unit: name, Err: dbusctl.ErrNoUnit}
}

// fakeRuntime answers at a control socket, as this process. handle may change
// the status; it gets every request but watch.
type fakeRuntime struct {
	mu      sync.Mutex
	status  control.Status
	refuse  *control.Response
	watcher []net.Conn
	asked   []string
}

// serve listens at path until the test ends.
func (r *fakeRuntime) serve(t *testing.T, path string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		t.Fatal(err)
	}
	ln, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	t.Cleanup(func() { ln.Close(); r.hangUp(); wg.Wait() })
	wg.Add(1)
	go func() {
		defer wg.Done()
		for {
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			wg.Add(1)
			go func() { defer wg.Done(); defer conn.Close(); r.talk(conn) }()
		}
	}()
}

func (r *fakeRuntime) talk(conn net.Conn) {
	lines := bufio.NewReader(conn)
	for {
		line, err := control.ReadLine(lines)
		if err != nil {
			return
		}
		var req control.Request
		if err := json.Unmarshal(line, &req); err != nil {
			return
		}
		r.mu.Lock()
		r.asked = append(r.asked, req.Op)
		resp := control.Response{}
		switch {
		case req.Op == control.OpWatch:
			r.watcher = append(r.watcher, conn)
		case req.Op == control.OpArm && r.refuse != nil:
			resp = *r.refuse
		case req.Op == control.OpArm:
			r.status.Armed = req.Arm
		}
		st := r.status
		resp.Status = &st
		out, _ := json.Marshal(resp)
		conn.Write(append(out, '\n'))
		r.mu.Unlock()
	}
}

// become changes the status and tells the watchers.
func (r *fakeRuntime) become(change func(s *control.Status)) {
	r.mu.Lock()
	defer r.mu.Unlock()
	change(&r.status)
	st := r.status
	out, _ := json.Marshal(control.Response{Status: &st})
	for _, w := range r.watcher {
		w.Write(append(out, '\n'))
	}
}

func (r *fakeRuntime) hangUp() {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, w := range r.watcher {
		w.Close()
	}
}

// testHost is a made-up machine below a temporary directory: --user with its own
// XDG directories.
type testHost struct {
	f     *factory
	paths Paths
	units map[string]dbusctl.Unit
}

func newHost(t *testing.T, f *factory) testHost {
	t.Helper()
	dir, err := os.MkdirTemp("", "zdt") // short, for sockaddr_un
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	env := map[string]string{"HOME": dir + "/home", "XDG_RUNTIME_DIR": dir + "/run"}
	h := testHost{f: f, units: make(map[string]dbusctl.Unit)}
	f.getenv = func(name string) string { return env[name] }
	f.globals.user = true
	f.dialSystemd = func(context.Context, bool) (systemd, error) { return fakeSystemd{units: h.units}, nil }
	f.dialControl = control.Dial
	if h.paths, err = f.paths(); err != nil {
		t.Fatal(err)
	}
	return h
}

// running adds a unit whose main process is this one.
func (h testHost) running(name string) dbusctl.Unit {
	u := dbusctl.Unit{Name: name + ".service", LoadState: "loaded", ActiveState: "active", SubState: "running", UnitFileState: "enabled", ActiveEnter: day.Add(-2 * time.Hour)}
	u.MainPID, u.UID, u.Result = uint32(os.Getpid()), uint32(os.Geteuid()), "success"
	h.units[u.Name] = u
	return u
}

// deploy makes a store with one committed release.
func (h testHost) deploy(t *testing.T, name string) release.Release {
	t.Helper()
	file := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(file, []byte("#!/bin/sh\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	s, err := release.Create(h.paths.StateDir(name), release.Options{Program: name})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	r, err := s.Stage(t.Context(), file, release.StageOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Flip(r); err != nil {
		t.Fatal(err)
	}
	return r
}

func idle(name string) control.Status {
	return control.Status{
		Version: 1, Service: name, PID: os.Getpid(), Generation: 3, Phase: control.Idle, StartedAt: day.Add(-2 * time.Hour),
		Sockets:     []control.Socket{{Name: "http", Network: "tcp", Address: "[::]:8080", InUse: true}, {Name: "dns", Network: "udp", Address: "127.0.0.1:53"}},
		Connections: control.Counts{Idle: 30, Active: 7},
	}
}

func TestStatus(t *testing.T) {
	for _, tt := range []struct {
		name  string
		setup func(t *testing.T, h testHost)
		code  ExitCode
	}{
		{"serving", func(t *testing.T, h testHost) {
			h.running("web")
			r := h.deploy(t, "web")
			st := idle("web")
			st.Exe = r.Path
			(&fakeRuntime{status: st}).serve(t, h.paths.Control("web"))
		}, ExitOK},
		{"draining", func(t *testing.T, h testHost) {
			h.running("web")
			r := h.deploy(t, "web")
			st := idle("web")
			st.Exe, st.Predecessor = r.Path, &control.Peer{PID: 812, Generation: 2, Connections: control.Counts{Active: 12, Tasks: 1, Moved: 312, Drained: 4, Closed: 2, Cut: 1}}
			st.Moves = &control.Moves{Taken: 312, Refused: 2, Differing: 1, LastDifference: "3 bytes unread, 2 before"}
			st.TookOver, st.EventsLost = true, 2
			st.Last = &control.Outcome{Reason: "crashed", Detail: "the candidate ended (exited, 1)"}
			(&fakeRuntime{status: st}).serve(t, h.paths.Control("web"))
		}, ExitOK},
		{"helper", func(t *testing.T, h testHost) {
			h.running("web")
			h.deploy(t, "web")
			st := idle("web")
			st.Runtime, st.App, st.Connections = control.RuntimeHelper, 2077, control.Counts{}
			st.Exe, st.Predecessor = h.paths.StateDir("web")+"/current/web", &control.Peer{PID: 812, Generation: 2}
			st.TookOver, st.Last = true, &control.Outcome{Reason: "crashed", Detail: "the new program ended (exited, 1)"}
			(&fakeRuntime{status: st}).serve(t, h.paths.Control("web"))
		}, ExitOK},
		{"workers", func(t *testing.T, h testHost) {
			h.running("web")
			h.deploy(t, "web")
			st := idle("web")
			st.Runtime, st.App, st.Connections = control.RuntimeHelper, 2077, control.Counts{}
			st.Exe, st.Predecessor = h.paths.StateDir("web")+"/current/web", &control.Peer{PID: 812, Generation: 2}
			st.Workers = &control.Workers{Want: 3, Ready: 2, Left: 1, Restarts: 4, List: []control.Worker{
				{Index: 1, PID: 2077, Generation: 3, Ready: true}, {Index: 2, Generation: 3}, {Index: 3, PID: 814, Generation: 2, Ready: true},
			}}
			(&fakeRuntime{status: st}).serve(t, h.paths.Control("web"))
		}, ExitOK},
		{"stopping", func(t *testing.T, h testHost) {
			u := h.running("web")
			u.ActiveState = "deactivating"
			h.units[u.Name] = u
			h.deploy(t, "web")
			st := idle("web")
			st.Phase, st.Connections = control.Stopping, control.Counts{Active: 3, Drained: 20, Closed: 14}
			(&fakeRuntime{status: st}).serve(t, h.paths.Control("web"))
		}, ExitNotRunning},
		{"probation", func(t *testing.T, h testHost) {
			h.running("web")
			h.deploy(t, "web")
			st := idle("web")
			st.Phase, st.Handoff = control.Held, &control.Handoff{Candidate: 1944, Exe: "/srv/\x1b]0;x\x07web", Deadline: day.Add(50 * time.Second), Hold: true}
			(&fakeRuntime{status: st}).serve(t, h.paths.Control("web"))
		}, ExitOK},
		{"takeover", func(t *testing.T, h testHost) {
			h.running("web")
			h.deploy(t, "web")
			st := idle("web")
			st.Phase, st.Handoff = control.Held, &control.Handoff{Exe: "/app/web", Deadline: day.Add(50 * time.Second), Hold: true}
			st.Predecessor = &control.Peer{Generation: 2, Connections: control.Counts{Idle: 3}}
			(&fakeRuntime{status: st}).serve(t, h.paths.Control("web"))
		}, ExitOK},
		{"noruntime", func(t *testing.T, h testHost) {
			u := h.running("web")
			u.StatusText, u.NeedDaemonReload, u.NRestarts = "hi\x1b[2J", true, 3
			h.units[u.Name] = u
		}, ExitOK},
		{"otherpid", func(t *testing.T, h testHost) {
			h.running("web")
			h.deploy(t, "web")
			st := idle("web")
			st.PID = 4242
			(&fakeRuntime{status: st}).serve(t, h.paths.Control("web"))
		}, ExitOK},
		{"failed", func(t *testing.T, h testHost) {
			u := h.running("web")
			u.ActiveState, u.MainPID, u.Result = "failed", 0, "exit-code"
			h.units[u.Name] = u
			h.deploy(t, "web")
		}, ExitNotRunning},
		{"missing", func(t *testing.T, h testHost) {}, ExitNoService},
		{"busy", func(t *testing.T, h testHost) {
			h.running("web")
			h.deploy(t, "web")
			(&fakeRuntime{status: idle("web")}).serve(t, h.paths.Control("web"))
			holder := release.Holder{TxID: "20260728T101500000Z-5d41402a", Phase: release.PhaseRehearse, Since: day, Who: release.Who{User: "alice"}}
			lock, err := release.Acquire(t.Context(), h.paths.Lock("web"), holder, 0)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { lock.Release() })
		}, ExitOK},
		{"interrupted", func(t *testing.T, h testHost) {
			h.running("web")
			r := h.deploy(t, "web")
			st := idle("web")
			st.Exe = r.Path
			(&fakeRuntime{status: st}).serve(t, h.paths.Control("web"))
			s, err := release.Open(h.paths.StateDir("web"), release.Options{})
			if err != nil {
				t.Fatal(err)
			}
			defer s.Close()
			err = s.WriteTxn(release.Txn{
				TxID: "20260728T101500000Z-5d41402a", Kind: release.KindUpgrade, Phase: release.PhaseBake, From: r.ID, To: r.ID,
				Runner: release.Proc{PID: 4194300, Start: 1}, Started: day.Add(-time.Hour), Who: release.Who{User: "alice"},
			})
			if err != nil {
				t.Fatal(err)
			}
		}, ExitOK},
	} {
		t.Run(tt.name, func(t *testing.T) {
			f, out, errs := testFactory(t, false)
			h := newHost(t, f)
			tt.setup(t, h)
			if code := codeOf(runStatus(t.Context(), f, []string{"web"})); code != tt.code {
				t.Errorf("exit %d, want %d: %s", code, tt.code, errs)
			}
			golden(t, "status/"+tt.name, h.scrub(out.String()))

			f.globals.output = outputJSON
			out.Reset()
			runStatus(t.Context(), f, []string{"web.service"})
			var doc statusDoc
			if err := json.Unmarshal(out.Bytes(), &doc); err != nil || doc.ExitCode != tt.code || len(doc.Services) != 1 {
				t.Errorf("document: %v\n%s", err, out)
			}
		})
	}
}

// scrub takes out what differs from run to run.
func (h testHost) scrub(s string) string {
	s = strings.ReplaceAll(s, filepath.Dir(h.paths.Runtime), "/run/user/1000")
	s = strings.ReplaceAll(s, " "+itoa(os.Getpid())+",", " 1944,")
	s = strings.ReplaceAll(s, "pid "+itoa(os.Getpid()), "pid 1944")
	entries, _ := os.ReadDir(filepath.Join(h.paths.StateDir("web"), "releases"))
	for _, e := range entries {
		s = strings.ReplaceAll(s, e.Name(), "20260701T090000Z-3f2a9c81d0be")
		s = strings.ReplaceAll(s, shortID(e.Name()), "3f2a9c81d0be")
	}
	i := strings.Index(s, " staged ")
	if i >= 0 {
		end := strings.IndexByte(s[i:], '\n')
		s = s[:i] + " staged AGO" + s[i+end:]
	}
	return s
}

func itoa(n int) string { b, _ := json.Marshal(n); return string(b) }

// Somebody else's socket in the service's place is not believed.
func TestStatusDistrustsOtherUsers(t *testing.T) {
	f, out, _ := testFactory(t, false)
	h := newHost(t, f)
	u := h.running("web")
	u.UID = uint32(os.Geteuid()) + 77 // the listener, this process, is not that user
	if os.Geteuid() == 0 {
		t.Skip("root may listen for every service")
	}
	h.units[u.Name] = u
	(&fakeRuntime{status: idle("web")}).serve(t, h.paths.Control("web"))
	runStatus(t.Context(), f, []string{"web"})
	if !strings.Contains(out.String(), "not trusted") {
		t.Errorf("%s", out)
	}
}

// A runtime that says nothing must not hold status up.
func TestStatusOfAStoppedProcess(t *testing.T) {
	f, out, _ := testFactory(t, false)
	h := newHost(t, f)
	h.running("web")
	path := h.paths.Control("web")
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		t.Fatal(err)
	}
	ln, err := net.Listen("unix", path) // accepts in the kernel, answers never
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	begun := time.Now()
	if err := runStatus(t.Context(), f, []string{"web"}); err != nil {
		t.Error(err)
	}
	if !strings.Contains(out.String(), "does not answer within 1s") || time.Since(begun) > 5*controlPatience {
		t.Errorf("after %v: %s", time.Since(begun), out)
	}
}

func TestStatusVerdict(t *testing.T) {
	s := func(states ...state) (list []serviceStatus) {
		for _, st := range states {
			list = append(list, serviceStatus{State: st})
		}
		return list
	}
	for _, tt := range []struct {
		services []serviceStatus
		want     ExitCode
	}{
		{nil, ExitOK},
		{s(stateServing, stateServing), ExitOK},
		{s(stateServing, stateStopped), ExitNotRunning},
		{s(stateStarting), ExitNotRunning},
		{s(stateStopped, stateNone, stateServing), ExitNoService},
	} {
		if code, _ := statusVerdict(tt.services); code != tt.want {
			t.Errorf("%v: %d, want %d", tt.services, code, tt.want)
		}
	}
}

func TestUserPaths(t *testing.T) {
	env := map[string]string{"HOME": "/home/op", "XDG_STATE_HOME": "relative", "XDG_RUNTIME_DIR": "/run/user/7"}
	p, err := userPaths(func(n string) string { return env[n] }, 7)
	if err != nil || p.Units != "/home/op/.config/systemd/user" || p.StateDir("web") != "/home/op/.local/state/zdt/web" ||
		p.Control("web") != "/run/user/7/zdt/web/control.sock" || p.Lock("web") != "/run/user/7/zdt/lock/web.lock" {
		t.Errorf("%+v, %v", p, err)
	}
	var failure *Failure
	if _, err := userPaths(func(string) string { return "" }, 7); !errors.As(err, &failure) || failure.Code != ExitRefused {
		t.Errorf("without a home: %v", err)
	}
}

func (s fakeSystemd) Properties(context.Context, string) (map[string]any, error) {
	return map[string]any{}, nil
}

func (s fakeSystemd) Version(context.Context) (int, string, error) { return 257, "257", nil }
