package handoffcheck

import (
	"math"
	"strings"
	"time"

	"github.com/zdt-dev/zdt/handoff/control"
)

// Facts are what checks look at. What is not known is zero.
type Facts struct {
	Systemd int            // its version, as 257
	Service Unit           // the unit of the service
	Sockets []Unit         // the socket units it gets descriptors from
	Runtime control.Status // what the main process says of itself; Version is 0 when nobody says anything
	Helper  bool           // the main process is, or is to be, "zdt run"
	// Unmanaged: zdt has never had a hand in the service.
	Unmanaged bool

	Zdt      string // the path of zdt, for the unit
	Releases string // the directory that has all releases
	Hidden   bool   // the main process does not see it
	// HostNoExec is where the file system is mounted that the releases are on, if that is mounted noexec.
	HostNoExec string

	Drain time.Duration // how long an old generation may take to finish
	Ready time.Duration // how long a new one may take until it is READY

	// Gates are those of every upgrade, in [X-Zdt].
	Gates []Gate

	Balancer  Balancer
	Host      Host
	Journal   Journal
	Resources Resources
	Live      Live
	Process   Process

	Accepted []string // the IDs that somebody has decided to live with
}

// name is that of the service, without its suffix.
func (f Facts) name() string { return strings.TrimSuffix(f.Service.Name, ".service") }

// Unit is a unit as systemd has it.
type Unit struct {
	Name string
	// Properties have the names and values of its D-Bus interface: string, bool, []string, and
	// numbers in the width that systemd gives them. Times are in µs.
	Properties map[string]any
}

// Has reports whether systemd knows the property: versions differ in what they have.
func (u Unit) Has(name string) bool { _, ok := u.Properties[name]; return ok }

// Text is a property, "" if it is absent.
func (u Unit) Text(name string) string { s, _ := u.Properties[name].(string); return s }

// Texts is a property that is a list.
func (u Unit) Texts(name string) []string { s, _ := u.Properties[name].([]string); return s }

// Is is a property that is a boolean.
func (u Unit) Is(name string) bool { b, _ := u.Properties[name].(bool); return b }

// Number is a property that counts something.
func (u Unit) Number(name string) uint64 {
	switch n := u.Properties[name].(type) {
	case uint32:
		return uint64(n)
	case uint64:
		return n
	case int32:
		return uint64(max(n, 0))
	case int64:
		return uint64(max(n, 0))
	}
	return 0
}

// endless is the value of Span for a limit that is switched off.
const endless = time.Duration(math.MaxInt64)

// Span is a property that is a time: endless for one that is switched off. It
// reports false when it is absent.
func (u Unit) Span(name string) (time.Duration, bool) {
	n, ok := u.Properties[name].(uint64)
	if n > uint64(endless/time.Microsecond) {
		return endless, ok
	}
	return time.Duration(n) * time.Microsecond, ok
}

// Commands are the argument lists of a property such as ExecReload.
func (u Unit) Commands(name string) (all [][]string) {
	commands, _ := u.Properties[name].([][]any)
	for _, c := range commands { // a(sasbttttuii): path, argv, …
		if len(c) < 2 {
			continue
		}
		if argv, ok := c[1].([]string); ok {
			all = append(all, argv)
		}
	}
	return all
}
