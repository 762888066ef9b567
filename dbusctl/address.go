package dbusctl

import (
	"fmt"

	"github.com/godbus/dbus/v5"
)

// Options say which systemd is meant. The zero value is the system manager.
type Options struct {
	// User selects the caller's user manager.
	User bool
	// Address is a D-Bus address to use instead of the usual ones, for tests
	// and for a systemd in another mount namespace.
	Address string
}

// endpoint is one way to reach a manager.
type endpoint struct {
	address string
	// direct: systemd's private socket, with no bus in between. It serves only
	// the owner of the manager (for the system's: root), and is what
	// systemctl uses where no D-Bus daemon is installed.
	direct bool
}

// endpoints lists the ways to the manager that o means, the best first. The
// bus is preferred: systemd keeps its clients there over a daemon-reexec,
// whereas it drops those of the private socket.
func endpoints(o Options, getenv func(string) string, euid int) []endpoint {
	unix := func(path string) string { return "unix:path=" + dbus.EscapeBusAddressValue(path) }
	if o.Address != "" {
		return []endpoint{{address: o.Address}}
	}
	if !o.User {
		if a := getenv("DBUS_SYSTEM_BUS_ADDRESS"); a != "" {
			return []endpoint{{address: a}}
		}
		eps := []endpoint{{address: unix("/run/dbus/system_bus_socket")}}
		if euid == 0 {
			eps = append(eps, endpoint{address: unix("/run/systemd/private"), direct: true})
		}
		return eps
	}
	// As systemctl --user does: the runtime directory comes before
	// DBUS_SESSION_BUS_ADDRESS, which may name a session bus (dbus-run-session,
	// dbus-launch) that has no systemd on it.
	dir := getenv("XDG_RUNTIME_DIR")
	if dir == "" {
		if a := getenv("DBUS_SESSION_BUS_ADDRESS"); a != "" {
			return []endpoint{{address: a}}
		}
		dir = fmt.Sprintf("/run/user/%d", euid)
	}
	return []endpoint{
		{address: unix(dir + "/bus")},
		{address: unix(dir + "/systemd/private"), direct: true},
	}
}
