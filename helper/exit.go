//go:build linux

package helper

import (
	"os"
	"runtime"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/zdt-dev/zdt/handoff/control"
)

// Exit is how a process ended, as waitid(2) tells it.
type Exit struct {
	Code   int // cldExited, cldKilled or cldDumped; 0: it has not ended
	Status int // the exit status, or the signal's number
}

// The values of si_code, which x/sys does not have.
const (
	cldExited = 1
	cldKilled = 2
	cldDumped = 3
)

// exitOf is a wait status in waitid's words.
func exitOf(ws syscall.WaitStatus) Exit {
	switch {
	case !ws.Signaled():
		return Exit{cldExited, ws.ExitStatus()}
	case ws.CoreDump():
		return Exit{cldDumped, int(ws.Signal())}
	default:
		return Exit{cldKilled, int(ws.Signal())}
	}
}

// words are the exit in those of systemd and of the control socket.
func (e Exit) words() control.Exit {
	switch e.Code {
	case cldExited:
		return control.Exit{Code: "exited", Status: strconv.Itoa(e.Status)}
	case cldKilled:
		return control.Exit{Code: "killed", Status: signalName(e.Status)}
	case cldDumped:
		return control.Exit{Code: "dumped", Status: signalName(e.Status)}
	default:
		return control.Exit{Code: "unknown"}
	}
}

// String is the same in one line: "exited 1", "killed TERM".
func (e Exit) String() string {
	w := e.words()
	return strings.TrimSpace(w.Code + " " + w.Status)
}

// signalName returns a signal's name without SIG, as in EXIT_STATUS.
func signalName(n int) string {
	if name := unix.SignalName(syscall.Signal(n)); name != "" {
		return strings.TrimPrefix(name, "SIG")
	}
	return strconv.Itoa(n)
}

// Die ends this process the way e says, so that Restart=, RestartPreventExitStatus= and
// SuccessExitStatus= judge the program and not the helper. It does not return.
//
// The program has left its core already. A second one, of the helper, would
// only hide it, so that the end is "killed" where the program's was "dumped":
// systemd tests the signal alike in both. Where the signal does not kill, as in
// the first process of a pid namespace, the exit status is 128 + its number.
func (e Exit) Die() {
	switch e.Code {
	case cldExited:
		os.Exit(e.Status)
	case cldKilled, cldDumped:
		dieBySignal(syscall.Signal(e.Status))
		os.Exit(128 + e.Status)
	}
	os.Exit(1)
}

func dieBySignal(sig syscall.Signal) {
	// The limit alone is not heeded when the kernel pipes cores to a program
	// (core_pattern begins with |); a process that is not dumpable has none either way.
	unix.Setrlimit(unix.RLIMIT_CORE, &unix.Rlimit{})
	unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0)
	// Not os/signal.Reset: that brings back the handler of Go's runtime, which
	// prints goroutines for some signals and exits with 2.
	runtime.LockOSThread()
	setDisposition(int(sig), sigDefault)
	unblockAll()
	// To this thread: the signal is acted on before the call returns.
	unix.Tgkill(os.Getpid(), unix.Gettid(), sig)
}
