package systest

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/zdt-dev/zdt/handoff/control"
	"github.com/zdt-dev/zdt/internal/guest"
	"github.com/zdt-dev/zdt/upgrade"
)

// What the new process writes counts for the gates that read the journal, and nothing else does: not what others write in its
// name, and not what the old process says.
func TestJournalGates(t *testing.T) {
	t.Parallel()
	guest.Each(t, func(t *testing.T, g *guest.Guest) {
		s := newService(t, g, options{})
		l := s.lightLoad()

		// The candidate, on probation, says "refused" to a signal; so does the old process before it, and others write errors.
		u := s.startUpgrade(s.put(good(2)), "--gate", "journal:refused|needle", "--gate", "journal!:needle", "--gate", "errors:0")
		var st status
		s.await("the upgrade is held", func() bool {
			st = s.status()
			return st.Runtime != nil && st.Runtime.Phase == control.Held
		})
		incumbent, candidate := st.Runtime.PID, st.Runtime.Handoff.Candidate
		for _, f := range forgers() {
			before := s.needles()
			s.run(f.run(s, fmt.Sprintf("printf 'MESSAGE=needle\\nPRIORITY=2\\n_SYSTEMD_UNIT=hello.service\\n_PID=%d\\nSYSLOG_PID=%[1]d\\n' | logger --journald; echo '<2>needle' >&2", candidate))...)
			s.await("the forged line is in the journal", func() bool { return s.needles() > before })
		}
		refusedBy := func(p int) {
			s.run("kill", "-USR2", pid(p))
			s.await("a second handoff is refused", func() bool { return strings.Contains(s.journalOf("-o", "cat", "_PID="+pid(p)), "refused") })
		}
		refusedBy(incumbent)
		refusedBy(candidate)
		r := u.wait()
		r.mustBe(upgrade.Upgraded, 0)
		if len(r.Gates) != 3 || !strings.Contains(r.Gates[0].Last, fmt.Sprintf("process %d wrote", candidate)) || r.Gates[2].Errors != 0 {
			t.Errorf("gates %+v", r.Gates)
		}
		if slices.ContainsFunc(r.Warnings, func(w string) bool { return strings.HasPrefix(w, "gate ") }) {
			t.Errorf("warnings %q", r.Warnings)
		}

		// What it writes itself.
		for _, gate := range []string{"journal!:no.database", "errors:3", "errors:3/1m"} {
			r = s.upgrade(bad(3, complain), "--gate", gate, "--bake=1h")
			r.mustBe(upgrade.RolledBack, 11)
			if r.Reason != "health" || !strings.Contains(r.Cause, "no database (") || len(r.CandidateLog) == 0 || strings.HasPrefix(gate, "errors:") && !strings.Contains(r.Cause, "4 error lines") {
				t.Errorf("reason %q, cause %q, log %q", r.Reason, r.Cause, r.CandidateLog)
			}
		}
		s.mustRun(2)

		// An old process that complains is no reason to keep it.
		s.mustUpgrade(bad(4, complain))
		s.mustUpgrade(good(5), "--gate", "errors:0", "--bake=1s")

		mustFailNothing(t, l.Stop())

		// journald leaves out most of what the new one writes, and says so: that is told, and no failure. Nor is it one when journald
		// goes away.
		s.write("/etc/systemd/system/hello.service.d/quiet.conf", "[Service]\nLogRateLimitIntervalSec=1s\nLogRateLimitBurst=3\n")
		s.run("systemctl", "daemon-reload")
		s.run("systemctl", "restart", s.unit)
		s.wantDoubt(s.upgrade(bad(6, complain), "--gate", "errors:1000", "--bake=4s"), "journald left out")
		u = s.startUpgrade(s.put(good(7)), "--gate", "errors:0", "--bake=5s")
		s.await("the upgrade is held", func() bool { r := s.status().Runtime; return r != nil && r.Phase == control.Held })
		s.run(journald("stop")...)
		s.wantDoubt(u.wait(), "")
		s.run(journald("start")...)
		s.mustRun(7)
	})
}

// needles is how many of the forged lines there are.
func (s *service) needles() int {
	return strings.Count(s.g.Journal(s.t.Context(), "-o", "cat"), "needle\n")
}

// wantDoubt: the upgrade is a good one, with a warning that not all was seen.
func (s *service) wantDoubt(r result, why string) {
	s.t.Helper()
	r.mustBe(upgrade.Upgraded, 0)
	if len(r.Gates) != 1 || !strings.Contains(r.Gates[0].Doubt, why) || !slices.Contains(r.Warnings, "gate "+r.Gates[0].Gate+": "+r.Gates[0].Doubt) {
		s.t.Errorf("gates %+v, warnings %q; want a doubt: %s", r.Gates, r.Warnings, why)
	}
}
