package helper

import (
	"log/slog"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/zdt-dev/zdt/handoff"
)

// Options are what a helper is started with. They stay for its life; what a
// handoff may change is in App.
type Options struct {
	// Service is the name in events and statuses.
	Service string
	// ControlSocket is the path of the control socket; "" for none.
	ControlSocket string
	// Takeover is the absolute path of the socket over which another process takes the service from
	// this one, or this one from the process that is there; "" for none. See docs/containers.md.
	Takeover string
	// NotifyDir is where the notification sockets of the generations are, a
	// directory of the service's user; "" for abstract ones.
	NotifyDir string
	// Listen are bound unless sockets of their names were inherited.
	Listen []Listen
	// Workers is how many groups of the program there are side by side; less than 2: one. All inherit the
	// same sockets, unless ReusePort.
	Workers int
	// ReusePort gives each worker TCP and UDP sockets of its own to the same addresses (SO_REUSEPORT), each with
	// a queue of its own. They stay the slot's, and open, for the helper's life.
	ReusePort bool
	// HoldTimeout bounds the time a READY group waits for commit or abort when
	// whoever armed the handoff set no bound of its own.
	HoldTimeout time.Duration

	App App
	// Parse reads the unit's current ExecStart= and environment, which come with an
	// arming, as the command line was read at the start.
	Parse func(command, environ []string) (App, error)

	// Version is this zdt's, for statuses.
	Version string

	// Logger gets what happens in words for people. Default: none under
	// journald, which gets the events themselves; text on stderr elsewhere.
	Logger *slog.Logger
}

// Listen is a socket to bind.
type Listen struct {
	Name    string // FileDescriptorName=
	Network string // tcp, tcp4, tcp6, udp, udp4, udp6, unix, unixgram, unixpacket
	Address string
}

// App is how the program is started and ended: what a handoff takes from the unit
// anew.
type App struct {
	Command []string // program and arguments; {fd:NAME} is the number of a socket
	Environ []string // NAME=value
	Dir     string   // working directory; "" for the helper's

	Passing   Passing
	Readiness Readiness
	// Group: notices (sd_notify(3)) count of all processes of the group, not of the first
	// one alone.
	Group bool
	// Overlap: the next group starts beside the one that serves. Without it the old
	// one is stopped first, and clients wait in the sockets' queues meanwhile.
	Overlap bool

	// Workers is what the unit says by now of Options.Workers, which stay as they are until the service is started
	// anew; 0: nothing.
	Workers int

	Stop   syscall.Signal // asks the program to finish its requests and end
	Pause  syscall.Signal // asks it to stop accepting, when another group is READY; 0: it cannot
	Resume syscall.Signal // undoes Pause; 0: it cannot

	ReadyTimeout time.Duration // from the start to READY
	DrainTimeout time.Duration // from Stop to SIGKILL
}

// Defaults returns a with what it does not say. Command is not among it.
func (a App) Defaults() App {
	if a.Stop == 0 {
		a.Stop = syscall.SIGTERM
	}
	if a.ReadyTimeout == 0 {
		a.ReadyTimeout = handoff.DefaultReadyTimeout
	}
	if a.DrainTimeout == 0 {
		a.DrainTimeout = handoff.DefaultDrainTimeout
	}
	return a
}

// withRelease returns command with the program of another release. A release is a
// file exe at …/NAME/releases/ID/BASENAME; the unit's command leads to it by
// way of …/NAME/current/. Every word below current changes, so that an interpreter can
// have the release as an argument. Where no word does, exe is the program itself.
func withRelease(command []string, exe string) []string {
	out := append([]string(nil), command...)
	if exe == "" {
		return out
	}
	release := filepath.Dir(exe)
	current := filepath.Join(filepath.Dir(filepath.Dir(release)), "current") + "/"
	found := false
	for i, word := range out {
		if rest, ok := strings.CutPrefix(word, current); ok {
			out[i], found = filepath.Join(release, rest), true
		}
	}
	if !found {
		out[0] = exe
	}
	return out
}

// releaseFile is the first file of a release in a command, which may be an argument of an interpreter;
// path when there is none.
func releaseFile(command, pinned []string, path string) string {
	for i, word := range pinned {
		if word != command[i] {
			return word
		}
	}
	return path
}

// pinned returns command with each …/current/ in its words replaced by where that symlink
// leads now: the command that starts the same release again after the link has changed.
func pinned(command []string, resolve func(string) (string, error)) []string {
	out := append([]string(nil), command...)
	for i, word := range out {
		before, after, found := strings.Cut(word, "/current/")
		if !found || !strings.HasPrefix(word, "/") {
			continue
		}
		if release, err := resolve(before + "/current"); err == nil {
			out[i] = filepath.Join(release, after)
		}
	}
	return out
}
