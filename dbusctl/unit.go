package dbusctl

import (
	"context"
	"encoding/hex"
	"math"
	"slices"
	"time"

	"github.com/godbus/dbus/v5"
)

// Infinity is the value of a time limit that is switched off.
const Infinity = time.Duration(math.MaxInt64)

// NoUID is the value of Unit.UID where the unit's processes run under no user
// that systemd has resolved (it is not running, or runs as the manager does).
const NoUID = math.MaxUint32

// Unit is what systemd knew about a unit at one moment; all fields come from
// one answer. Fields that do not exist for the unit's type, or in the running
// version of systemd, are zero.
type Unit struct {
	Name             string // the primary name, also when an alias was asked for
	Description      string
	LoadState        string // loaded, not-found, bad-setting, error, masked
	ActiveState      string // active, reloading, inactive, failed, activating, deactivating
	SubState         string // of the type: running, start, reload, dead, listening …
	FragmentPath     string
	DropInPaths      []string
	UnitFileState    string // enabled, enabled-runtime, disabled, static, masked …
	InvocationID     string // 32 hex digits; a handoff does not change it
	Job              uint32 // id of the queued or running job, 0 for none
	Triggers         []string
	TriggeredBy      []string
	ActiveEnter      time.Time // when it last became active; zero: never
	ActiveExit       time.Time // when it last ceased to be active; zero: never
	InactiveExit     time.Time // when it last began to start from rest, which an automatic restart does not; zero: never
	CanReload        bool
	NeedDaemonReload bool   // a file of the unit changed since systemd read it; 252 overlooks a new drop-in directory
	LoadError        string // why LoadState is not "loaded"; may be ""
	Service                 // of a service unit
	Socket                  // of a socket unit
}

// Service is the part of [Unit] that only service units have.
type Service struct {
	Type         string // simple, exec, forking, oneshot, dbus, notify, notify-reload, idle
	NotifyAccess string // none, main, exec, all
	KillMode     string // control-group, mixed, process, none
	Restart      string // no, always, on-success, on-failure, on-abnormal, on-abort, on-watchdog

	MainPID    uint32 // 0: none
	ControlPID uint32 // of a running ExecStartPre=, ExecReload= …; 0: none
	StatusText string // the service's last STATUS=
	NRestarts  uint32 // automatic ones

	Result       string // success, exit-code, signal, core-dump, timeout, protocol, start-limit-hit …
	ReloadResult string
	// Of the last main process that ended: a CLD_ code of waitid(2) and the
	// exit status or signal; both 0 before.
	ExecMainCode   int32
	ExecMainStatus int32
	// Stopped: the unit had ceased to be active before its last main process ended, so that systemd ended that one; it did not
	// end by itself. Result tells whether that was a stop, or a limit such as the watchdog's.
	Stopped bool

	ExecStartPath string   // program of the first ExecStart= line
	ExecStart     []string // its argv, argv[0] included; variables are as written
	// ExecStartLiteral: it has the prefix ":", so variables in it are not expanded.
	ExecStartLiteral bool
	ExecReload       []string // argv of the first ExecReload= line
	Environment      []string // of Environment= only, as KEY=VALUE

	User             string // User= as written; "" is the manager's own
	UID              uint32 // of the running unit, or NoUID
	DynamicUser      bool
	ControlGroup     string // path below the cgroup root; "" when not running
	RuntimeDirectory []string

	TimeoutStart time.Duration // Infinity: none
	TimeoutStop  time.Duration // Infinity: none
	Watchdog     time.Duration // WatchdogSec=; 0: none

	// Of the control group, bytes and tasks; NoLimit: no limit or, of the current ones, not known, as without the
	// controller.
	MemoryCurrent, MemoryHigh, MemoryMax uint64
	TasksCurrent, TasksMax               uint64
}

// NoLimit is the value of a limit of a control group that is not set.
const NoLimit = math.MaxUint64

// Socket is the part of [Unit] that only socket units have. (A socket has its
// own Result and ControlPID; they stand in Service's fields.)
type Socket struct {
	Listen             []Listen
	FileDescriptorName string
	Accept             bool
	Backlog            uint32
	NAccepted          uint32
	NConnections       uint32
}

// Listen is one address of a socket unit.
type Listen struct {
	Type    string // Stream, Datagram, SequentialPacket, Netlink, FIFO, Special …
	Address string // as systemd prints it: [::]:8080, 127.0.0.1:80, /run/web.sock
}

// Unit reads the state of the unit called name, which may be an alias. When
// systemd knows no such unit the error matches ErrNoUnit, and the returned
// value still tells what systemd said: a service whose file was deleted while
// it runs is not-found and active.
func (m *Manager) Unit(ctx context.Context, name string) (Unit, error) {
	const op = "read"
	if err := checkName(op, name); err != nil {
		return Unit{}, err
	}
	u, err := m.read(ctx, op, name)
	if err != nil {
		return Unit{}, err
	}
	if u.LoadState == "not-found" {
		_, hint := classify("org.freedesktop.systemd1.NoSuchUnit", name)
		return u, &Error{Op: op, Unit: name, Err: ErrNoUnit, Detail: u.LoadError, Hint: hint}
	}
	return u, nil
}

// read fetches all properties in one call. The empty interface name means all
// interfaces of the object to systemd, as systemctl show uses it.
func (m *Manager) read(ctx context.Context, op, name string) (Unit, error) {
	var all map[string]dbus.Variant
	if err := m.call(ctx, reading, unitPath(name), propsIface+".GetAll", []any{&all}, ""); err != nil {
		return Unit{}, explain(ctx, op, name, err)
	}
	return parseUnit(all), nil
}

func parseUnit(all map[string]dbus.Variant) Unit {
	p := props(all)
	u := Unit{
		Name:             p.str("Id"),
		Description:      p.str("Description"),
		LoadState:        p.str("LoadState"),
		ActiveState:      p.str("ActiveState"),
		SubState:         p.str("SubState"),
		FragmentPath:     p.str("FragmentPath"),
		DropInPaths:      p.strs("DropInPaths"),
		UnitFileState:    p.str("UnitFileState"),
		InvocationID:     p.hex("InvocationID"),
		Triggers:         p.strs("Triggers"),
		TriggeredBy:      p.strs("TriggeredBy"),
		ActiveEnter:      p.time("ActiveEnterTimestamp"),
		ActiveExit:       p.time("ActiveExitTimestamp"),
		InactiveExit:     p.time("InactiveExitTimestamp"),
		CanReload:        p.bool("CanReload"),
		NeedDaemonReload: p.bool("NeedDaemonReload"),
	}
	if job := p.tuple("Job"); len(job) == 2 {
		u.Job, _ = job[0].(uint32)
	}
	if reason := p.tuple("LoadError"); len(reason) == 2 {
		text, _ := reason[1].(string)
		u.LoadError = oneLine(text)
	}
	u.Service = Service{
		Type:             p.str("Type"),
		NotifyAccess:     p.str("NotifyAccess"),
		KillMode:         p.str("KillMode"),
		Restart:          p.str("Restart"),
		MainPID:          p.u32("MainPID"),
		ControlPID:       p.u32("ControlPID"),
		StatusText:       p.str("StatusText"),
		NRestarts:        p.u32("NRestarts"),
		Result:           p.str("Result"),
		ReloadResult:     p.str("ReloadResult"),
		ExecMainCode:     p.i32("ExecMainCode"),
		ExecMainStatus:   p.i32("ExecMainStatus"),
		Stopped:          p.stopped(),
		Environment:      p.strs("Environment"),
		User:             p.str("User"),
		UID:              NoUID,
		DynamicUser:      p.bool("DynamicUser"),
		ControlGroup:     p.str("ControlGroup"),
		RuntimeDirectory: p.strs("RuntimeDirectory"),
		TimeoutStart:     p.usec("TimeoutStartUSec"),
		TimeoutStop:      p.usec("TimeoutStopUSec"),
		Watchdog:         p.usec("WatchdogUSec"),
		MemoryCurrent:    p.u64("MemoryCurrent"),
		MemoryHigh:       p.u64("MemoryHigh"),
		MemoryMax:        p.u64("MemoryMax"),
		TasksCurrent:     p.u64("TasksCurrent"),
		TasksMax:         p.u64("TasksMax"),
	}
	if _, ok := all["UID"]; ok {
		u.UID = p.u32("UID")
	}
	if u.Watchdog == Infinity {
		u.Watchdog = 0 // how 252 reports "not set"
	}
	u.ExecStartPath, u.ExecStart = p.exec("ExecStart")
	u.ExecStartLiteral = slices.Contains(p.execFlags("ExecStartEx"), "no-env-expand")
	_, u.ExecReload = p.exec("ExecReload")
	u.Socket = Socket{
		FileDescriptorName: p.str("FileDescriptorName"),
		Accept:             p.bool("Accept"),
		Backlog:            p.u32("Backlog"),
		NAccepted:          p.u32("NAccepted"),
		NConnections:       p.u32("NConnections"),
	}
	for _, l := range p.tuples("Listen") {
		if len(l) != 2 {
			continue
		}
		kind, _ := l[0].(string)
		address, _ := l[1].(string)
		u.Listen = append(u.Listen, Listen{Type: kind, Address: address})
	}
	return u
}

// props reads the properties of an object. A property that is absent or of an
// unexpected type reads as zero: versions of systemd differ in what they have.
type props map[string]dbus.Variant

func (p props) str(name string) string     { s, _ := p[name].Value().(string); return s }
func (p props) bool(name string) bool      { b, _ := p[name].Value().(bool); return b }
func (p props) u32(name string) uint32     { n, _ := p[name].Value().(uint32); return n }
func (p props) u64(name string) uint64     { n, _ := p[name].Value().(uint64); return n }
func (p props) i32(name string) int32      { n, _ := p[name].Value().(int32); return n }
func (p props) tuple(name string) []any    { t, _ := p[name].Value().([]any); return t }
func (p props) tuples(name string) [][]any { t, _ := p[name].Value().([][]any); return t }

func (p props) strs(name string) []string {
	s, _ := p[name].Value().([]string)
	if len(s) == 0 {
		return nil
	}
	return s
}

func (p props) hex(name string) string {
	b, _ := p[name].Value().([]byte)
	return hex.EncodeToString(b)
}

// usec is a time span in µs, for which systemd writes "no limit" as all ones.
func (p props) usec(name string) time.Duration {
	n, _ := p[name].Value().(uint64)
	if n > uint64(Infinity/time.Microsecond) {
		return Infinity
	}
	return time.Duration(n) * time.Microsecond
}

// time is a CLOCK_REALTIME timestamp in µs, 0 for never.
func (p props) time(name string) time.Time {
	n, _ := p[name].Value().(uint64)
	if n == 0 || n > math.MaxInt64 {
		return time.Time{}
	}
	return time.UnixMicro(int64(n))
}

// exec is the first command of an a(sasbttttuii): path, argv, and how it went.
// stopped compares moments of the monotonic clock: systemd notes the end of a main process before it leaves the active state
// for it, and with a stop leaves that state first (both 252 and 257). It counts only when it was left in the life of that very
// process: one that systemd started again, and that was never ready, ends later than its predecessor's unit.
func (p props) stopped() bool {
	began, left, ended := p.u64("ExecMainStartTimestampMonotonic"), p.u64("ActiveExitTimestampMonotonic"), p.u64("ExecMainExitTimestampMonotonic")
	return 0 < began && began <= left && left < ended
}

func (p props) exec(name string) (path string, argv []string) {
	commands := p.tuples(name)
	if len(commands) == 0 || len(commands[0]) < 2 {
		return "", nil
	}
	path, _ = commands[0][0].(string)
	argv, _ = commands[0][1].([]string)
	return path, argv
}

// execFlags are the prefixes of the first command of an a(sasasttttuii), by the
// names that systemd gives them.
func (p props) execFlags(name string) []string {
	commands := p.tuples(name)
	if len(commands) == 0 || len(commands[0]) < 3 {
		return nil
	}
	flags, _ := commands[0][2].([]string)
	return flags
}
