package dbusctl

import (
	"fmt"
	"strings"

	"github.com/godbus/dbus/v5"
)

const (
	destination  = "org.freedesktop.systemd1"
	managerPath  = dbus.ObjectPath("/org/freedesktop/systemd1")
	unitRoot     = "/org/freedesktop/systemd1/unit/"
	managerIface = "org.freedesktop.systemd1.Manager"
	jobIface     = "org.freedesktop.systemd1.Job"
	propsIface   = "org.freedesktop.DBus.Properties"
	busIface     = "org.freedesktop.DBus"
)

// unitNameMax is UNIT_NAME_MAX, with the terminating NUL that systemd counts.
const unitNameMax = 256

// checkName refuses what cannot be a unit's full name, so that a typo is
// answered with words and not with the bus's "Unknown object".
func checkName(op, name string) error {
	fail := func(why string) error {
		return &Error{Op: op, Unit: name, Err: fmt.Errorf("invalid unit name: %s", why), Hint: "use the full name, such as web.service"}
	}
	dot := strings.LastIndexByte(name, '.')
	switch {
	case len(name) >= unitNameMax:
		return fail("too long")
	case dot <= 0:
		return fail("no type suffix")
	}
	switch name[dot+1:] {
	case "service", "socket", "target", "device", "mount", "automount", "swap", "timer", "path", "slice", "scope":
	default:
		return fail("unknown type suffix")
	}
	for _, c := range []byte(name) {
		if !isAlnum(c) && !strings.ContainsRune(`:-_.\@`, rune(c)) {
			return fail(fmt.Sprintf("character %q", c))
		}
	}
	return nil
}

// unitPath is the object path of a unit. systemd loads a unit that is asked
// for by its path, so no LoadUnit call has to come first.
func unitPath(name string) dbus.ObjectPath {
	var b strings.Builder
	b.WriteString(unitRoot)
	if name == "" {
		b.WriteByte('_')
	}
	for i, c := range []byte(name) {
		// A leading digit is escaped too: bus_label_escape in systemd.
		if isAlnum(c) && (i > 0 || c > '9') {
			b.WriteByte(c)
		} else {
			fmt.Fprintf(&b, "_%02x", c)
		}
	}
	return dbus.ObjectPath(b.String())
}

func isAlnum(c byte) bool {
	return c >= '0' && c <= '9' || c >= 'A' && c <= 'Z' || c >= 'a' && c <= 'z'
}
