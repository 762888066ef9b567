package systest

import (
	"strings"
	"testing"

	"github.com/zdt-dev/zdt/handoff/control"
	"github.com/zdt-dev/zdt/internal/guest"
	"github.com/zdt-dev/zdt/internal/load"
	"github.com/zdt-dev/zdt/upgrade"
)

// A release that comes up and does not pass its gates never becomes the service: clients notice nothing but that new
// connections met it for a while. With --on-failure freeze it is a person who decides.
func TestGates(t *testing.T) {
	t.Parallel()
	guest.Each(t, func(t *testing.T, g *guest.Guest) {
		s := newService(t, g, options{init: []string{"--dynamic-user", "--health", "http://127.0.0.1:8080/"}})
		s.mustUpgrade(good(2))
		before := s.footprint()
		l := s.lightLoad()
		if err := l.Until(t.Context(), func(r load.Report) bool { return r.Requests > 100 }); err != nil {
			t.Fatal(err)
		}
		r := s.upgrade(good(3), "--gate", "tcp:127.0.0.1:8080", "--gate", "exec:/bin/true")
		r.mustBe(upgrade.Upgraded, 0)
		if len(r.Gates) != 3 {
			t.Errorf("gates %+v", r.Gates)
		}
		for _, g := range r.Gates {
			if g.State != "passed" || g.Unknown > 0 {
				t.Errorf("gate %+v: the kernel knows who answered", g)
			}
		}
		s.mustRun(3)

		for _, gate := range []string{"http://127.0.0.1:8080/ status=418 within=1s every=100ms", "http://127.0.0.1:8080/ body~=nonsense within=1s every=100ms", "within=1s every=100ms exec:/bin/false", "journal:nonsense within=1s"} {
			r = s.upgrade(good(4), "--gate", gate)
			r.mustBe(upgrade.RolledBack, 11)
			if r.Reason != "health" || !strings.Contains(r.Cause, "gate ") {
				t.Errorf("reason %q, cause %q", r.Reason, r.Cause)
			}
		}
		s.upgrade(good(4), "--gate", "tcp:nowhere").mustBeRefusedAsUsage()
		s.mustRun(3)

		// Frozen: both live, status says so, and somebody decides.
		for _, decide := range []string{"promote", "abort"} {
			r = s.upgrade(good(5), "--gate", "http://127.0.0.1:8080/ status=418 within=1s every=100ms", "--on-failure", "freeze")
			r.mustBe(upgrade.Frozen, 14)
			st := s.status()
			if st.Runtime == nil || st.Runtime.Phase != control.Held || st.Txn == nil || !strings.Contains(st.text, `"frozen"`) {
				t.Errorf("status:\n%s", st.text)
			}
			s.upgrade(good(6)).mustBe(upgrade.Refused, 10)
			want := upgrade.Upgraded
			if decide == "abort" {
				want = upgrade.Aborted
			}
			if rep := s.settleBy(0, "zdt", decide); rep.Outcome != want {
				t.Errorf("%s: %+v", decide, rep)
			}
			if decide == "promote" {
				s.mustRun(5)
				s.rollback().mustBe(upgrade.Upgraded, 0)
			}
			s.mustRun(3)
		}
		s.mustUpgrade(good(7)) // who has undone a handoff keeps the journal open
		mustLoseNothing(t, l.Stop())
		s.mustLeaveNothing(before)
	})
}

// mustBeRefusedAsUsage: what was typed makes no sense, so that there is no upgrade to report on.
func (r result) mustBeRefusedAsUsage() {
	r.t.Helper()
	if r.exec.Code != 64 {
		r.t.Errorf("exit code %d, want 64\n%s", r.exec.Code, r.exec)
	}
}
