package systest

import (
	"testing"

	"github.com/zdt-dev/zdt/internal/guest"
	"github.com/zdt-dev/zdt/upgrade"
)

// With a restart the new release serves before it is judged. Whoever comes next after a zdt that was killed, or a host that
// went down, does not take that for a commit: the release from before serves again, and a rollback goes to none that failed.
func TestKilledInARestart(t *testing.T) {
	t.Parallel()
	guest.Each(t, func(t *testing.T, g *guest.Guest) {
		s := newService(t, g, options{})
		if err := g.Copy(steppedZdt(t), "/usr/local/bin/zdt-steps", 0o755); err != nil {
			t.Fatal(err)
		}
		fails := []string{"--gate", "within=2s tcp:127.0.0.1:1"}
		serves, n := 1, 1
		for _, tt := range []struct {
			at   string
			args []string
			next string
		}{
			{"before record listen", nil, "abort"},
			{"before record bake", nil, "settle"},
			{"before record bake", nil, "resume"},
			{"after record undo", fails, "resume"},
			{"after record undo", fails, "upgrade"},
			{"before record bake", nil, "power cut"},
		} {
			n++
			s.run("mkdir", "-p", stepsDir)
			u := s.stoppedAt(tt.at, n, append([]string{"--strategy", "restart"}, tt.args...)...)
			if tt.next == "power cut" {
				s.g = guest.PowerCycle(t, s.g)
			} else {
				s.hit(theZdt, u, 0, 0)
				s.goOn()
			}
			outcome := upgrade.Interrupted
			switch tt.next {
			case "power cut":
				s.await("the boot unit has closed the record", func() bool { return s.status().Txn == nil })
			case "settle":
				s.must(0, "zdt", "resume", s.name, "--settle")
			case "abort":
				outcome = upgrade.Aborted
				s.must(0, "zdt", "abort", s.name)
			case "resume":
				if tt.args != nil { // what was found wanting is not tried again
					s.must(0, "zdt", "resume", s.name)
					break
				}
				s.must(0, "zdt", "resume", s.name)
				outcome, serves = upgrade.Upgraded, n
			case "upgrade":
				n++
				s.upgrade(good(n)).mustBe(upgrade.Upgraded, 0)
				s.mustRun(n)
				s.must(0, "zdt", "rollback", s.name)
				outcome = upgrade.Upgraded
			}
			s.mustRun(serves)
			if last := s.history(); len(last) == 0 || last[0].Outcome != string(outcome) || last[0].Committed != (outcome == upgrade.Upgraded) {
				t.Errorf("%s, %s: history %+v", tt.at, tt.next, last)
			}
			if st := s.status(); st.Txn != nil || st.State != "serving" || len(st.Notes) > 0 {
				t.Errorf("%s, %s: left behind:\n%s", tt.at, tt.next, st.text)
			}
			if t.Failed() {
				return
			}
		}
		s.mustUpgrade(good(n + 1))
	})
}
