package systest

import (
	"fmt"
	"strings"
	"testing"

	"github.com/zdt-dev/zdt/handoff/control"
	"github.com/zdt-dev/zdt/internal/guest"
	"github.com/zdt-dev/zdt/journal"
)

// systemctl stop waits for the requests under way, whether or not there was a handoff before, which makes systemd take
// the main process for somebody else's child.
func TestStopWaitsForRequests(t *testing.T) {
	t.Parallel()
	guest.Each(t, func(t *testing.T, g *guest.Guest) {
		s := newService(t, g, options{})
		for n := 1; n <= 3; n++ { // generation 1, 2, and 1 again
			if n == 2 {
				s.mustUpgrade(good(2))
			}
			serves := s.answers()
			finish := s.hangingRequest()
			stop := s.beginStop()
			finish(serves)
			s.mustStop(stop)
			if n < 3 {
				s.run("systemctl", "start", s.unit)
				s.settled()
			}
		}
	})
}

// systemctl stop in the middle of a drain ends both generations in order, and answers what either works on.
func TestStopOfTwoGenerations(t *testing.T) {
	t.Parallel()
	guest.Each(t, func(t *testing.T, g *guest.Guest) {
		s := newService(t, g, options{})
		s.mustUpgrade(good(2))
		k := s.keepIn(control.Draining, 3)
		finish := s.hangingRequest() // of the new generation
		stop := s.beginStop()
		if n := s.processes(); n < 2 {
			t.Errorf("%d processes while both generations have a request to finish", n)
		}
		finish(version(3))
		k.letGo()
		s.mustStop(stop)
		k.wait()
		var ended []string
		for _, pid := range []int{k.incumbent, k.candidate} {
			if log := s.journalOf("-o", "export", fmt.Sprintf("%s=%d", journal.FieldPID, pid), "MESSAGE_ID="+journal.Exit.ID()); !strings.Contains(log, "EXIT_STATUS=0") {
				t.Errorf("process %d did not end well:\n%s", pid, log)
			}
		}
		for line := range strings.Lines(s.journalOf("MESSAGE_ID=" + journal.Exit.ID())) {
			ended = append(ended, line)
		}
		if n := len(ended); n < 2 || !strings.Contains(ended[n-2], pid(k.incumbent)) || !strings.Contains(ended[n-1], pid(k.candidate)) {
			t.Errorf("want pid %d to end before pid %d:\n%s", k.incumbent, k.candidate, strings.Join(ended, ""))
		}
	})
}

// A restart under load loses nothing while the sockets stay: clients wait for the new process.
func TestRestartUnderLoad(t *testing.T) {
	t.Parallel()
	guest.Each(t, func(t *testing.T, g *guest.Guest) {
		s := newService(t, g, options{})
		s.mustUpgrade(good(2))
		l := s.lightLoad()
		for range 3 {
			old := s.mainPID()
			s.run("systemctl", "restart", s.unit)
			if s.mainPID() == old || s.show("Result") != "success" {
				t.Errorf("main process %d after %d, result %s", s.mainPID(), old, s.show("Result"))
			}
			s.mustRun(2)
		}
		s.mustUpgrade(good(3))
		mustFailNothing(t, l.Stop())
		s.mustNotKill()
	})
}

// beginStop stops the service and its sockets, and returns when systemd has begun.
func (s *service) beginStop() *guest.Process {
	s.t.Helper()
	stop := s.spawn("systemctl", "stop", s.unit, s.name+".socket")
	s.await("systemd stops the service", func() bool { return s.show("ActiveState") == "deactivating" })
	return stop
}

// mustStop waits for the end of a stop, which must be a good one.
func (s *service) mustStop(stop *guest.Process) {
	s.t.Helper()
	if r, err := stop.Wait(); err != nil || r.Code != 0 {
		s.t.Errorf("%v %s", err, r)
	}
	if s.show("ActiveState") != "inactive" || s.show("Result") != "success" || s.show("ExecMainStatus") != "0" || s.processes() != 0 {
		s.t.Errorf("the unit is %s (%s, status %s), %d processes are left", s.show("ActiveState"), s.show("Result"), s.show("ExecMainStatus"), s.processes())
	}
	s.mustNotKill()
}

// mustNotKill checks that systemd had to kill nothing.
func (s *service) mustNotKill() {
	s.t.Helper()
	for line := range strings.Lines(s.journalOf("_PID=1")) {
		// systemd names a process that is on its way out as (n/a).
		if strings.Contains(line, "SIGKILL") && !strings.Contains(line, "(n/a)") || strings.Contains(line, "9/KILL") {
			s.t.Errorf("systemd killed: %s", line)
		}
	}
}
