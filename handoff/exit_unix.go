//go:build unix

package handoff

import (
	"os"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/zdt-dev/zdt/handoff/control"
)

// exitOf puts a process's end in systemd's words.
func exitOf(state *os.ProcessState, err error) control.Exit {
	if err != nil {
		return control.Exit{Code: "unknown", Status: err.Error()}
	}
	ws := state.Sys().(syscall.WaitStatus)
	switch {
	case !ws.Signaled():
		return control.Exit{Code: "exited", Status: strconv.Itoa(ws.ExitStatus())}
	case ws.CoreDump():
		return control.Exit{Code: "dumped", Status: signalName(ws.Signal())}
	default:
		return control.Exit{Code: "killed", Status: signalName(ws.Signal())}
	}
}

// signalName returns a signal's name without SIG, as in EXIT_STATUS.
func signalName(s syscall.Signal) string {
	if name := unix.SignalName(s); name != "" {
		return strings.TrimPrefix(name, "SIG")
	}
	return strconv.Itoa(int(s))
}
