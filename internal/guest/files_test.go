package guest_test

import (
	"os/exec"
	"sync"
	"testing"

	"github.com/zdt-dev/zdt/internal/guest"
)

// A program that was just copied can be run, whatever other tests start meanwhile.
func TestCopyThenRun(t *testing.T) {
	guest.Require(t)
	g := guest.Boot(t, guest.Trixie)
	stop := make(chan struct{})
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				if err := exec.Command("/bin/true").Run(); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	defer wg.Wait()
	defer close(stop)
	for range 200 {
		if err := g.Copy("/bin/true", "/srv/program", 0o755); err != nil {
			t.Fatal(err)
		}
		g.MustRun(t, "/srv/program")
	}
}
