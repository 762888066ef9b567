package dbusctl

import (
	"context"
	"time"

	"github.com/godbus/dbus/v5"
)

// repeat says what may be done with a call when systemd turns out to be off
// the bus, which it is for some milliseconds of a daemon-reexec.
type repeat int

const (
	once    repeat = iota // report it
	acting                // repeat the call if systemd cannot have seen it
	reading               // repeat the call
)

// reexecGap is how long a call waits for systemd to come back to the bus. A
// re-exec of a big machine's systemd takes a second or two.
const reexecGap = 10 * time.Second

// call makes one method call on systemd and stores the results in out. Its
// error is the library's, for explain.
func (m *Manager) call(ctx context.Context, r repeat, path dbus.ObjectPath, method string, out []any, args ...any) error {
	var giveUp <-chan time.Time
	for {
		changed := m.sig.ownerChanged()
		// Without NoAutoStart the bus would try to start systemd by the
		// activation file that it ships, which runs /bin/false.
		reply := m.conn.Object(destination, path).CallWithContext(ctx, method, dbus.FlagNoAutoStart, args...)
		err := reply.Err
		if err == nil {
			if len(out) == 0 {
				return nil
			}
			return reply.Store(out...)
		}
		gone, undelivered := away(err)
		if !gone || r == once || r == acting && !undelivered {
			return err
		}
		if giveUp == nil {
			t := time.NewTimer(reexecGap)
			defer t.Stop()
			giveUp = t.C
		}
		select {
		case <-changed:
		case <-giveUp:
			return err
		case <-ctx.Done():
			return ctx.Err()
		case <-m.Done():
			return err
		}
	}
}
