package systest

import (
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/zdt-dev/zdt/handoff/control"
	"github.com/zdt-dev/zdt/internal/guest"
	"github.com/zdt-dev/zdt/journal"
	"github.com/zdt-dev/zdt/upgrade"
)

// badCandidate is a file that cannot become the service, and what zdt upgrade has to say about it.
type badCandidate struct {
	name  string
	file  func(s *service) string // put it into the guest; n is a version nobody else has
	flags []string

	outcome upgrade.Outcome
	code    int
	phase   upgrade.Phase // "": any
	reason  journal.Reason
	cause   string // in the cause
	log     string // in the candidate's own last words; "": it never ran
}

func badCandidates() []badCandidate {
	fails := func(name string, p program, phase upgrade.Phase, reason journal.Reason, cause, log string, flags ...string) badCandidate {
		return badCandidate{name, func(s *service) string { return s.put(p) }, flags, upgrade.RolledBack, 11, phase, reason, cause, log}
	}
	refused := func(name string, file func(s *service) string, cause string, flags ...string) badCandidate {
		return badCandidate{name, file, flags, upgrade.Refused, 10, "", "", cause, ""}
	}
	return []badCandidate{
		fails("crashes at start", bad(101, crash), upgrade.Listen, journal.ReasonCrashed, "(exited, 1)",
			"hello v0101: read configuration: file does not exist"),
		fails("hangs", bad(102, hang), upgrade.Listen, journal.ReasonReadyTimeout, "READY in time",
			"hello v0102: waiting for a database that never answers", "--ready-timeout=300ms"),
		fails("exits 0", bad(103, exit0), upgrade.Listen, journal.ReasonExited, "(exited, 0)",
			"hello v0103: nothing to do"),
		// Whether zdt still sees it READY, and so in the bake, is up to the scheduler.
		fails("crashes right after READY", bad(104, crashAfterReady), "", journal.ReasonCrashed, "(exited, 2)",
			"panic: the first request was one too many"),
		{
			name:    "lacks permission for a file it needs",
			file:    func(s *service) string { return s.script("/bin/sh", "read -r key </etc/hello.key && exec sleep 60") },
			outcome: upgrade.RolledBack, code: 11, phase: upgrade.Listen, reason: journal.ReasonCrashed,
			cause: "(exited, 2)", log: "cannot open /etc/hello.key: Permission denied",
		},
		{
			name:    "may not be executed by the service's user",
			file:    func(s *service) string { return s.script("/opt/private/sh", "exit 0") },
			outcome: upgrade.RolledBack, code: 11, phase: upgrade.Listen, reason: journal.ReasonStart,
			cause: "permission denied",
		},
		refused("has an interpreter that the sandbox hides", func(s *service) string { return s.script("/root/bin/sh", "exit 0") }, "ZDT046"),
		refused("is for another machine", func(s *service) string { return s.put(program{version: 107, foreign: true}) }, "another architecture"),
		refused("is not executable", func(s *service) string {
			file := s.put(good(108))
			s.run("chmod", "0644", file)
			return file
		}, "not executable"),
		refused("is missing", func(s *service) string { return "/srv/nowhere/hello" }, "no such file"),
		refused("is empty", func(s *service) string { return s.write("/srv/empty", "") }, "neither an ELF program"),
		refused("is an archive", func(s *service) string { return s.write("/srv/hello.zip", "PK\x03\x04 and so on") }, "neither an ELF program"),
		refused("is a directory without the program", func(s *service) string { return "/usr/lib/tmpfiles.d" }, "there is no program"),
		refused("has another checksum", func(s *service) string { return s.put(good(109)) }, "sha256", "--sha256="+strings.Repeat("0", 64)),
	}
}

// write makes an executable file of the guest.
func (s *service) write(path, text string) string {
	s.t.Helper()
	if err := s.g.WriteFile(path, []byte(text), 0o755); err != nil {
		s.t.Fatal(err)
	}
	return path
}

func (s *service) script(interpreter, text string) string {
	s.t.Helper()
	return s.write("/srv/script", "#!"+interpreter+"\n"+text+"\n")
}

// Whatever is wrong with a candidate: the verdict says so, no client notices, the same file may be tried again, and the
// next good release goes through.
func TestBadCandidate(t *testing.T) {
	t.Parallel()
	guest.Each(t, func(t *testing.T, g *guest.Guest) {
		s := newService(t, g, options{})
		if err := g.WriteFile("/etc/hello.key", []byte("secret\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		for _, dir := range []string{"/opt/private", "/root/bin"} {
			s.run("install", "-d", "-m", "0700", dir)
			s.run("cp", "/bin/sh", dir+"/sh")
		}
		l := s.lightLoad()
		n := 1
		for _, c := range badCandidates() {
			t.Run(c.name, func(t *testing.T) {
				s.t = t
				pid, generation := s.mainPID(), s.settled().Runtime.Generation
				file := c.file(s)
				for range 2 { // the same file can be retried
					c.check(t, s.upgradeFile(file, c.flags...), pid)
					st := s.settled()
					if s.mainPID() != pid || st.Runtime.Generation != generation || st.Txn != nil || st.Current.ID != st.Running.ID {
						t.Errorf("main process %d of generation %d did not just serve on:\n%s", pid, generation, st.text)
					}
					if got := s.answers(); got != version(n) {
						t.Errorf("%s answers, want %s", got, version(n))
					}
				}
				n++
				s.mustUpgrade(good(n))
			})
		}
		s.t = t
		mustLoseNothing(t, l.Stop())
		s.mustRun(n)
	})
}

func (c badCandidate) check(t *testing.T, r result, incumbent int) {
	t.Helper()
	r.mustBe(c.outcome, c.code)
	if c.phase != "" && r.Phase != c.phase {
		t.Errorf("failed in phase %s, want %s", r.Phase, c.phase)
	}
	if r.Reason != string(c.reason) {
		t.Errorf("reason %q, want %q (cause: %s)", r.Reason, c.reason, r.Cause)
	}
	if !strings.Contains(r.Cause, c.cause) {
		t.Errorf("cause %q does not say %q", r.Cause, c.cause)
	}
	if log := strings.Join(r.CandidateLog, "\n"); !strings.Contains(log, c.log) || (log != "") != (c.log != "") {
		t.Errorf("candidate's log %q does not say %q", log, c.log)
	}
	if r.Hint == "" {
		t.Error("no hint what to do next")
	}
	if want := fmt.Sprintf("pid %d never stopped serving", incumbent); c.outcome == upgrade.RolledBack && r.Action != want {
		t.Errorf("action %q, want %q", r.Action, want)
	}
}

// However often an upgrade fails, the process that serves on keeps nothing of it: no descriptor, no child, no change.
func TestFailuresLeaveNothing(t *testing.T) {
	t.Parallel()
	guest.Each(t, func(t *testing.T, g *guest.Guest) {
		s := newService(t, g, options{})
		s.upgrade(bad(2, crash)).mustBe(upgrade.RolledBack, 11) // what is opened once and kept
		s.settled()
		pid, before := s.mainPID(), s.descriptors()
		for range 3 {
			s.upgrade(bad(2, crash)).mustBe(upgrade.RolledBack, 11)
			s.upgrade(bad(2, crashAfterReady)).mustBe(upgrade.RolledBack, 11)
			s.upgrade(bad(2, hang), "--ready-timeout=50ms").mustBe(upgrade.RolledBack, 11)
		}
		s.await("the descriptors of before", func() bool { return slices.Equal(s.descriptors(), before) })
		s.mustRun(1)
		if now := s.mainPID(); now != pid {
			t.Errorf("process %d serves, and not %d", now, pid)
		}
	})
}

// A new main process that dies while the old one still drains: systemd cannot see that death, so the old one takes the
// service back, zdt makes systemd believe in it again, and the next upgrade works.
func TestNewMainProcessDiesDuringDrain(t *testing.T) {
	t.Parallel()
	guest.Each(t, func(t *testing.T, g *guest.Guest) {
		s := newService(t, g, options{})
		old := s.mainPID()
		finish := s.hangingRequest() // keeps the old generation draining
		up := s.startUpgrade(s.put(good(2)))
		successor := s.drainingSuccessor(old)
		s.kill(successor)
		r := up.wait()
		r.mustBe(upgrade.RolledBack, 11)
		if r.Phase != upgrade.Drain && r.Phase != upgrade.Commit || r.Reason != string(journal.ReasonCrashed) {
			t.Errorf("failed in phase %s with reason %q, want drain and crashed", r.Phase, r.Reason)
		}
		if want := fmt.Sprintf("pid %d took the service back and serves on", old); r.Action != want {
			t.Errorf("action %q, want %q", r.Action, want)
		}
		finish(version(1)) // the request was never disturbed
		if pid := s.mainPID(); pid != old {
			t.Errorf("systemd's main process is %d, want %d again", pid, old)
		}
		if access := s.show("NotifyAccess"); access != "main" {
			t.Errorf("NotifyAccess=%s stayed behind", access)
		}
		s.mustRun(1)
		s.mustUpgrade(good(3))
		s.mustRun(3)
	})
}

// The same death with nobody watching: the old generation serves on by itself, zdt status says what is wrong, and the
// next upgrade puts it right first.
func TestNewMainProcessDiesUnattended(t *testing.T) {
	t.Parallel()
	guest.Each(t, func(t *testing.T, g *guest.Guest) {
		s := newService(t, g, options{})
		old := s.mainPID()
		finish := s.hangingRequest()
		up := s.startUpgrade(s.put(good(2)))
		successor := s.drainingSuccessor(old)
		if err := up.Signal(os.Kill); err != nil {
			t.Fatal(err)
		}
		<-up.Done()
		s.kill(successor)
		s.await("the old release answers again", func() bool {
			v, err := s.ask("/")
			return err == nil && v == version(1)
		})
		finish(version(1))
		r := s.mustUpgrade(good(3))
		if r.Incumbent != old {
			t.Errorf("upgraded from pid %d, want %d, which had taken the service back", r.Incumbent, old)
		}
		s.mustRun(3)
	})
}

// drainingSuccessor waits until systemd has another main process than old, which drains, and returns it.
func (s *service) drainingSuccessor(old int) int {
	s.t.Helper()
	var pid int
	s.await("the incumbent drains", func() bool {
		st := s.status()
		pid = st.Unit.MainPID
		return pid != old && st.Runtime != nil && st.Runtime.PID == pid && st.Runtime.Phase == control.Idle && st.Runtime.Predecessor != nil
	})
	return pid
}

func (s *service) kill(pid int) {
	s.t.Helper()
	s.run("kill", "-KILL", fmt.Sprint(pid))
}
