package handoff

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/zdt-dev/zdt/handoff/control"
	"github.com/zdt-dev/zdt/journal"
)

// Takeovers between real processes that did not start each other.

// Everything crosses over, and goes on to cross: to a process that asks, to one
// that is forked, to one that asks the forked one.
func TestTakeover(t *testing.T) {
	t.Parallel()
	a := newBox(t, serviceConfig{DrainTimeout: patience, IdleGrace: patience})
	first := a.startFirst()
	clients := a.visit(first)
	clients.answeredBy(1)

	b := a.beside()
	pid := b.start(a.shared())
	second := b.awaitGeneration(2)
	if second.PID != pid || second.Sockets[0].Origin != fromPredecessor || b.address(second, "http") != a.addr {
		t.Errorf("after the takeover: %+v", second)
	}
	a.awaitExit(first.PID, "exited 0")
	clients.answeredBy(2)
	if _, err := os.Lstat(a.controlPath()); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the control socket of a box that is gone: %v", err)
	}
	before := descriptors(t, pid)

	// Each supervisor has heard of its own process, and of nothing else.
	for name, box := range map[string]*box{"first": a, "second": b} {
		for _, n := range box.systemd.all() {
			if !n.accepted || strings.Contains(n.text, "MAINPID") || strings.Contains(n.text, "NOTIFYACCESS") {
				t.Errorf("the supervisor of the %s box heard %q from %d", name, n.text, n.pid)
			}
		}
		if !box.saidReady() {
			t.Errorf("the %s box never said READY", name)
		}
	}

	b.flip("crossing")
	b.signal(pid, syscall.SIGUSR2)
	third := b.awaitGeneration(3)
	b.awaitExit(pid, "exited 0")
	clients.answeredBy(3)

	c := b.beside()
	pid = c.start(a.shared())
	c.awaitGeneration(4)
	b.awaitExit(third.PID, "exited 0")
	clients.answeredBy(4)
	eventually(t, "the last process has as many descriptors as the first that took over", func() bool { return descriptors(t, pid) <= before })

	clients.leave()
	c.signal(pid, syscall.SIGTERM)
	c.awaitExit(pid, "exited 0")
	for _, path := range []string{a.shared(), c.controlPath()} {
		if _, err := os.Lstat(path); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s after the end of the service: %v", path, err)
		}
	}
	// The path is free for a first generation.
	d := a.beside()
	d.start(a.shared())
	d.awaitGeneration(1)
}

// Nothing depends on pids: the processes do not see each other's.
func TestTakeoverAcrossNamespaces(t *testing.T) {
	requireRoot(t)
	t.Parallel()
	// The second process has a network of its own, too. The clients stay where
	// they are, in that of the first one.
	const others = unix.CLONE_NEWPID | unix.CLONE_NEWNS | unix.CLONE_NEWIPC | unix.CLONE_NEWUTS
	in := func(flags uintptr) func(*exec.Cmd) {
		return func(cmd *exec.Cmd) { cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: flags} }
	}
	a := newBox(t, serviceConfig{DrainTimeout: patience, IdleGrace: patience})
	clients := a.visit(a.startFirst(in(others)))
	clients.answeredBy(1)
	n := a.held(in(others | unix.CLONE_NEWNET))
	st := a.mustStatus()
	if st.PID != 1 || st.Handoff.Candidate != 0 || filepath.Base(st.Handoff.Exe) != "crossing" {
		t.Errorf("status while held: %+v, %+v", st, st.Handoff)
	}
	if st := n.mustStatus(); st.PID != 1 || st.Phase != control.Candidate || st.Predecessor.PID != 0 {
		t.Errorf("status of the newcomer: %+v, %+v", st, st.Predecessor)
	}
	late := a.visit(st) // served by the newcomer
	late.answeredBy(2)
	a.decide(func(c *control.Client, ctx context.Context) (control.Status, error) { return c.Commit(ctx, "held") })
	n.awaitGeneration(2)
	a.awaitExit(a.first.Process.Pid, "exited 0")
	clients.answeredBy(2)
	late.answeredBy(2)
	n.signal(n.first.Process.Pid, syscall.SIGKILL)
	n.awaitExit(n.first.Process.Pid, "killed KILL")
}

// requireRoot skips a test that needs root's rights, which root in a container
// may not have, or ends it as failed where such tests are required.
func requireRoot(t *testing.T) {
	t.Helper()
	cmd := exec.Command("/bin/true")
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWPID | unix.CLONE_NEWNET}
	if os.Geteuid() == 0 && cmd.Run() == nil {
		return
	}
	const why = "namespaces and other users need root"
	if os.Getenv("ZDT_SYSTEST") == "require" {
		t.Fatal("ZDT_SYSTEST=require is set, but " + why)
	}
	t.Skip(why)
}

// Old and new process with one runtime directory: the control socket is
// answered by whoever is the service, at every moment.
func TestTakeoverSharesControlSocket(t *testing.T) {
	t.Parallel()
	a := newBox(t, serviceConfig{})
	pid := a.startFirst().PID
	same := func(cmd *exec.Cmd) { cmd.Env = append(cmd.Env, "RUNTIME_DIRECTORY="+a.dir) }
	n := a.held(same)
	if st := a.mustStatus(); st.PID != pid || st.Phase != control.Held {
		t.Errorf("before the commit: %+v", st)
	}
	a.decide(func(c *control.Client, ctx context.Context) (control.Status, error) {
		return c.Abort(ctx, "held", "no")
	})
	if text := n.failed(); !strings.Contains(text, ErrUndone.Error()) {
		t.Errorf("the newcomer said %q", text)
	}
	n = a.beside()
	second := n.start(a.shared(), same)
	if st := a.awaitGeneration(2); st.PID != second {
		t.Errorf("after the commit: %+v", st)
	}
	a.awaitExit(pid, "exited 0")
	n.signal(second, syscall.SIGTERM)
	n.awaitExit(second, "exited 0")
	if _, err := os.Lstat(a.controlPath()); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("control socket after the end of the service: %v", err)
	}
}

// What was served by a newcomer that is sent away comes back.
func TestTakeoverUndone(t *testing.T) {
	t.Parallel()
	a := newBox(t, serviceConfig{DrainTimeout: patience, IdleGrace: patience})
	st := a.startFirst()
	clients := a.visit(st)
	clients.answeredBy(1)
	before := descriptors(t, st.PID)
	n := a.held()
	late := a.visit(st)
	late.answeredBy(2)
	clients.servedBy(1)
	a.decide(func(c *control.Client, ctx context.Context) (control.Status, error) {
		return c.Abort(ctx, "held", "not today")
	})
	if text := n.failed(); !strings.Contains(text, ErrUndone.Error()) || !strings.Contains(text, string(journal.ReasonRequested)) {
		t.Errorf("the newcomer said %q", text)
	}
	if n.saidReady() {
		t.Error("a newcomer that was sent away had said READY")
	}
	after := a.awaitFailure(string(journal.ReasonRequested))
	if after.Last.Detail != "not today" || after.Last.Exit != nil || after.Last.TxID != "held" {
		t.Errorf("outcome: %+v", after.Last)
	}
	clients.answeredBy(1)
	late.answeredBy(1)
	const more = 3 // connections of late, over TCP and unix sockets
	eventually(t, "no descriptor is left over", func() bool { return descriptors(t, st.PID) <= before+more })
	a.nextTakeoverWorks(clients, late)
}

// nextTakeoverWorks is what every failure ends with.
func (b *box) nextTakeoverWorks(clients ...*customers) *box {
	b.t.Helper()
	generation := b.mustStatus().Generation + 1
	n := b.beside()
	n.start(b.shared())
	n.awaitGeneration(generation)
	b.awaitExit(b.first.Process.Pid, "exited 0")
	for _, c := range clients {
		c.answeredBy(generation)
	}
	return n
}

func TestNewcomerFails(t *testing.T) {
	for _, tt := range []struct {
		name   string
		cfg    serviceConfig
		do     func(t *testing.T, a *box)
		reason journal.Reason
		detail string
	}{
		{name: "killed before READY", reason: journal.ReasonCrashed, detail: "let go of the link", do: func(t *testing.T, a *box) {
			n := a.beside()
			wait, _ := n.waiting()
			pid := n.start(a.shared(), wait)
			a.await("asked", func(st control.Status) bool { return st.Phase == control.Forked })
			n.signal(pid, syscall.SIGKILL)
		}},
		{name: "killed while held", reason: journal.ReasonCrashed, do: func(t *testing.T, a *box) {
			n := a.held()
			n.signal(n.first.Process.Pid, syscall.SIGKILL)
		}},
		{name: "stopped before READY", reason: journal.ReasonExited, detail: "was told to stop", do: func(t *testing.T, a *box) {
			n := a.beside()
			wait, _ := n.waiting()
			pid := n.start(a.shared(), wait)
			n.await("starting", func(st control.Status) bool { return st.Phase == control.Starting })
			n.signal(pid, syscall.SIGTERM)
			n.awaitEmpty()
		}},
		{name: "stopped while held", reason: journal.ReasonExited, do: func(t *testing.T, a *box) {
			n := a.held()
			n.signal(n.first.Process.Pid, syscall.SIGTERM)
			n.awaitExit(n.first.Process.Pid, "exited 0")
		}},
		{name: "not READY in time", cfg: serviceConfig{ReadyTimeout: 300 * time.Millisecond}, reason: journal.ReasonReadyTimeout, do: func(t *testing.T, a *box) {
			n := a.beside()
			wait, _ := n.waiting()
			n.start(a.shared(), wait)
			if text := n.failed(); !strings.Contains(text, "ready-timeout") {
				t.Errorf("the newcomer said %q", text)
			}
		}},
		{name: "hangs before READY", cfg: serviceConfig{ReadyTimeout: time.Second}, reason: journal.ReasonReadyTimeout, do: func(t *testing.T, a *box) {
			n := a.beside()
			wait, release := n.waiting()
			pid := n.start(a.shared(), wait)
			a.await("asked", func(st control.Status) bool { return st.Phase == control.Forked })
			n.signal(pid, syscall.SIGSTOP)
			a.awaitFailure(string(journal.ReasonReadyTimeout))
			release()
			n.signal(pid, syscall.SIGCONT) // it must not believe its predecessor to be dead
			n.failed()
		}},
		{name: "hangs while held", cfg: serviceConfig{DrainTimeout: 200 * time.Millisecond}, reason: journal.ReasonRequested, do: func(t *testing.T, a *box) {
			n := a.held()
			n.signal(n.first.Process.Pid, syscall.SIGSTOP)
			a.decide(func(c *control.Client, ctx context.Context) (control.Status, error) {
				return c.Abort(ctx, "held", "no")
			})
			a.awaitFailure(string(journal.ReasonRequested))
			n.signal(n.first.Process.Pid, syscall.SIGCONT)
			n.failed()
		}},
		{name: "nobody decides", cfg: serviceConfig{}, reason: journal.ReasonHoldTimeout, do: func(t *testing.T, a *box) {
			if _, err := a.ask(func(ctx context.Context, c *control.Client) (control.Status, error) {
				return c.Arm(ctx, control.Arm{TxID: "t", Hold: true, HoldFor: 100 * time.Millisecond})
			}); err != nil {
				t.Fatal(err)
			}
			n := a.beside()
			n.start(a.shared())
			n.failed()
		}},
		{name: "not healthy", cfg: serviceConfig{HealthFile: "sick"}, reason: journal.ReasonHealth, do: func(t *testing.T, a *box) {
			n := a.beside()
			n.start(a.shared())
			n.failed()
			os.Remove(a.cfg.HealthFile)
		}},
		{name: "short of descriptors", reason: journal.ReasonExited, detail: "LimitNOFILE", do: func(t *testing.T, a *box) {
			n := a.beside()
			n.start(a.shared(), func(cmd *exec.Cmd) {
				cmd.Args = []string{"/bin/sh", "-c", `ulimit -n 11; exec "$0"`, cmd.Path}
				cmd.Path = "/bin/sh"
			})
			if text := n.failed(); !strings.Contains(text, "came through: out of descriptors") {
				t.Errorf("the newcomer said %q", text)
			}
		}},
		{name: "cannot open its control socket", reason: journal.ReasonExited, detail: "control socket", do: func(t *testing.T, a *box) {
			n := a.beside()
			n.cfg.ControlSocket = "/no/such/directory/control.sock"
			n.start(a.shared())
			n.failed()
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			a := newBox(t, tt.cfg)
			if a.cfg.HealthFile != "" {
				a.cfg.HealthFile = filepath.Join(a.dir, a.cfg.HealthFile)
				if err := os.WriteFile(a.cfg.HealthFile, nil, 0o644); err != nil {
					t.Fatal(err)
				}
			}
			st := a.startFirst()
			clients := a.visit(st)
			clients.answeredBy(1)
			before := descriptors(t, st.PID)
			tt.do(t, a)
			after := a.awaitFailure(string(tt.reason))
			if after.PID != st.PID || !strings.Contains(after.Last.Detail, tt.detail) {
				t.Errorf("after the failure: %+v, %+v", after, after.Last)
			}
			clients.answeredBy(1)
			eventually(t, "no descriptor is left over", func() bool { return descriptors(t, st.PID) <= before })
			a.cfg.ReadyTimeout, a.cfg.DrainTimeout = 0, 0
			a.nextTakeoverWorks(clients)
		})
	}
}

// The newcomer is the service and dies while the incumbent still drains: its
// link tells, and the incumbent serves again.
func TestNewcomerDiesWhileIncumbentDrains(t *testing.T) {
	t.Parallel()
	a := newBox(t, serviceConfig{DrainTimeout: patience})
	st := a.startFirst()
	slow := make(chan string, 1)
	go func() { slow <- a.getQuietly("/slow?for=1500ms") }()
	a.await("busy", func(st control.Status) bool { return st.Connections.Active == 1 })
	n := a.beside()
	pid := n.start(a.shared())
	second := n.await("the service", func(st control.Status) bool { return st.Generation == 2 && st.Phase == control.Idle })
	if second.Predecessor == nil {
		t.Fatalf("the incumbent is gone already: %+v", second)
	}
	if draining := a.mustStatus(); draining.Phase != control.Draining { // on a control socket of its own
		t.Errorf("the incumbent: %+v", draining)
	}
	n.signal(pid, syscall.SIGKILL)
	after := a.await("taken back", func(st control.Status) bool { return st.TookOver && st.Phase == control.Idle })
	if after.Last.Reason != string(journal.ReasonCrashed) || !strings.Contains(after.Last.Detail, "let go of the link") {
		t.Errorf("after the death: %+v", after.Last)
	}
	if got := <-slow; got != "1 done" {
		t.Errorf("slow request: %q", got)
	}
	clients := a.visit(st)
	clients.answeredBy(1)
	for _, m := range a.systemd.all() {
		if strings.Contains(m.text, "MAINPID") {
			t.Errorf("the supervisor heard %q", m.text)
		}
	}
	a.nextTakeoverWorks(clients)
}

// Once the sockets have crossed, the service lives, whatever becomes of the process that had them.
func TestIncumbentDies(t *testing.T) {
	for _, tt := range []struct {
		name string
		do   func(t *testing.T, a *box) *box
	}{
		{"before READY", func(t *testing.T, a *box) *box {
			n := a.beside()
			wait, release := n.waiting()
			n.start(a.shared(), wait)
			a.await("asked", func(st control.Status) bool { return st.Phase == control.Forked })
			n.await("told", func(st control.Status) bool { return st.Phase == control.Starting })
			a.signal(a.first.Process.Pid, syscall.SIGKILL)
			n.await("alone", func(st control.Status) bool { return st.Predecessor == nil })
			if n.saidReady() {
				t.Error("said READY before it was")
			}
			release()
			return n
		}},
		{"while held", func(t *testing.T, a *box) *box {
			n := a.held()
			a.signal(a.first.Process.Pid, syscall.SIGKILL)
			return n
		}},
		{"in its drain", func(t *testing.T, a *box) *box {
			go a.getQuietly("/slow?for=1m") // its connection breaks
			a.await("busy", func(st control.Status) bool { return st.Connections.Active == 1 })
			n := a.beside()
			n.start(a.shared())
			n.await("the service", func(st control.Status) bool { return st.Generation == 2 && st.Phase == control.Idle })
			a.signal(a.first.Process.Pid, syscall.SIGKILL)
			return n
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			a := newBox(t, serviceConfig{DrainTimeout: patience})
			st := a.startFirst()
			n := tt.do(t, a)
			n.awaitGeneration(2)
			eventually(t, "the supervisor of the new service hears READY", n.saidReady)
			clients := n.visit(st)
			clients.answeredBy(2)
			// The takeover socket is the newcomer's now.
			c := n.beside()
			c.start(a.shared())
			c.awaitGeneration(3)
			clients.answeredBy(3)
		})
	}
}

// The incumbent is told to end during a takeover: the service ends, and no
// newcomer takes that for the death of its predecessor.
func TestIncumbentStopsWhileHeld(t *testing.T) {
	for _, sig := range []syscall.Signal{syscall.SIGTERM, syscall.SIGQUIT} {
		t.Run(sig.String(), func(t *testing.T) {
			t.Parallel()
			a := newBox(t, serviceConfig{})
			a.startFirst()
			n := a.held()
			a.signal(a.first.Process.Pid, sig)
			a.awaitExit(a.first.Process.Pid, "exited 0")
			n.failed()
			if n.saidReady() {
				t.Error("the newcomer served on")
			}
		})
	}
}

func TestTakeoverRefused(t *testing.T) {
	t.Parallel()
	a := newBox(t, serviceConfig{})
	wait, release := a.waiting()
	a.start(a.shared(), wait)
	refused := func(want string, how ...func(*exec.Cmd)) {
		t.Helper()
		n := &box{newStage(t, a.cfg)}
		n.start(a.shared(), how...)
		if text := n.failed(); !strings.Contains(text, want) || !strings.Contains(text, a.shared()) {
			t.Errorf("the newcomer said %q, want %q", text, want)
		}
	}
	a.await("starting", func(st control.Status) bool { return st.Phase == control.Starting })
	refused("(not-ready): this generation is not READY yet; start this one again when that is over")
	release()
	st := a.await("idle", func(st control.Status) bool { return st.Phase == control.Idle })
	a.addr = a.address(st, "http")
	before := descriptors(t, st.PID)
	a.held()
	refused("(busy): a handoff is in progress")
	if st := a.mustStatus(); st.Refused != 2 || st.LastRefusal != "a handoff is in progress" {
		t.Errorf("status: %+v", st)
	}
	a.decide(func(c *control.Client, ctx context.Context) (control.Status, error) { return c.Abort(ctx, "held", "") })
	a.awaitFailure(string(journal.ReasonRequested))

	// One who is armed for a certain file shall get that.
	a.decide(func(c *control.Client, ctx context.Context) (control.Status, error) {
		return c.Arm(ctx, control.Arm{TxID: "other", Exe: "/srv/web"})
	})
	refused("a handoff to /srv/web is about to begin")
	a.decide(func(c *control.Client, ctx context.Context) (control.Status, error) { return c.Disarm(ctx, "other") })

	// The directory is missing, the path is something else's.
	elsewhere := func(path string) func(*exec.Cmd) {
		return func(cmd *exec.Cmd) { cmd.Env = append(cmd.Env, "ZDT_TAKEOVER="+path) }
	}
	plain := filepath.Join(a.dir, "takeover-plain") // contains the path of the socket, as refused wants
	if err := os.WriteFile(plain, []byte("text"), 0o644); err != nil {
		t.Fatal(err)
	}
	refused("no socket", elsewhere(plain))
	if readFile(plain) != "text" {
		t.Error("a file was replaced by the takeover socket")
	}
	refused("have to share it", elsewhere(a.shared()+"/no/socket"))
	refused("another kind of socket", func(cmd *exec.Cmd) {
		link := a.shared() + "-link"
		os.Remove(link)
		if err := os.Symlink(a.controlPath(), link); err != nil {
			t.Fatal(err)
		}
		elsewhere(link)(cmd)
	})
	eventually(t, "no descriptor is left over", func() bool { return descriptors(t, st.PID) <= before })
	clients := a.visit(a.mustStatus())
	a.nextTakeoverWorks(clients)
}

// A process of another user neither gets the sockets nor is believed to have them.
func TestTakeoverAmongUsers(t *testing.T) {
	requireRoot(t)
	t.Parallel()
	open := func(t *testing.T, a *box) { // so that it is not the file's mode that refuses
		for _, path := range []string{a.dir, a.shared()} {
			if err := os.Chmod(path, 0o777); err != nil {
				t.Fatal(err)
			}
		}
	}
	as := func(uid uint32) func(*exec.Cmd) {
		return func(cmd *exec.Cmd) {
			cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uid, Gid: uid}}
		}
	}
	mapped := func(cmd *exec.Cmd) {
		ids := []syscall.SysProcIDMap{{ContainerID: 0, HostID: 1001, Size: 1}}
		cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWUSER, UidMappings: ids, GidMappings: ids, Credential: &syscall.Credential{}}
	}
	for _, tt := range []struct {
		name       string
		first, how func(*exec.Cmd)
		wide       bool
		want       string // of the newcomer; "": it takes over
	}{
		{name: "the socket's mode", first: as(0), how: as(1001), want: "permission denied: run both processes as the same user"},
		{name: "another user asks", first: as(0), how: as(1001), wide: true, want: "the process that asks is not trusted: it runs as uid 1001, and only root and uid 0 are"},
		{name: "another user listens", first: as(1001), how: as(0), want: "the process that listens is not trusted: it runs as uid 1001, and only root and uid 0 are"},
		{name: "another user namespace", first: as(0), how: mapped, wide: true, want: "the process that listens is not trusted: its user has no number here (uid 65534)"},
		{name: "the same user", first: as(1001), how: as(1001)},
		{name: "the same user by another number", first: as(1001), how: mapped},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			a := newBox(t, serviceConfig{})
			prepare := func(b *box) {
				if err := os.Chmod(b.dir, 0o777); err != nil {
					t.Fatal(err)
				}
				os.Chmod(b.systemd.path, 0o777)
				os.Chmod(b.play("crossing"), 0o755)
			}
			prepare(a)
			st := a.startFirst(tt.first)
			if tt.wide {
				open(t, a)
			}
			if st, err := os.Stat(a.shared()); err != nil || !tt.wide && st.Mode().Perm() != 0o600 {
				t.Errorf("the takeover socket: %v, %v", st.Mode(), err)
			}
			n := a.beside()
			prepare(n)
			n.start(a.shared(), tt.how)
			if tt.want == "" {
				a.awaitExit(st.PID, "exited 0") // the control socket does not know the test's user
				n.visit(st).answeredBy(2)
				return
			}
			if text := n.failed(); !strings.Contains(text, tt.want) {
				t.Errorf("the newcomer said %q, want %q", text, tt.want)
			}
			after := a.mustStatus()
			if after.PID != st.PID || after.Phase != control.Idle {
				t.Errorf("afterwards: %+v", after)
			}
			a.visit(st).answeredBy(1)
		})
	}
}

// Boxes that start at the same moment do not each become a first generation.
func TestTakeoverRace(t *testing.T) {
	t.Parallel()
	shared := newBox(t, serviceConfig{}) // starts nothing itself
	var boxes []*box
	for range 4 {
		b := newBox(t, serviceConfig{})
		b.cfg.Sockets = []socketSpec{{"http", "tcp", "127.0.0.1:0"}}
		boxes = append(boxes, b)
	}
	var wg sync.WaitGroup
	for _, b := range boxes {
		wg.Go(func() { b.start(shared.shared()) })
	}
	wg.Wait()
	firsts := 0
	for i, b := range boxes {
		pid := b.first.Process.Pid
		eventually(t, fmt.Sprintf("box %d serves, has served, or was refused", i), func() bool {
			b.mu.Lock()
			exit := b.exits[pid]
			b.mu.Unlock()
			if exit != "" {
				return true
			}
			st, err := b.status()
			return err == nil && st.Phase == control.Idle
		})
		for _, n := range b.systemd.all() {
			if strings.HasPrefix(n.text, "READY=1") && strings.Contains(n.text, "generation 1:") {
				firsts++
			}
		}
	}
	if firsts != 1 {
		t.Errorf("%d first generations", firsts)
	}
}
