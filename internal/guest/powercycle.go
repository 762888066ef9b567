package guest

import (
	"context"
	"fmt"
	"os"
	"testing"

	"golang.org/x/sys/unix"
)

// PowerCycle takes the power from a guest and starts it again with what it had written: all its processes die at once, what is
// below /run and /tmp is gone, and so are its journal and its sockets. (A write that nobody has synced survives here; a disk might
// lose it.) The guest itself is closed by that, and the new one in its place.
func PowerCycle(t testing.TB, g *Guest) *Guest {
	t.Helper()
	return again(t, g, unix.SIGKILL)
}

// Reboot shuts a guest down in order, as systemctl poweroff does, within five seconds, and starts it again as PowerCycle does.
func Reboot(t testing.TB, g *Guest) *Guest {
	t.Helper()
	return again(t, g, sigPoweroff)
}

func again(t testing.TB, g *Guest, end unix.Signal) *Guest {
	t.Helper()
	next, err := g.again(t.Context(), end)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			t.Log(next.report())
		}
		if err := next.Close(); err != nil {
			t.Error(err)
		}
	})
	return next
}

func (g *Guest) again(ctx context.Context, end unix.Signal) (*Guest, error) {
	// The directory keeps its file system alive when the guest's mounts are gone.
	disk, err := os.Open(g.Path("/run/guest-disk"))
	if err != nil {
		return nil, fmt.Errorf("power cycle: %w", err)
	}
	defer disk.Close()
	if err := g.signal(end); err != nil {
		return nil, fmt.Errorf("power cycle: end guest: %w", err)
	}
	if err := g.Close(); err != nil {
		return nil, fmt.Errorf("power cycle: %w", err)
	}
	next, err := start(ctx, Config{Image: g.image, Store: Store{Dir: DefaultDir(), Logf: stderrf}}, disk)
	if err != nil {
		return nil, fmt.Errorf("power cycle: boot %s guest: %w", g.image, err)
	}
	next.disk = nil
	return next, nil
}
