package systest

import (
	"fmt"
	"os"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/zdt-dev/zdt/handoff/control"
	"github.com/zdt-dev/zdt/internal/guest"
	"github.com/zdt-dev/zdt/upgrade"
)

// Of two upgrades at once one goes through; the other changes nothing and names who is at work, or waits for its turn.
func TestTwoUpgradesAtOnce(t *testing.T) {
	t.Parallel()
	guest.Each(t, func(t *testing.T, g *guest.Guest) {
		s := newService(t, g, options{})
		s.mustUpgrade(good(2))
		before := s.footprint()
		l := s.lightLoad()

		first := s.keepIn(control.Forked, 3)
		txn := s.status().Txn
		second := s.upgrade(good(4))
		second.mustBe(upgrade.Locked, 75)
		if txn == nil || !txn.Running || !strings.Contains(second.Cause, txn.TxID) || second.Hint == "" {
			t.Errorf("cause %q and hint %q do not tell of %+v", second.Cause, second.Hint, txn)
		}
		if second.To != nil {
			t.Errorf("it has staged %+v", second.To)
		}
		impatient := s.upgrade(good(4), "--wait=100ms")
		impatient.mustBe(upgrade.Locked, 75)
		patient := s.startUpgrade(s.put(good(4)), "--wait")
		first.letGo()
		first.wait().mustBe(upgrade.Upgraded, 0)
		patient.wait().mustBe(upgrade.Upgraded, 0)
		s.mustRun(4)

		// A crowd, each with a release of its own: they go one after the other, each from where the one before ended.
		var crowd []*running
		for n := 5; n < 9; n++ {
			crowd = append(crowd, s.startUpgrade(s.put(good(n)), "--wait=40s"))
		}
		var results []result
		for _, u := range crowd {
			r := u.wait()
			r.mustBe(upgrade.Upgraded, 0)
			results = append(results, r)
		}
		slices.SortFunc(results, func(a, b result) int { return a.EndedAt.Compare(b.EndedAt) })
		for i, r := range results {
			if i > 0 && (r.From.ID != results[i-1].To.ID || r.Incumbent != results[i-1].Candidate || r.Generation != results[i-1].Generation+1) {
				t.Errorf("one goes from %s in pid %d, the one before ended with %s in pid %d", r.From.ID, r.Incumbent, results[i-1].To.ID, results[i-1].Candidate)
			}
		}
		if st := s.settled(); st.Current == nil || st.Current.ID != results[len(results)-1].To.ID {
			t.Errorf("the last one is not what is current:\n%s", st.text)
		}
		s.mustUpgrade(good(9))
		mustLoseNothing(t, l.Stop())
		s.mustLeaveNothing(before)
	})
}

// kill -9 of zdt in the middle of an upgrade: the service stays healthy, zdt status explains, and the next upgrade
// finishes what was committed and undoes what was not.
func TestZdtKilled(t *testing.T) {
	t.Parallel()
	eachPhase(t, func(t *testing.T, s *service, phase control.Phase, n int) {
		k := s.keepIn(phase, n)
		txid := s.status().Txn.TxID
		k.Signal(os.Kill)
		<-k.Done()

		st := s.status()
		if st.State != "serving" || st.Txn == nil || st.Txn.Running || st.Txn.TxID != txid {
			t.Errorf("status does not tell that upgrade %s was cut short:\n%s", txid, st.text)
		}
		explained := false
		for _, note := range st.Notes {
			explained = explained || note.ID == "upgrade-open" && note.Next == "zdt resume hello"
		}
		if !explained {
			t.Errorf("status does not say what to do:\n%s", st.text)
		}

		again := s.startUpgrade(k.file)
		k.letGo()
		r, outcome := again.wait(), "interrupted"
		if phase == control.Draining {
			outcome = "upgraded"
			r.mustBe(upgrade.Unchanged, 0) // it had committed, and is finished now
		} else {
			r.mustBe(upgrade.Upgraded, 0)
			if r.Incumbent != k.incumbent {
				t.Errorf("pid %d did not serve on; the next upgrade went from pid %d", k.incumbent, r.Incumbent)
			}
		}
		if !strings.Contains(fmt.Sprint(r.Warnings), txid) {
			t.Errorf("warnings %q do not tell what became of %s", r.Warnings, txid)
		}
		if history, err := s.g.ReadFile("/var/lib/zdt/hello/history.ndjson"); err != nil || !historyTells(string(history), txid, outcome) {
			t.Errorf("the history does not say %s of %s: %v\n%s", outcome, txid, err, history)
		}
		s.mustRun(n)
	})
}

func historyTells(history, txid, outcome string) bool {
	for line := range strings.Lines(history) {
		if strings.Contains(line, `"`+txid+`"`) && strings.Contains(line, `"outcome":"`+outcome+`"`) {
			return true
		}
	}
	return false
}

// Ctrl-C before the commit undoes the upgrade; after it the new release stays, and only the waiting ends.
func TestInterrupt(t *testing.T) {
	t.Parallel()
	eachPhase(t, func(t *testing.T, s *service, phase control.Phase, n int) {
		k := s.keepIn(phase, n)
		k.Signal(syscall.SIGINT)
		r := k.wait()
		if phase == control.Draining {
			r.mustBe(upgrade.Upgraded, 0)
			if len(r.Warnings) == 0 {
				t.Error("no warning that the old process still drains")
			}
			k.letGo()
			s.mustRun(n)
			return
		}
		r.mustBe(upgrade.Interrupted, 130)
		if want := fmt.Sprintf("pid %d never stopped serving", k.incumbent); r.Action != want {
			t.Errorf("action %q, want %q", r.Action, want)
		}
		s.mustRun(n - 1)
		again := s.startUpgrade(k.file) // as the hint says
		k.letGo()
		again.wait().mustBe(upgrade.Upgraded, 0)
		s.mustRun(n)
	})
}
