package handoff

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/zdt-dev/zdt/handoff/control"
	"github.com/zdt-dev/zdt/journal"
)

// Handoffs between real processes, from the signal to the end of a generation.

func TestHandoff(t *testing.T) {
	t.Parallel()
	s := newStage(t, quick(serviceConfig{}))
	first := s.startReady()
	if first.Generation != 1 || first.Sockets[0].Origin != boundHere {
		t.Errorf("first generation: %+v", first)
	}
	s.nextWorks()
	second := s.mustStatus()
	if second.Sockets[0].Origin != fromPredecessor || !second.Sockets[0].InUse || second.Sockets[0].Address != s.addr {
		t.Errorf("sockets of the second generation: %+v", second.Sockets)
	}
	s.nextWorks()

	// The order in which systemd heard of it, and from whom.
	var story []string
	names := map[int]string{0: "?", first.PID: "g1", second.PID: "g2", s.mustStatus().PID: "g3"}
	for _, n := range s.systemd.all() {
		var words []string
		for line := range strings.SplitSeq(n.text, "\n") {
			key, value, _ := strings.Cut(line, "=")
			switch key {
			case "MAINPID":
				words = append(words, "MAINPID="+names[atoi(value)])
			case "STATUS":
			default:
				words = append(words, line)
			}
		}
		if !n.accepted && n.text != "BARRIER=1" {
			words = append(words, "(ignored)")
		}
		if len(words) == 0 {
			continue // how a drain gets on, which this one has no time for on most machines
		}
		story = append(story, names[n.pid]+": "+strings.Join(words, " "))
	}
	want := []string{
		"g1: READY=1",
		"g1: MAINPID=g2 READY=1 NOTIFYACCESS=all WATCHDOG=1", "g1: BARRIER=1", "g2: NOTIFYACCESS=main",
		"g2: MAINPID=g3 READY=1 NOTIFYACCESS=all WATCHDOG=1", "g2: BARRIER=1", "g3: NOTIFYACCESS=main",
	}
	if got, want := strings.Join(story, "\n"), strings.Join(want, "\n"); got != want {
		t.Errorf("systemd heard\n%s\nwant\n%s", got, want)
	}
	for _, n := range s.systemd.all() {
		if strings.Contains(n.text, "STOPPING") {
			t.Errorf("a generation told systemd %q", n.text)
		}
	}
	s.signal(s.mustStatus().PID, syscall.SIGTERM)
	s.awaitEmpty()
	if _, err := os.Lstat(s.controlPath()); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("control socket after the end of the service: %v", err)
	}
}

func atoi(s string) int {
	n := 0
	fmt.Sscanf(s, "%d", &n)
	return n
}

// A handoff must not wait for systemd for ever; and once MAINPID is in its
// queue there is no way back.
func TestSystemdDoesNotAnswer(t *testing.T) {
	if testing.Short() {
		t.Skip("waits for the time-out of the barrier")
	}
	t.Parallel()
	s := stand(t, serviceConfig{})
	s.systemd.mu.Lock()
	s.systemd.deaf = true
	s.systemd.mu.Unlock()
	s.nextWorks()
}

func TestSystemdIsGone(t *testing.T) {
	t.Parallel()
	s := stand(t, serviceConfig{})
	if err := os.Rename(s.systemd.path, s.systemd.path+".away"); err != nil {
		t.Fatal(err)
	}
	s.signal(s.mustStatus().PID, syscall.SIGUSR2)
	s.awaitFailure(string(journal.ReasonSystemd))
	if err := os.Rename(s.systemd.path+".away", s.systemd.path); err != nil {
		t.Fatal(err)
	}
	s.nextWorks()
}

func TestBadCandidates(t *testing.T) {
	elf := func(t *testing.T, s *stage, change func([]byte)) string {
		data, err := os.ReadFile(s.play("service-next"))
		if err != nil {
			t.Fatal(err)
		}
		change(data)
		path := filepath.Join(s.dir, "changed")
		if err := os.WriteFile(path, data, 0o755); err != nil {
			t.Fatal(err)
		}
		return path
	}
	for _, tt := range []struct {
		name   string
		role   string
		file   func(t *testing.T, s *stage) string
		cfg    serviceConfig
		armed  control.Arm
		reason journal.Reason
		exit   string
	}{
		{name: "crashes at start", role: "crash", reason: journal.ReasonCrashed, exit: "exited 1"},
		{name: "exits 0", role: "exit0", reason: journal.ReasonExited, exit: "exited 0"},
		{name: "hangs", role: "hang", cfg: serviceConfig{ReadyTimeout: 3 * time.Second}, reason: journal.ReasonReadyTimeout, exit: "killed TERM"},
		{name: "hangs and ignores SIGTERM", role: "deaf-to-term", armed: control.Arm{TxID: "t1", ReadyTimeout: 300 * time.Millisecond}, reason: journal.ReasonReadyTimeout, exit: "killed KILL"},
		{name: "speaks another wire", role: "other-wire", reason: journal.ReasonProtocol},
		{name: "is missing", file: func(t *testing.T, s *stage) string { return filepath.Join(s.dir, "no-such-file") }, reason: journal.ReasonStart},
		{name: "is a directory", file: func(t *testing.T, s *stage) string { return s.dir }, reason: journal.ReasonStart},
		{name: "is not executable", file: func(t *testing.T, s *stage) string {
			path := filepath.Join(s.dir, "plain")
			if err := os.WriteFile(path, []byte("#!/bin/sh\n"), 0o644); err != nil {
				t.Fatal(err)
			}
			return path
		}, reason: journal.ReasonStart},
		{name: "is for another architecture", file: func(t *testing.T, s *stage) string {
			return elf(t, s, func(b []byte) { b[18], b[19] = 0xf3, 0 }) // e_machine: RISC-V
		}, reason: journal.ReasonStart},
		{name: "is cut off", file: func(t *testing.T, s *stage) string {
			path := filepath.Join(s.dir, "empty")
			if err := os.WriteFile(path, nil, 0o755); err != nil {
				t.Fatal(err)
			}
			return path
		}, reason: journal.ReasonStart},
		{name: "has no interpreter", file: func(t *testing.T, s *stage) string {
			path := filepath.Join(s.dir, "script")
			if err := os.WriteFile(path, []byte("#!/no/such/interpreter\n"), 0o755); err != nil {
				t.Fatal(err)
			}
			return path
		}, reason: journal.ReasonStart},
		{name: "is not healthy", role: "service-next", cfg: serviceConfig{HealthFile: "sick"}, reason: journal.ReasonHealth, exit: "exited 0"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			s := newStage(t, quick(tt.cfg))
			if s.cfg.HealthFile != "" {
				s.cfg.HealthFile = filepath.Join(s.dir, s.cfg.HealthFile)
				if err := os.WriteFile(s.cfg.HealthFile, nil, 0o644); err != nil {
					t.Fatal(err)
				}
			}
			before := s.startReady()
			if tt.file != nil {
				s.flip(tt.file(t, s))
			} else {
				s.flip(tt.role)
			}
			if tt.armed.TxID != "" {
				s.armAndSignal(before.PID, tt.armed)
			} else {
				s.signal(before.PID, syscall.SIGUSR2)
			}
			st := s.awaitFailure(string(tt.reason))
			if st.PID != before.PID || st.Attempts != 1 {
				t.Errorf("after the failure: %+v", st)
			}
			exit := ""
			if st.Last.Exit != nil {
				exit = st.Last.Exit.Code + " " + st.Last.Exit.Status
			}
			if tt.exit != "" && exit != tt.exit {
				t.Errorf("candidate's exit %q, want %q", exit, tt.exit)
			}
			if got := s.processes(); len(got) != 1 {
				t.Errorf("processes left: %v", got)
			}
			if got, want := s.get("/"), fmt.Sprintf("1 %d", before.PID); got != want {
				t.Errorf("GET / = %q, want %q", got, want)
			}
			if got := s.systemd.mainPID(); got != before.PID {
				t.Errorf("systemd's main process: %d, want %d", got, before.PID)
			}
			os.Remove(s.cfg.HealthFile)
			s.nextWorks()
		})
	}
}

// READY can be the last word of a candidate. Whether its death is noticed
// before or after the commit, an incumbent that still drains serves on.
func TestCandidateCrashesRightAfterReady(t *testing.T) {
	t.Parallel()
	s := stand(t, serviceConfig{DrainTimeout: patience, IdleGrace: patience})
	pid := s.mustStatus().PID
	c := s.idleConnection() // keeps the incumbent there
	defer c.Close()
	for range 5 {
		s.crashRightAfterReady(pid)
		s.await("serving after the crash", func(st control.Status) bool { return st.PID == pid && st.Phase == control.Idle })
		s.checkServesAfterCrash(pid)
	}
	c.Close()
	s.nextWorks()
}

// An incumbent with nothing to drain stays for settleTime. On a machine that
// is busy a crash may take longer than that; then systemd sees it.
func TestIdleIncumbentSettles(t *testing.T) {
	t.Parallel()
	for range 5 {
		s := stand(t, serviceConfig{})
		pid := s.mustStatus().PID
		s.crashRightAfterReady(pid)
		survived := false
		eventually(t, "the handoff is decided", func() bool {
			st, err := s.status()
			survived = err == nil && st.PID == pid && st.Phase == control.Idle && st.Last != nil && !st.Last.Committed
			return survived || len(s.processes()) == 0
		})
		if survived {
			s.checkServesAfterCrash(pid)
			s.nextWorks()
			return
		}
	}
	t.Error("the incumbent was gone each time before its successor had crashed")
}

// crashRightAfterReady hands over to a candidate for which READY is the last
// thing it does right, and waits until the attempt has begun.
func (s *stage) crashRightAfterReady(pid int) {
	s.t.Helper()
	before := strings.Count(readFile(s.stderr.Name()), "one too many")
	s.flip("crash-after-ready")
	s.signal(pid, syscall.SIGUSR2)
	eventually(s.t, "the candidate crashes", func() bool { return strings.Count(readFile(s.stderr.Name()), "one too many") > before })
}

func (s *stage) checkServesAfterCrash(pid int) {
	s.t.Helper()
	st := s.await("told of the crash", func(st control.Status) bool {
		return st.PID == pid && st.Phase == control.Idle && st.Last != nil && !st.Last.Committed
	})
	if st.Last.Reason != string(journal.ReasonCrashed) || st.Last.Exit == nil || st.Last.Exit.Status != "1" {
		s.t.Errorf("after the crash: %+v, %+v", st, st.Last)
	}
	if got, want := s.get("/"), fmt.Sprintf("1 %d", pid); got != want {
		s.t.Errorf("GET / = %q, want %q", got, want)
	}
	eventually(s.t, "systemd knows the incumbent as main process", func() bool { return s.systemd.mainPID() == pid })
}

func TestCandidateCrashesWhileHeld(t *testing.T) {
	t.Parallel()
	s := stand(t, serviceConfig{})
	st := s.hold("t1")
	s.signal(st.Handoff.Candidate, syscall.SIGKILL)
	after := s.awaitFailure(string(journal.ReasonCrashed))
	if after.Last.Exit.Code != "killed" || after.Last.Exit.Status != "KILL" || after.Last.TxID != "t1" || after.Last.ReadyAfter <= 0 {
		t.Errorf("outcome: %+v", after.Last)
	}
	s.nextWorks()
}

// systemd cannot see the death of a main process that is not its child.
func TestSuccessorDiesWhilePredecessorDrains(t *testing.T) {
	t.Parallel()
	s := stand(t, serviceConfig{DrainTimeout: patience})
	first := s.mustStatus()
	slow := make(chan string, 1)
	go func() { slow <- s.getQuietly("/slow?for=1500ms") }()
	s.await("busy", func(st control.Status) bool { return st.Connections.Active == 1 })
	s.flip("service-next")
	s.signal(first.PID, syscall.SIGUSR2)
	second := s.await("generation 2", func(st control.Status) bool { return st.Generation == 2 && st.Phase == control.Idle })
	if second.Predecessor == nil || second.Predecessor.PID != first.PID {
		t.Errorf("predecessor: %+v", second.Predecessor)
	}
	s.await("told of the predecessor's drain", func(st control.Status) bool {
		return st.Predecessor != nil && st.Predecessor.Connections.Active == 1
	})
	s.signal(second.PID, syscall.SIGKILL)
	st := s.await("taken over", func(st control.Status) bool { return st.TookOver && st.Phase == control.Idle })
	if st.PID != first.PID || st.Generation != 1 {
		t.Errorf("after the takeover: %+v", st)
	}
	if got, want := s.get("/"), fmt.Sprintf("1 %d", first.PID); got != want {
		t.Errorf("GET / = %q, want %q", got, want)
	}
	if got := <-slow; got != "1 done" {
		t.Errorf("slow request: %q", got)
	}
	eventually(t, "systemd knows the incumbent as main process", func() bool { return s.systemd.mainPID() == first.PID })
	// Clients hold the peer of the control socket against systemd's main process.
	if peer := s.mustClient().Peer(); peer.PID != first.PID {
		t.Errorf("control socket's peer %d, want %d", peer.PID, first.PID)
	}
	if _, err := s.ask(func(ctx context.Context, c *control.Client) (control.Status, error) { return c.Reclaim(ctx) }); err != nil {
		t.Errorf("reclaim: %v", err)
	}
	s.nextWorks()
}

// getQuietly is get for goroutines.
func (s *stage) getQuietly(path string) string {
	resp, err := fresh().Get("http://" + s.addr + path)
	if err != nil {
		return err.Error()
	}
	defer resp.Body.Close()
	b := make([]byte, 1024)
	n, _ := resp.Body.Read(b)
	return string(b[:n])
}

// A candidate that gives up its Handoff and lives on serves nobody, so the
// incumbent has to, whatever the deadline of the hold.
func TestCandidateClosesItsHandoff(t *testing.T) {
	t.Parallel()
	s := stand(t, serviceConfig{})
	pid := s.mustStatus().PID
	s.armAndSignal(pid, control.Arm{TxID: "t1", Exe: "closes-handoff", Hold: true, HoldFor: patience})
	s.await("held", func(st control.Status) bool { return st.Phase == control.Held })
	if got, want := s.get("/"), fmt.Sprintf("1 %d", pid); got != want {
		t.Errorf("GET / = %q, want %q", got, want)
	}
	s.awaitFailure(string(journal.ReasonProtocol))
	s.nextWorks()
}

func TestIncumbentDiesWhileHeld(t *testing.T) {
	t.Parallel()
	s := stand(t, serviceConfig{})
	st := s.hold("t1")
	s.signal(st.PID, syscall.SIGKILL)
	s.awaitExit(st.PID, "killed KILL")
	next := s.awaitGeneration(2)
	if next.PID != st.Handoff.Candidate {
		t.Errorf("pid %d, want the candidate's %d", next.PID, st.Handoff.Candidate)
	}
	if got, want := s.get("/"), fmt.Sprintf("2 %d", next.PID); got != want {
		t.Errorf("GET / = %q, want %q", got, want)
	}
	s.systemd.setMain(next.PID) // a real systemd would have ended the unit
	s.nextWorks()
}

func TestIncumbentDiesWhileCandidateStarts(t *testing.T) {
	t.Parallel()
	s := newStage(t, quick(serviceConfig{}))
	s.startReady()
	st := s.mustStatus()
	s.cfg.Unready = true
	s.armAndSignal(st.PID, control.Arm{TxID: "t1", Exe: "hang"})
	s.await("forked", func(st control.Status) bool { return st.Phase == control.Forked })
	s.signal(st.PID, syscall.SIGKILL)
	s.awaitExit(st.PID, "killed KILL")
	// The hanging one ends with its unit; here the stage does it.
}

// One handoff, whatever the number of signals; and a SIGTERM is not lost
// among them.
func TestSignalStorm(t *testing.T) {
	t.Parallel()
	s := stand(t, serviceConfig{})
	pid := s.mustStatus().PID
	s.armAndSignal(pid, control.Arm{TxID: "t1", Exe: "service-next", Hold: true, HoldFor: patience})
	for i := range 500 {
		s.signal(pid, syscall.SIGUSR2)
		if i%10 == 0 {
			time.Sleep(time.Millisecond) // the kernel keeps one pending signal of a kind
		}
	}
	st := s.await("held", func(st control.Status) bool { return st.Phase == control.Held && st.Refused > 0 })
	if st.Attempts != 1 || st.LastRefusal == "" || len(s.processes()) != 2 {
		t.Errorf("attempts %d, refused %d (%s), processes %v", st.Attempts, st.Refused, st.LastRefusal, s.processes())
	}
	if _, err := s.ask(func(ctx context.Context, c *control.Client) (control.Status, error) { return c.Commit(ctx, "t1") }); err != nil {
		t.Fatal(err)
	}
	second := s.awaitGeneration(2)
	s.awaitExit(pid, "exited 0")

	storm := make(chan struct{})
	go func() {
		defer close(storm)
		for range 2000 {
			if unix.Kill(second.PID, syscall.SIGUSR2) != nil {
				return
			}
		}
	}()
	s.signal(second.PID, syscall.SIGTERM)
	<-storm
	s.awaitExit(second.PID, "exited 0")
	s.awaitEmpty()
}

// Under zdt run a SIGUSR2 to the program itself, as systemctl kill sends it to all of a unit, starts nothing and says
// why. Who has inherited the variable from a program of zdt run hands over as ever.
func TestUnderHelperNothingStarts(t *testing.T) {
	for value, refused := range map[string]bool{"own": true, "1": false} {
		t.Run("pid="+value, func(t *testing.T) {
			t.Setenv(envApp, value)
			s := stand(t, serviceConfig{})
			before := s.mustStatus()
			s.signal(before.PID, syscall.SIGUSR2)
			if !refused {
				s.await("another generation", func(st control.Status) bool { return st.Generation == 2 && st.Phase == control.Idle })
				return
			}
			st := s.await("refusal", func(st control.Status) bool { return st.Refused == 1 })
			if want := fmt.Sprintf("zdt run (pid %d)", os.Getpid()); !strings.Contains(st.LastRefusal, want) || st.Attempts != 0 || st.PID != before.PID {
				t.Errorf("%+v", st)
			}
			_, err := s.ask(func(ctx context.Context, c *control.Client) (control.Status, error) {
				return c.Arm(ctx, control.Arm{TxID: "t"})
			})
			var e *control.Error
			if !errors.As(err, &e) || e.Code != control.CodeNotReady {
				t.Errorf("arm: %v", err)
			}
		})
	}
}

func TestAbort(t *testing.T) {
	for _, how := range []string{"signal", "control"} {
		for _, when := range []string{"forked", "held"} {
			t.Run(how+" while "+when, func(t *testing.T) {
				t.Parallel()
				s := stand(t, serviceConfig{DrainTimeout: patience})
				st := s.mustStatus()
				abort := func() {
					if how == "signal" {
						s.signal(st.PID, syscall.SIGUSR1)
						return
					}
					if _, err := s.ask(func(ctx context.Context, c *control.Client) (control.Status, error) {
						return c.Abort(ctx, "t1", "changed my mind")
					}); err != nil {
						t.Fatal(err)
					}
				}
				if when == "forked" {
					s.armAndSignal(st.PID, control.Arm{TxID: "t1", Exe: "hang"})
					s.await("forked", func(st control.Status) bool { return st.Phase == control.Forked })
					abort()
				} else {
					held := s.hold("t1")
					// The candidate has accepted a request; it finishes it.
					c := s.connectTo(held.Handoff.Candidate)
					defer c.Close()
					finish, err := c.begin()
					if err != nil {
						t.Fatal(err)
					}
					abort()
					eventually(t, "the incumbent accepts", func() bool { return s.get("/") == fmt.Sprintf("1 %d", st.PID) })
					if now := s.mustStatus(); now.Phase != control.Aborting {
						t.Errorf("phase %s, want %s", now.Phase, control.Aborting)
					}
					if closing, err := finish(); closing || err != nil {
						t.Errorf("request that the candidate had accepted: closing %v, %v", closing, err)
					}
				}
				want := map[string]journal.Reason{"signal": journal.ReasonSignal, "control": journal.ReasonRequested}[how]
				after := s.awaitFailure(string(want))
				if when == "held" && after.Last.Exit.Status != "0" {
					t.Errorf("candidate's exit: %+v", after.Last.Exit)
				}
				// Nothing waits for decisions any more.
				_, err := s.ask(func(ctx context.Context, c *control.Client) (control.Status, error) { return c.Abort(ctx, "", "") })
				checkCode(t, err, control.CodeNotHeld)
				s.nextWorks()
			})
		}
	}
}

// connectTo opens a connection that pid has accepted. Right after READY the
// incumbent, too, may still take one.
func (s *stage) connectTo(pid int) *httpConn {
	s.t.Helper()
	var c *httpConn
	eventually(s.t, fmt.Sprintf("process %d accepts", pid), func() bool {
		c = s.idleConnection()
		if body, _, err := c.get("/"); err == nil && strings.HasSuffix(body, fmt.Sprintf(" %d", pid)) {
			return true
		}
		c.Close()
		return false
	})
	return c
}

func checkCode(t *testing.T, err error, want string) {
	t.Helper()
	var refused *control.Error
	if !errors.As(err, &refused) || refused.Code != want {
		t.Errorf("error %v, want code %q", err, want)
	}
}

func TestHoldDeadline(t *testing.T) {
	t.Parallel()
	s := stand(t, serviceConfig{})
	s.armAndSignal(s.mustStatus().PID, control.Arm{TxID: "t1", Exe: "service-next", Hold: true, HoldFor: 200 * time.Millisecond})
	st := s.awaitFailure(string(journal.ReasonHoldTimeout))
	if st.Last.Exit == nil || st.Last.Exit.Status != "0" {
		t.Errorf("candidate's exit: %+v", st.Last.Exit)
	}
	s.nextWorks()
}

// An aborted candidate must leave the control socket of its incumbent alone.
func TestAbortKeepsControlSocket(t *testing.T) {
	t.Parallel()
	s := stand(t, serviceConfig{})
	s.hold("t1")
	s.signal(s.mustStatus().PID, syscall.SIGUSR1)
	s.awaitFailure(string(journal.ReasonSignal))
	if _, err := os.Lstat(s.controlPath()); err != nil {
		t.Fatal(err)
	}
	s.hold("t2")
	if _, err := s.ask(func(ctx context.Context, c *control.Client) (control.Status, error) { return c.Commit(ctx, "t2") }); err != nil {
		t.Fatal(err)
	}
	s.awaitGeneration(2)
}

func TestCommit(t *testing.T) {
	t.Parallel()
	s := stand(t, serviceConfig{})
	pid := s.mustStatus().PID
	commit := func(txid string) error {
		_, err := s.ask(func(ctx context.Context, c *control.Client) (control.Status, error) { return c.Commit(ctx, txid) })
		return err
	}
	arm := func(txid string) error {
		_, err := s.ask(func(ctx context.Context, c *control.Client) (control.Status, error) {
			return c.Arm(ctx, control.Arm{TxID: txid, Hold: true})
		})
		return err
	}
	checkCode(t, commit("t1"), control.CodeNotHeld)
	if err := arm("t0"); err != nil {
		t.Fatal(err)
	}
	checkCode(t, arm("t1"), control.CodeBusy)
	if _, err := s.ask(func(ctx context.Context, c *control.Client) (control.Status, error) { return c.Disarm(ctx, "t1") }); err != nil {
		t.Fatal(err)
	}
	if s.mustStatus().Armed == nil {
		t.Error("disarmed by another transaction")
	}
	if st, err := s.ask(func(ctx context.Context, c *control.Client) (control.Status, error) { return c.Disarm(ctx, "t0") }); err != nil || st.Armed != nil {
		t.Errorf("disarm: %+v, %v", st.Armed, err)
	}
	held := s.hold("t1")
	checkCode(t, commit("t2"), control.CodeTxID)
	checkCode(t, arm("t2"), control.CodeBusy)
	if now := s.mustStatus(); now.Phase != control.Held {
		t.Errorf("phase %s, want %s", now.Phase, control.Held)
	}
	if held.Armed != nil || held.Handoff.TxID != "t1" || !held.Handoff.Hold || held.Handoff.Deadline.IsZero() {
		t.Errorf("held: %+v", held.Handoff)
	}
	s.connectTo(held.Handoff.Candidate).Close()
	if err := commit("t1"); err != nil {
		t.Fatal(err)
	}
	s.awaitExit(pid, "exited 0")
	s.awaitGeneration(2)
	checkCode(t, commit("t1"), control.CodeNotHeld)
}

// A candidate that is told to stop by somebody ends alone; the incumbent does
// not wait with new connections until it has drained.
func TestCandidateAloneIsToldToStop(t *testing.T) {
	t.Parallel()
	s := stand(t, serviceConfig{DrainTimeout: patience})
	st := s.hold("t1")
	c := s.connectTo(st.Handoff.Candidate)
	defer c.Close()
	finish, err := c.begin()
	if err != nil {
		t.Fatal(err)
	}
	s.signal(st.Handoff.Candidate, syscall.SIGTERM)
	eventually(t, "the incumbent accepts", func() bool { return s.get("/") == fmt.Sprintf("1 %d", st.PID) })
	if now := s.mustStatus(); now.Phase != control.Aborting {
		t.Errorf("phase %s, want %s", now.Phase, control.Aborting)
	}
	if closing, err := finish(); closing || err != nil {
		t.Errorf("request that the candidate had accepted: closing %v, %v", closing, err)
	}
	s.awaitFailure(string(journal.ReasonExited))
	s.nextWorks()
}
