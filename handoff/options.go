package handoff

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"github.com/zdt-dev/zdt/handoff/control"
)

// Defaults of Options. All are meant for a service behind clients on a
// network: long enough for a slow request, short enough for an operator who waits.
const (
	DefaultReadyTimeout   = 30 * time.Second
	DefaultHoldTimeout    = time.Minute
	DefaultDrainTimeout   = 30 * time.Second
	DefaultIdleGrace      = 5 * time.Second
	DefaultStopGrace      = 500 * time.Millisecond
	DefaultReleaseTimeout = 5 * time.Second
)

// Options configure a Handoff. The zero value is what most services want.
//
// ZDT_READY_TIMEOUT, ZDT_HOLD_TIMEOUT, ZDT_DRAIN_TIMEOUT, ZDT_STREAM_TIMEOUT
// and ZDT_IDLE_GRACE in the environment (Go durations, as in "45s") override
// what the program asked for: they come from the unit, where the operator wrote
// them. Open refuses values it cannot read.
//
// Under "zdt run" it is that which hands over, between groups of processes that it starts, and
// tells the events. It sets ZDT_GENERATION: the program is that generation then, and
// writes no events of its own to the journal. A Logger still gets them in words.
type Options struct {
	// Service is the name in events and statuses. Default: $ZDT_SERVICE, else
	// the name of the program.
	Service string

	// ControlSocket is the path of the control socket. Default:
	// control.sock in $RUNTIME_DIRECTORY (of several that of RuntimeDirectory=zdt/NAME); without one there is no control
	// socket and "zdt upgrade" cannot work, a bare SIGUSR2 can. "-" turns it off.
	// ZDT_CONTROL_SOCKET in the environment overrides it: "zdt run" says "-" there, since it
	// has that socket itself.
	ControlSocket string

	// Takeover is the path of a unix socket in a directory that old and new
	// process share. A process that was not started by its predecessor, as in
	// another container, finds the service there and takes its sockets and
	// connections over, as if the service had started it: its mount, pid and
	// network namespaces may be others. When nobody listens there the process is the
	// first generation, and listens. Both have to run as the same user.
	// ZDT_TAKEOVER in the environment overrides it; "-" turns it off, and so does
	// nothing at all. docs/containers.md tells more. Linux only.
	Takeover string

	// Exe is the file a bare SIGUSR2 executes. Default: the path this process
	// was started by (argv[0] made absolute), looked up anew each time, so
	// that a symlink in it leads to the release of that moment.
	Exe string

	// ReadyTimeout bounds the time from fork to READY.
	ReadyTimeout time.Duration
	// HoldTimeout bounds the time a READY candidate waits for commit or abort
	// when whoever armed the handoff set no bound of its own.
	HoldTimeout time.Duration
	// DrainTimeout bounds how long requests and tasks may go on after commit
	// or SIGTERM; what is not finished then is cut and counted.
	DrainTimeout time.Duration
	// StreamTimeout is the same bound for connections that are not HTTP
	// requests: hijacked ones and those of a protocol of the program's own.
	// Default: DrainTimeout.
	StreamTimeout time.Duration
	// IdleGrace is how long an idle connection that cannot move is kept in a
	// drain so that a request already on its way is still answered. The answer says
	// "Connection: close".
	IdleGrace time.Duration
	// StopGrace is IdleGrace when the service as a whole stops.
	StopGrace time.Duration
	// ReleaseTimeout bounds the OnRelease hooks.
	ReleaseTimeout time.Duration

	// ManualReady makes the program say READY by calling Ready. Without it
	// Serve says it as soon as every socket opened by Listen and ListenPacket
	// is being served.
	ManualReady bool

	// Health is asked in the incumbent after the candidate's READY and before
	// a commit that nobody else decides; an error aborts the handoff. ctx ends with HoldTimeout.
	Health func(ctx context.Context) error

	// VerifyMoves compares, for each connection that moves between generations,
	// what the kernel says of it before and after: that it is the same socket, the
	// bytes not yet read and not yet acknowledged, the counters of TCP_INFO and, with
	// CAP_NET_ADMIN over the network namespace, the sequence numbers. Whatever the
	// client cannot have done meanwhile is logged and counted; the connection moves
	// all the same. ZDT_VERIFY_MOVES=yes in the environment turns it on too. It is
	// meant for tests and for the doubtful.
	//
	// Reading the sequence numbers puts the socket into TCP_REPAIR for some
	// microseconds, twice a move. A process killed in one of them leaves no
	// connection in that mode: the other generation restores it. The exception is the
	// sender, killed while it alone holds the connection: that one is lost without a
	// word to the client. Linux only; elsewhere nothing moves.
	VerifyMoves bool

	// Logger gets what happens in words for people. Default: none under
	// journald, which gets the events themselves; text on stderr elsewhere.
	Logger *slog.Logger

	generation int // of a group that "zdt run" has started; 0: nobody has
}

// withDefaults returns o with the environment's overrides and the defaults.
func (o Options) withDefaults(getenv func(string) string) (Options, error) {
	for _, d := range []struct {
		name  string
		value *time.Duration
		def   time.Duration
	}{
		{"ZDT_READY_TIMEOUT", &o.ReadyTimeout, DefaultReadyTimeout},
		{"ZDT_HOLD_TIMEOUT", &o.HoldTimeout, DefaultHoldTimeout},
		{"ZDT_DRAIN_TIMEOUT", &o.DrainTimeout, DefaultDrainTimeout},
		{"ZDT_STREAM_TIMEOUT", &o.StreamTimeout, 0},
		{"ZDT_IDLE_GRACE", &o.IdleGrace, DefaultIdleGrace},
		{"", &o.StopGrace, DefaultStopGrace},
		{"", &o.ReleaseTimeout, DefaultReleaseTimeout},
	} {
		if *d.value < 0 {
			return o, fmt.Errorf("handoff options: negative duration %s", *d.value)
		}
		if *d.value == 0 {
			*d.value = d.def
		}
		text := ""
		if d.name != "" {
			text = getenv(d.name)
		}
		if text == "" {
			continue
		}
		v, err := time.ParseDuration(text)
		if err != nil || v <= 0 {
			return o, fmt.Errorf("environment %s=%q: want a positive Go duration such as 30s", d.name, text)
		}
		*d.value = v
	}
	if o.StreamTimeout == 0 {
		o.StreamTimeout = o.DrainTimeout
	}
	switch text := getenv("ZDT_VERIFY_MOVES"); text {
	case "":
	case "yes", "1", "true":
		o.VerifyMoves = true
	case "no", "0", "false":
		o.VerifyMoves = false
	default:
		return o, fmt.Errorf("environment ZDT_VERIFY_MOVES=%q: want yes or no", text)
	}
	if text := getenv("ZDT_GENERATION"); text != "" {
		n, err := strconv.Atoi(text)
		if err != nil || n < 1 {
			return o, fmt.Errorf("environment ZDT_GENERATION=%q: want a number from 1 on", text)
		}
		o.generation = n
	}
	if o.Service == "" {
		o.Service = getenv("ZDT_SERVICE")
	}
	if o.Service == "" {
		o.Service = filepath.Base(os.Args[0])
	}
	if text := getenv("ZDT_TAKEOVER"); text != "" {
		o.Takeover = text
	}
	switch {
	case o.Takeover == "-":
		o.Takeover = ""
	case o.Takeover != "" && !filepath.IsAbs(o.Takeover):
		return o, fmt.Errorf("takeover socket %q: want an absolute path", o.Takeover)
	}
	if text := getenv("ZDT_CONTROL_SOCKET"); text != "" {
		o.ControlSocket = text
	}
	switch {
	case o.ControlSocket == "-":
		o.ControlSocket = ""
	case o.ControlSocket == "":
		if dir := control.Directory(getenv("RUNTIME_DIRECTORY")); dir != "" {
			o.ControlSocket = filepath.Join(dir, "control.sock")
		}
	}
	return o, nil
}
