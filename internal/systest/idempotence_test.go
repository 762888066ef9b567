package systest

import (
	"testing"

	"github.com/zdt-dev/zdt/internal/guest"
	"github.com/zdt-dev/zdt/upgrade"
)

// The same binary a second time changes nothing, whatever the file is called.
func TestSameBinaryTwice(t *testing.T) {
	t.Parallel()
	guest.Each(t, func(t *testing.T, g *guest.Guest) {
		s := newService(t, g, options{})
		s.upgrade(good(1)).mustBe(upgrade.Unchanged, 0) // what zdt init imported
		first := s.mustUpgrade(good(2))
		pid, before := s.mainPID(), s.settled()

		s.upgrade(good(2)).mustBe(upgrade.Unchanged, 0)
		s.run("cp", "/srv/v0002/hello", "/srv/web-1.4.3")
		again := s.upgradeFile("/srv/web-1.4.3")
		again.mustBe(upgrade.Unchanged, 0)
		if again.To == nil || first.To == nil || again.To.ID != first.To.ID {
			t.Errorf("the same content is release %+v and %+v", first.To, again.To)
		}

		after := s.settled()
		if s.mainPID() != pid || after.Runtime.Attempts != before.Runtime.Attempts || after.Runtime.Generation != 2 {
			t.Errorf("something was done:\n%s", after.text)
		}
		s.mustUpgrade(good(3))
		s.mustRun(3)
	})
}
