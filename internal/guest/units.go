package guest

import (
	"context"
	"fmt"
	"strings"
	"time"
)

// BusAddress returns the address of the guest's system bus, for a D-Bus client in the host process. The bus sees that
// client as root. A user's bus admits that user only: reach /run/user/UID/bus with [Guest.DialAs].
func (g *Guest) BusAddress() string {
	return "unix:path=" + g.Path("/run/dbus/system_bus_socket")
}

// Journal returns the guest's journal as text, oldest line first, restricted by journalctl's matches and options
// ("-u", "hello", "MESSAGE_ID=…"). It is for people: a journalctl that fails says so in the text.
func (g *Guest) Journal(ctx context.Context, matches ...string) string {
	r, err := g.Run(ctx, append([]string{"journalctl", "--no-pager", "--quiet", "--all", "-o", "short-precise"}, matches...)...)
	if err != nil {
		return r.Stdout + "[" + err.Error() + "]\n"
	}
	if r.Code != 0 {
		return r.String()
	}
	return r.Stdout
}

// WaitUnit waits until the unit's ActiveState is the one wanted, such as "active" or "inactive". It returns early, with
// the unit's status, when the unit has failed instead.
func (g *Guest) WaitUnit(ctx context.Context, unit, state string) error {
	retry := time.NewTicker(20 * time.Millisecond)
	defer retry.Stop()
	for {
		r, err := g.Run(ctx, "systemctl", "show", "--property=ActiveState", "--value", "--", unit)
		if err != nil {
			return fmt.Errorf("wait for %s to be %s: %w", unit, state, err)
		}
		now := strings.TrimSpace(r.Stdout)
		if now == state {
			return nil
		}
		if now == "failed" {
			status, _ := g.Run(ctx, "systemctl", "status", "--no-pager", "--full", "--", unit)
			return fmt.Errorf("wait for %s to be %s: it has failed\n%s", unit, state, status)
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("wait for %s to be %s, while it is %s: %w", unit, state, now, ctx.Err())
		case <-retry.C:
		}
	}
}
