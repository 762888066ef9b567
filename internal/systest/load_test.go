package systest

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/zdt-dev/zdt/internal/guest"
	"github.com/zdt-dev/zdt/internal/load"
	"github.com/zdt-dev/zdt/upgrade"
)

// Nobody notices 25 upgrades in a row: not one of 32 clients that keep their connection through all of them and of 4 that
// open one per request, half of them with POST, none with a retry. And nothing piles up.
func TestUpgradesUnderLoad(t *testing.T) {
	t.Parallel()
	const upgrades = 25
	guest.Each(t, func(t *testing.T, g *guest.Guest) {
		s := newService(t, g, options{})
		s.mustUpgrade(good(2)) // from here on every generation came about in the same way
		s.settled()
		before := s.descriptors()

		l := s.load(load.Config{})
		if err := l.Until(t.Context(), func(r load.Report) bool { return r.Requests > 1000 }); err != nil {
			t.Fatal(err)
		}
		const first = 3
		var took []time.Duration
		var seen []map[string]int // answers by version, after each upgrade
		for n := first; n < first+upgrades; n++ {
			r := s.mustUpgrade(good(n))
			if r.Journal != "complete" || !slices.Equal(r.events(), []string{"fork", "listen", "drain", "exit"}) {
				t.Errorf("upgrade to %s: the journal's story is %s: %v", version(n), r.Journal, r.events())
			}
			if len(r.Warnings) > 0 {
				t.Errorf("upgrade to %s: warnings %q", version(n), r.Warnings)
			}
			if c := r.Connections; c == nil || c.Cut > 0 || c.Closed > 0 || c.Moved == 0 {
				t.Errorf("upgrade to %s: connections at the incumbent's end: %+v", version(n), c)
			}
			if r.Generation != n {
				t.Errorf("upgrade to %s: generation %d, want %d", version(n), r.Generation, n)
			}
			took = append(took, r.EndedAt.Sub(r.StartedAt))
			seen = append(seen, l.Report().Versions)
		}
		report := l.Stop()
		mustLoseNothing(t, report)
		slices.Sort(took)
		t.Logf("upgrades took %s to %s, median %s; %s", took[0], took[len(took)-1], took[len(took)/2], report)

		// Versions move forward: two upgrades on, when nothing of it can be under way any more, a version is history.
		for i := range seen {
			v := version(first + i)
			if report.Versions[v] == 0 {
				t.Errorf("no client has seen %s", v)
			}
			if i+2 < len(seen) && seen[i+2][v] != report.Versions[v] {
				t.Errorf("%d answers of %s came after two more upgrades", report.Versions[v]-seen[i+2][v], v)
			}
		}

		s.mustRun(first + upgrades - 1)
		s.await("the descriptors of before the load", func() bool { return slices.Equal(s.descriptors(), before) })
		if orphans := g.MustRun(t, "find", "/run/zdt", "/var/lib/zdt/hello", "-name", ".*", "!", "-name", ".lock", "!", "-name", ".updates"); orphans != "" {
			t.Errorf("left behind:\n%s", orphans)
		}
		// The last one stays, for who still watches it; the next upgrade takes it away.
		if told := strings.Fields(g.MustRun(t, "find", "/run/zdt/.updates", "-type", "f")); len(told) > 1 {
			t.Errorf("broadcasts left behind: %q", told)
		}
	})
}

// events are the words of the journal's story.
func (r result) events() []string {
	var events []string
	for _, line := range r.Story {
		events = append(events, line.Event)
	}
	return events
}

// The race detector finds nothing in a service that is upgraded under load, aborted handoffs included.
func TestRaceDetector(t *testing.T) {
	t.Parallel()
	// TSan maps memory at fixed places and, where the kernel randomises too much, starts itself again without that: both
	// are what a sandbox forbids. exitcode would make a race look like a failed upgrade only.
	const dropIn = "[Service]\nEnvironment=\"GORACE=atexit_sleep_ms=0 halt_on_error=0\"\nEnvironment=ZDT_VERIFY_MOVES=yes\nLockPersonality=no\nMemoryDenyWriteExecute=no\nSystemCallFilter=\n"
	racy := func(n int) program { return program{version: n, race: true} }
	guest.Each(t, func(t *testing.T, g *guest.Guest) {
		if err := g.WriteFile("/etc/systemd/system/hello.service.d/race.conf", []byte(dropIn), 0o644); err != nil {
			t.Fatal(err)
		}
		s := newService(t, g, options{program: racy(1)})
		l := s.load(load.Config{KeepAlive: 6, Fresh: 2, Slow: 1, Uploads: 1, Pipelined: 2, HalfHeads: 2, Expect: 1, Think: 5 * time.Millisecond})
		for n := 2; n <= 4; n++ {
			s.mustUpgrade(racy(n))
			s.upgrade(bad(n, crash)).mustBe(upgrade.RolledBack, 11)
		}
		mustLoseNothing(t, l.Stop())
		s.mustRun(4)
		s.run("systemctl", "stop", s.unit, "hello.socket")
		if log := g.Journal(t.Context(), "-u", s.unit); strings.Contains(log, "DATA RACE") {
			t.Error(log)
		}
	})
}
