package systest

import (
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/zdt-dev/zdt/handoff/control"
	"github.com/zdt-dev/zdt/internal/guest"
	"github.com/zdt-dev/zdt/internal/load"
	"github.com/zdt-dev/zdt/upgrade"
)

// crew waits until all workers serve and nothing else is there but the helper.
func (s *service) crew(n int) control.Status {
	s.t.Helper()
	var r control.Status
	s.await("all workers serve", func() bool {
		st := s.status()
		if st.Runtime == nil || st.Runtime.Workers == nil {
			return false
		}
		r = *st.Runtime
		return r.Phase == control.Idle && r.Predecessor == nil && r.Handoff == nil && r.PID == st.Unit.MainPID && r.Workers.Ready == n && s.processes() == n+1
	})
	return r
}

func workerPIDs(st control.Status) (pids []int) {
	for _, w := range st.Workers.List {
		pids = append(pids, w.PID)
	}
	return pids
}

// Four workers, replaced one after the other: a good release under load, one that fails as the first, one that fails
// as the third and is taken back. No client notices. A worker that is killed is started again, and when they keep
// dying systemd has the word.
func TestWorkers(t *testing.T) {
	t.Parallel()
	const n = 4
	guest.Each(t, func(t *testing.T, g *guest.Guest) {
		s := newService(t, g, options{init: []string{"--runtime", "helper", "--dynamic-user", "--workers", strconv.Itoa(n)}})
		first := s.crew(n)
		s.mustFindNothing()
		l := s.lightLoad()
		if err := l.Until(t.Context(), func(r load.Report) bool { return r.Requests > 200 }); err != nil {
			t.Fatal(err)
		}
		r := s.upgrade(good(2))
		r.mustBe(upgrade.Upgraded, 0)
		second := s.crew(n)
		if second.Generation != 2 || second.PID != first.PID || second.App != r.Candidate {
			t.Errorf("%+v", second)
		}
		for _, pid := range workerPIDs(second) {
			if slices.Contains(workerPIDs(first), pid) {
				t.Errorf("worker %d was not replaced", pid)
			}
		}
		s.upgrade(bad(3, crash)).mustBe(upgrade.RolledBack, 11)
		if now := s.crew(n); !slices.Equal(workerPIDs(now), workerPIDs(second)) {
			t.Errorf("workers %v, before %v", workerPIDs(now), workerPIDs(second))
		}
		// The kernel knows only what it executes in the end, so the release is said to be a script's.
		s.write("/srv/third/hello", "#!/bin/sh\n[ \"$ZDT_WORKER\" = 3 ] && exit 7\nexec "+s.put(good(4))+" \"$@\"\n")
		s.run("chmod", "755", "/srv/third/hello")
		r = s.upgradeFile("/srv/third/hello")
		r.mustBe(upgrade.RolledBack, 11)
		if r.Report.Phase != upgrade.Drain || !strings.Contains(r.Report.Cause, "worker 3") || !strings.Contains(r.Report.Cause, "exited 7") {
			t.Errorf("%s: %s", r.Report.Phase, r.Report.Cause)
		}
		third := s.crew(n)
		if got, want := workerPIDs(third)[2:], workerPIDs(second)[2:]; !slices.Equal(got, want) || !third.TookOver {
			t.Errorf("workers %v stay, want %v", got, want)
		}
		if got := s.answers(); got != version(2) {
			t.Errorf("%s answers", got)
		}
		s.upgrade(good(5)).mustBe(upgrade.Upgraded, 0)
		st := s.crew(n)
		mustFailNothing(t, l.Stop())
		// What is a file's, zdt itself, is shared with every other zdt.
		if kib := memoryOf(t, g, st.PID, "RssAnon"); kib > 8<<10 {
			t.Errorf("the helper has %d KiB of its own", kib)
		}
		s.run("kill", "-9", strconv.Itoa(workerPIDs(st)[1]))
		s.await("a new worker", func() bool { r := s.status().Runtime; return r != nil && r.Workers.Restarts == 1 })
		st = s.crew(n)
		for st.Workers.Restarts > 0 { // until systemd starts the service anew
			s.run("sh", "-c", fmt.Sprintf("kill -9 %d || :", workerPIDs(st)[1]))
			was := st
			s.await("another one", func() bool {
				r := s.status().Runtime
				if r == nil || r.Workers == nil {
					return false
				}
				st = *r
				return (r.PID != was.PID || r.Workers.Restarts > was.Workers.Restarts) && r.Workers.Ready == n
			})
		}
		if st := s.crew(n); st.PID == first.PID || st.Generation != 1 {
			t.Errorf("%+v", st)
		}
		if said := s.run("journalctl", "-o", "cat", "-u", s.unit); !strings.Contains(said, "status=9/KILL") {
			t.Errorf("systemd does not say how it ended:\n%s", said)
		}
	})
}

// memoryOf is a number of a process's /proc/PID/status, in KiB.
func memoryOf(t *testing.T, g *guest.Guest, pid int, what string) (kib int) {
	t.Helper()
	b, err := os.ReadFile(g.Path(fmt.Sprintf("/proc/%d/status", pid)))
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(b), what+":")
	if _, err := fmt.Sscan(rest, &kib); err != nil {
		t.Fatal(err)
	}
	return kib
}
