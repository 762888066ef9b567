package guest_test

import (
	"testing"

	"github.com/zdt-dev/zdt/internal/guest"
)

func TestBootsSystemd(t *testing.T) {
	guest.Each(t, func(t *testing.T, g *guest.Guest) {
		if got := g.MustRun(t, "systemctl", "is-system-running"); got != "running" {
			t.Errorf("system is %s, want running", got)
		}
	})
}
