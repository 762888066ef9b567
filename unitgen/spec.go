package unitgen

import (
	"path"
	"slices"
	"strings"
	"time"
)

// MinSystemd is the oldest systemd whose units Generate writes: it is the first
// that knows every setting used without a condition (ProtectProc=).
const MinSystemd = 247

// What a Spec's zero values stand for.
const (
	DefaultReadyTimeout = 30 * time.Second
	DefaultDrainTimeout = 30 * time.Second
	DefaultUnitDir      = "/etc/systemd/system"
	DefaultStateRoot    = "/var/lib/zdt"
)

// Runtime says what performs the handoff on the service's side.
type Runtime string

const (
	RuntimeLibrary Runtime = "library" // the program links package handoff
	RuntimeHelper  Runtime = "helper"  // zdt run starts the program
)

// OnFailure says what an upgrade does when a gate fails after the candidate serves.
type OnFailure string

const (
	OnFailureRollback OnFailure = "rollback" // back to the incumbent
	OnFailureFreeze   OnFailure = "freeze"   // stay, and wait for an operator's decision
)

// A Spec is everything zdt init knows about a service. The zero value of every
// field but Name, Exec and Zdt has a meaning.
type Spec struct {
	Name        string // names the units, the state directory and the runtime directory; a template's ends with "@"
	Description string // one line; default: Name

	// Instances are those of a template that are known, "1" of web@1. They are in no unit: what the units of every
	// instance share must fit each of them, and its addresses must be its own. In a template %i stands for the instance in
	// everything that is text.
	Instances []string

	Exec        string   // base name of the program; it is run as StateDir/current/Exec
	Args        []string // its arguments, each exactly as the program shall see it
	Environment []string // KEY=VALUE
	StartProbe  []string // absolute path and arguments of a command that must succeed before each start

	StateDir string // default: /var/lib/zdt/NAME, of a template NAME%i; needed with UserManager
	UnitDir  string // default: /etc/systemd/system; needed with UserManager
	Zdt      string // absolute path of zdt itself, for ExecReload= and ExecStop=

	Listen  []Listen // none: a service without sockets of systemd's
	Runtime Runtime  // default: RuntimeLibrary
	Run     []string // flags of zdt run, "--NAME=VALUE" each; for RuntimeHelper

	User        string // default: root, or with UserManager the manager's own user
	Group       string // default: User's
	DynamicUser bool

	Health       []string      // URLs asked by an upgrade
	ReadyTimeout time.Duration // from start to READY; default 30s
	DrainTimeout time.Duration // for what is under way when a generation ends; default 30s
	Bake         time.Duration // how long a candidate serves on probation; default none
	OnFailure    OnFailure     // default: OnFailureRollback

	UserManager    bool // units of systemd --user
	SystemdVersion int  // that will read the units; 0: unknown, use nothing newer than MinSystemd
}

// withDefaults fills in what the zero values stand for.
func (s Spec) withDefaults() Spec {
	def := func(p *string, v string) {
		if *p == "" {
			*p = v
		}
	}
	def(&s.Description, s.self())
	if !s.UserManager {
		def(&s.StateDir, path.Join(DefaultStateRoot, s.self()))
		def(&s.UnitDir, DefaultUnitDir)
	}
	if s.Runtime == "" {
		s.Runtime = RuntimeLibrary
	}
	if s.OnFailure == "" {
		s.OnFailure = OnFailureRollback
	}
	if s.ReadyTimeout == 0 {
		s.ReadyTimeout = DefaultReadyTimeout
	}
	if s.DrainTimeout == 0 {
		s.DrainTimeout = DefaultDrainTimeout
	}
	return s
}

// ServiceUnit returns the name of the service's unit, NAME.service.
func (s Spec) ServiceUnit() string { return s.Name + ".service" }

// SocketUnits returns the names of the socket units, in the order in which
// Listen mentions them. A socket unit has one FileDescriptorName=, so every FDName
// needs a unit of its own: NAME.socket for the sockets without a name, or else
// for the first name, and NAME.FDNAME.socket for the others. The dot is there
// because it cannot occur in a service's name: with a dash, service "web" with
// a socket "admin" would overwrite the socket of a service "web-admin".
func (s Spec) SocketUnits() []string {
	var units []string
	for _, g := range s.sockets() {
		units = append(units, g.unit)
	}
	return units
}

// socketGroup is the sockets that share a name, and so a unit.
type socketGroup struct {
	unit   string
	fdName string // "": none
	listen []Listen
}

// fileDescriptorName is what systemd passes in LISTEN_FDNAMES. Sockets without a name get
// the unit's own, as from systemd itself; package handoff knows by the suffix
// that it has to go by the address.
func (s Spec) fileDescriptorName(g socketGroup) string {
	if g.fdName == "" {
		return s.refer(g.unit)
	}
	return g.fdName
}

// sockets groups s.Listen by name, in the order of first mention.
func (s Spec) sockets() []socketGroup {
	var groups []socketGroup
	unnamed := slices.ContainsFunc(s.Listen, func(l Listen) bool { return l.FDName == "" })
	for _, l := range s.Listen {
		i := slices.IndexFunc(groups, func(g socketGroup) bool { return g.fdName == l.FDName })
		if i < 0 {
			i = len(groups)
			unit := s.Name + ".socket"
			if l.FDName != "" && (unnamed || i > 0) {
				unit = s.socketUnit(l.FDName)
			}
			groups = append(groups, socketGroup{unit: unit, fdName: l.FDName})
		}
		groups[i].listen = append(groups[i].listen, l)
	}
	return groups
}

// execPath is what ExecStart= names.
func (s Spec) execPath() string { return path.Join(s.StateDir, "current", s.Exec) }

// argv is the whole ExecStart=.
func (s Spec) argv() []string {
	words := append([]string{s.execPath()}, s.Args...)
	if s.Runtime == RuntimeHelper {
		words = append(append(append([]string{s.Zdt, "run"}, s.Run...), "--"), words...)
	}
	return words
}

// runFlag is the value of a flag of zdt run, "" when it is not given. The last one counts.
func (s Spec) runFlag(name string) (value string) {
	for _, flag := range s.Run {
		if v, ok := strings.CutPrefix(flag, "--"+name+"="); ok {
			value = v
		}
	}
	return value
}

// runtimeDir is where control.sock is, in words for the operator.
func (s Spec) runtimeDir() string {
	if s.UserManager {
		return "$XDG_RUNTIME_DIR/zdt/" + s.self()
	}
	return "/run/zdt/" + s.self()
}

// joinUnits is how a unit of s names others.
func (s Spec) joinUnits(units []string) string {
	names := make([]string, len(units))
	for i, u := range units {
		names[i] = s.refer(u)
	}
	return strings.Join(names, " ")
}
