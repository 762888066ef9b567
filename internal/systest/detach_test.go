package systest

import (
	"encoding/json"
	"io"
	"os"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/zdt-dev/zdt/handoff/control"
	"github.com/zdt-dev/zdt/internal/guest"
	"github.com/zdt-dev/zdt/upgrade"
)

// transcript is what a program has written so far.
type transcript struct {
	mu  sync.Mutex
	buf strings.Builder
}

func (t *transcript) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.buf.Write(p)
}

func (t *transcript) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.buf.String()
}

// terminal runs a command of the guest on a terminal: keys is its keyboard.
func (s *service) terminal(args ...string) (p *guest.Process, screen *transcript, keys io.WriteCloser) {
	s.t.Helper()
	in, keys, err := os.Pipe()
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { in.Close(); keys.Close() })
	screen = &transcript{}
	p, err = s.g.Spawn(s.t.Context(), guest.Command{
		Args: []string{"script", "--quiet", "--return", "--command", "exec " + strings.Join(args, " "), "/dev/null"}, Env: []string{"TERM=xterm"}, Stdin: in, Output: screen,
	})
	if err != nil {
		s.t.Fatal(err)
	}
	return p, screen, keys
}

// detach starts a detached upgrade, which must get under way, and returns its ID and unit.
func (s *service) detach(file string, flags ...string) (txid, unit string) {
	s.t.Helper()
	out := s.run(append([]string{"zdt", "upgrade", s.name, "--binary", file, "--detach", "-o", "json", "--no-rehearse"}, flags...)...)
	var doc struct {
		Schema, TxID, Unit string
		Exit_Code          int
	}
	if err := json.Unmarshal([]byte(out), &doc); err != nil || doc.Schema != "zdt.detached/1" || doc.TxID == "" {
		s.t.Fatalf("zdt upgrade --detach: %v\n%s", err, out)
	}
	return doc.TxID, doc.Unit
}

// waitFor is zdt wait, which must exit with code, and its report.
func (s *service) waitFor(code int, args ...string) upgrade.Report {
	s.t.Helper()
	r := s.must(code, append([]string{"zdt", "wait", s.name, "-o", "json"}, args...)...)
	var report upgrade.Report
	if err := json.Unmarshal([]byte(r.Stdout), &report); err != nil {
		s.t.Fatalf("zdt wait: %v\n%s", err, r)
	}
	if report.ExitCode != code {
		s.t.Errorf("the report says exit_code %d:\n%s", report.ExitCode, r)
	}
	return report
}

// unitGone waits until systemd has forgotten the unit of a detached upgrade.
func (s *service) unitGone(unit string) {
	s.t.Helper()
	s.await("systemd has forgotten "+unit, func() bool {
		return strings.TrimSpace(s.run("systemctl", "show", "--value", "--property=LoadState", unit)) == "not-found"
	})
}

// An upgrade that is detached goes on without whoever started it; its end is known as if he had stayed.
func TestDetach(t *testing.T) {
	guest.Each(t, func(t *testing.T, g *guest.Guest) {
		s := newService(t, g, options{})
		l := s.lightLoad()

		// Relative to where it was typed, and gone when it returns.
		s.put(good(2))
		out := s.run("sh", "-c", `cd /srv/`+good(2).String()+` && SUDO_USER=anna zdt upgrade hello --binary ./hello --detach --no-rehearse --bake 1h -m "two words" && rm hello`)
		txid := strings.TrimSpace(out)
		unit := "zdt-hello-" + txid + ".service"
		if got := s.run("systemctl", "is-active", unit); got != "active" {
			t.Errorf("%s is %s", unit, got)
		}
		// Who starts another one meanwhile is refused as ever.
		s.must(75, "zdt", "upgrade", "hello", "--binary", s.put(good(3)), "--detach")
		s.must(124, "zdt", "wait", "hello", "--timeout", "200ms")
		waiting := []*guest.Process{s.spawn("zdt", "wait", "hello", txid, "-o", "json"), s.spawn("zdt", "attach", "hello", "-o", "ndjson")}
		s.must(0, "zdt", "promote", "hello")
		for _, p := range waiting {
			r, err := p.Wait()
			if err != nil || r.Code != 0 || !strings.Contains(r.Stdout, txid) {
				t.Errorf("wait and attach: %v\n%s", err, r)
			}
		}
		if r := s.waitFor(0, txid); r.Outcome != upgrade.Upgraded || r.Who.SudoUser != "anna" || r.Why != "two words" || r.TxID != txid {
			t.Errorf("report: %+v", r)
		}
		if text := s.run("zdt", "history", "hello"); !strings.Contains(text, "anna") || !strings.Contains(text, "two words") {
			t.Errorf("history:\n%s", text)
		}
		s.mustRun(2)
		s.unitGone(unit)

		// What is refused before anything was changed gives the same code as without --detach.
		s.must(10, "zdt", "upgrade", "hello", "--binary", "/etc/hostname", "--detach")
		s.must(10, "zdt", "upgrade", "hello", "--binary", s.put(good(3)), "--sha256", strings.Repeat("0", 64), "--detach")
		s.must(10, "zdt", "upgrade", "nothing", "--detach")

		// A candidate that fails: the end is told by zdt wait, without an ID as well.
		_, unit = s.detach(s.put(bad(3, crash)))
		if r := s.waitFor(11); r.Outcome != upgrade.RolledBack || len(r.CandidateLog) == 0 {
			t.Errorf("report: %+v", r)
		}
		s.unitGone(unit)
		s.mustRun(2)

		// systemctl stop is a SIGTERM: undone before the commit.
		txid, unit = s.detach(s.put(good(4)), "--bake", "1h")
		s.must(0, "systemctl", "stop", unit)
		if r := s.waitFor(143, txid); r.Outcome != upgrade.Interrupted {
			t.Errorf("report: %+v", r)
		}
		s.mustRun(2)

		// Its zdt is killed: what is open is said, and what to do.
		txid, unit = s.detach(s.put(good(5)), "--bake", "1h")
		s.run("systemctl", "kill", "--signal=KILL", unit)
		r := s.must(13, "zdt", "wait", "hello", txid)
		if !strings.Contains(r.Stderr, "zdt resume hello") {
			t.Errorf("zdt wait:\n%s", r)
		}
		// And resumed, detached as well.
		s.must(0, "zdt", "resume", "hello", "--detach")
		if r := s.waitFor(0); r.Outcome != upgrade.Upgraded {
			t.Errorf("report: %+v", r)
		}
		s.mustRun(5)
		s.must(0, "zdt", "rollback", "hello", "--detach")
		s.waitFor(0)
		s.mustRun(2)
		mustLoseNothing(t, l.Stop())
	})
}

// Who lost his terminal has lost nothing; one that runs in another terminal can be watched, too.
func TestAttachElsewhere(t *testing.T) {
	guest.Each(t, func(t *testing.T, g *guest.Guest) {
		s := newService(t, g, options{})
		k := s.keepIn(control.Held, 2)
		out := &transcript{}
		p, err := g.Spawn(t.Context(), guest.Command{Args: []string{"zdt", "attach", "hello", "-o", "ndjson"}, Output: out})
		if err != nil {
			t.Fatal(err)
		}
		s.await("the bake is seen", func() bool { return strings.Contains(out.String(), `"bake"`) })
		// One that goes away takes nothing along.
		if err := p.Signal(syscall.SIGTERM); err != nil {
			t.Fatal(err)
		}
		if r, err := p.Wait(); err != nil || r.Code != 143 || !strings.Contains(r.Stderr, "goes on") {
			t.Errorf("attach: %v\n%s", err, r)
		}
		q := s.spawn("zdt", "attach", "hello")
		k.letGo()
		k.wait().mustBe(upgrade.Upgraded, 0)
		if r, err := q.Wait(); err != nil || r.Code != 0 {
			t.Errorf("attach: %v\n%s", err, r)
		}
		s.mustRun(2)

		// On a terminal one Ctrl-C goes away, and two abort.
		s.detach(s.put(good(3)), "--bake", "1h")
		a, screen, keys := s.terminal("zdt", "attach", "hello")
		s.await("the bake is shown", func() bool { return strings.Contains(screen.String(), "bake") })
		io.WriteString(keys, "\x03")
		if r, err := a.Wait(); err != nil || r.Code != 130 || !strings.Contains(r.Stdout, "goes on") || !strings.Contains(r.Stdout, "zdt abort hello") {
			t.Errorf("one Ctrl-C: %v\n%s", err, r)
		}
		if st := s.status(); st.Txn == nil || !st.Txn.Running {
			t.Errorf("one Ctrl-C ended the upgrade:\n%s", st.text)
		}
		a, screen, keys = s.terminal("zdt", "attach", "hello")
		s.await("the bake is shown", func() bool { return strings.Contains(screen.String(), "bake") })
		io.WriteString(keys, "\x03")
		s.await("the second one is offered", func() bool { return strings.Contains(screen.String(), "again") })
		io.WriteString(keys, "\x03")
		if r, err := a.Wait(); err != nil || r.Code != 11 || !strings.Contains(r.Stdout, "undone") {
			t.Errorf("two Ctrl-C: %v\n%s", err, r)
		}
		if r := s.waitFor(11); r.Outcome != upgrade.Aborted {
			t.Errorf("report: %+v", r)
		}
		s.mustRun(2)
	})
}
