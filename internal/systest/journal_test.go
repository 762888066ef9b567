package systest

import (
	"fmt"
	"net"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/zdt-dev/zdt/handoff/control"
	"github.com/zdt-dev/zdt/internal/guest"
	"github.com/zdt-dev/zdt/journal"
	"github.com/zdt-dev/zdt/upgrade"
)

// journald is what has to be stopped for journald to stay down.
func journald(verb string) []string {
	return []string{"systemctl", verb, "systemd-journald.socket", "systemd-journald-dev-log.socket", "systemd-journald.service"}
}

// A journald that is restarted in the middle of an upgrade does not change the verdict.
func TestJournaldRestarted(t *testing.T) {
	eachPhase(t, func(t *testing.T, s *service, phase control.Phase, n int) {
		k := s.keepIn(phase, n)
		s.run("systemctl", "restart", "systemd-journald.service")
		k.letGo()
		k.wait().mustBe(upgrade.Upgraded, 0)

		// Nor does it make a good release of a bad one.
		r := s.upgrade(bad(n+1, crash))
		r.mustBe(upgrade.RolledBack, 11)
		if r.Reason != string(journal.ReasonCrashed) {
			t.Errorf("reason %q, want %q", r.Reason, journal.ReasonCrashed)
		}
	})
}

// Without journald an upgrade is as good as with it, and a bad release as bad; only the story is missing. So it is when
// journald went away in the middle. When it is back, a new release is heard again.
func TestJournaldStopped(t *testing.T) {
	eachPhase(t, func(t *testing.T, s *service, phase control.Phase, n int) {
		k := s.keepIn(phase, n)
		s.run(journald("stop")...)
		k.letGo()
		k.wait().mustBe(upgrade.Upgraded, 0)

		if phase == control.Forked { // once is enough: zdt waits two seconds for the story of each upgrade
			s.upgrade(bad(n+1, crash)).mustBe(upgrade.RolledBack, 11)
		}
		s.run("systemctl", "reload", s.unit)
		if r := s.show("NRestarts"); r != "0" {
			t.Errorf("%s restarts", r)
		}
		s.run(journald("start")...)
		r := s.mustUpgrade(good(100 + n))
		s.await("the new release is heard", func() bool {
			return strings.Contains(s.journalOf("-o", "cat", "_PID="+pid(r.Candidate)), "hello "+version(100+n)+": generation")
		})
	})
}

// A journald that hangs, with its queue full, holds nobody up: not the service's events, and not zdt.
func TestJournaldHangs(t *testing.T) {
	eachPhase(t, func(t *testing.T, s *service, phase control.Phase, n int) {
		k := s.keepIn(phase, n)
		pid := s.run("systemctl", "show", "--value", "--property=MainPID", "systemd-journald.service")
		s.run("kill", "-STOP", pid)
		goOn := func() { s.run("kill", "-CONT", pid) }
		defer goOn() // or the guest's end would wait for it
		s.fillJournal()
		k.letGo()
		k.wait().mustBe(upgrade.Upgraded, 0)
		if phase == control.Forked {
			s.upgrade(bad(n+1, crash)).mustBe(upgrade.RolledBack, 11)
		}
	})
}

// fillJournal writes to journald's native socket until its queue is full.
func (s *service) fillJournal() {
	s.t.Helper()
	conn, err := s.g.Dial(s.t.Context(), "unixgram", "/run/systemd/journal/socket")
	if err != nil {
		s.t.Fatal(err)
	}
	defer conn.Close()
	raw, err := conn.(*net.UnixConn).SyscallConn()
	if err != nil {
		s.t.Fatal(err)
	}
	err = raw.Write(func(fd uintptr) bool {
		for err == nil {
			err = syscall.Sendto(int(fd), []byte("MESSAGE=one of too many\n"), syscall.MSG_DONTWAIT|syscall.MSG_NOSIGNAL, nil)
		}
		return true
	})
	if err != nil && err != syscall.EAGAIN {
		s.t.Fatalf("fill the queue of journald: %v", err)
	}
}

// forger is somebody who writes events about the service, and how.
type forger struct {
	name string
	run  func(s *service, script string) []string
}

func forgers() []forger {
	return []forger{
		{"root in another unit", func(s *service, script string) []string {
			return []string{"systemd-run", "--quiet", "--wait", "--collect", "/bin/sh", "-c", script}
		}},
		{"the service's user in another unit", func(s *service, script string) []string {
			return []string{"systemd-run", "--quiet", "--wait", "--collect", "setpriv", "--reuid=" + s.show("UID"), "--clear-groups", "/bin/sh", "-c", script}
		}},
		{"another process of the unit", func(s *service, script string) []string {
			return []string{"/bin/sh", "-c", "echo $$ > /sys/fs/cgroup/system.slice/" + s.unit + "/cgroup.procs && " + script}
		}},
	}
}

// Forged events change neither the verdict nor the story, whoever writes them: neither do they end an upgrade that goes
// well, nor do they make one that failed look good.
func TestForgedEvents(t *testing.T) {
	guest.Each(t, func(t *testing.T, g *guest.Guest) {
		s := newService(t, g, options{})
		l := s.lightLoad()
		n := 1
		for _, f := range forgers() {
			t.Run(f.name, func(t *testing.T) {
				s.t = t
				n++
				k := s.keepIn(control.Held, n)
				txid := s.status().Txn.TxID
				s.forge(f, txid, k, journal.Abort, journal.Drain, journal.Exit, journal.UpgradeRollback, journal.UpgradeEnd)
				k.letGo()
				r := k.wait()
				r.mustBe(upgrade.Upgraded, 0)
				if !slices.Equal(r.events(), []string{"fork", "listen", "drain", "exit"}) {
					t.Errorf("the story is %v", r.events())
				}
				for _, line := range r.Story {
					if line.PID != k.incumbent && line.PID != k.candidate || strings.Contains(line.Text, "forged") {
						t.Errorf("the story has a forged line: %+v", line)
					}
				}
				s.mustRun(n)

				s.keepWaiting()
				failing := s.startUpgrade(s.put(bad(n+1, hang)), "--ready-timeout=1s")
				s.await("the upgrade is forked", func() bool { r := s.status().Runtime; return r != nil && r.Phase == control.Forked })
				st := s.status()
				s.forge(f, st.Txn.TxID, &kept{incumbent: st.Runtime.PID, candidate: st.Runtime.Handoff.Candidate},
					journal.Listen, journal.Drain, journal.Exit, journal.UpgradeCommit)
				bad := failing.wait()
				bad.mustBe(upgrade.RolledBack, 11)
				if !slices.Equal(bad.events(), []string{"fork", "abort"}) {
					t.Errorf("the story is %v", bad.events())
				}
				s.mustRun(n)
			})
			s.t = t
		}
		s.mustUpgrade(good(n + 1))
		mustLoseNothing(t, l.Stop())
		s.mustRun(n + 1)
	})
}

// forge writes events as if they came from the two processes of a handoff.
func (s *service) forge(f forger, txid string, k *kept, kinds ...journal.Kind) {
	s.t.Helper()
	var script strings.Builder
	for _, kind := range kinds {
		for _, pids := range [][2]int{{k.incumbent, k.candidate}, {k.candidate, k.incumbent}} {
			fmt.Fprintf(&script, "printf 'MESSAGE=forged\\nMESSAGE_ID=%s\\nSYSLOG_IDENTIFIER=zdt\\nPRIORITY=5\\nZDT_EVENT=%s\\nZDT_TXID=%s\\nZDT_SERVICE=hello\\n"+
				"ZDT_GENERATION=2\\nZDT_PID=%d\\nZDT_PEER_PID=%d\\nZDT_REASON=crashed\\nZDT_OUTCOME=rolled-back\\n_SYSTEMD_UNIT=hello.service\\n_PID=%d\\n' | logger --journald; ",
				kind.ID(), kind, txid, pids[0], pids[1], pids[0])
		}
	}
	before := s.forged()
	s.run(f.run(s, script.String())...)
	s.await("the forged events are in the journal", func() bool { return s.forged() == before+2*len(kinds) })
}

func (s *service) forged() int {
	return strings.Count(s.g.Journal(s.t.Context(), "-o", "cat", "SYSLOG_IDENTIFIER=zdt"), "forged\n")
}
