package helper

import (
	"fmt"
	"os"
	"os/signal"
	"runtime"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/zdt-dev/zdt/journal"
)

// handled are the signals the helper itself obeys; forwarded go to the program.
func handled() [][]os.Signal {
	return [][]os.Signal{
		{syscall.SIGUSR2}, {syscall.SIGUSR1}, {syscall.SIGTERM, syscall.SIGINT}, {syscall.SIGQUIT}, {syscall.SIGHUP},
		{syscall.SIGWINCH, syscall.SIGTTIN, syscall.SIGTTOU, syscall.SIGCONT},
	}
}

// watch begins to receive signals. Each kind has a channel of its own, so that
// a storm of one is not what another is lost in.
func (k *keeper) watch() {
	k.signals = nil
	for _, kind := range handled() {
		c := make(chan os.Signal, len(kind))
		signal.Notify(c, kind...)
		k.signals = append(k.signals, c)
	}
	// A reader of this process's output that is gone must not be its end.
	signal.Notify(make(chan os.Signal, 1), syscall.SIGPIPE)
}

// signal does what a signal asks for.
func (k *keeper) signal(s os.Signal) {
	switch s {
	case syscall.SIGUSR2:
		k.start()
	case syscall.SIGUSR1:
		if k.undecided() {
			k.undo(journal.ReasonSignal, "SIGUSR1")
		}
	case syscall.SIGQUIT:
		k.quit()
	case syscall.SIGHUP:
		k.renew()
	case syscall.SIGTERM, syscall.SIGINT:
		k.stop()
	default:
		for _, g := range k.workers() {
			g.group.Signal(s.(syscall.Signal))
		}
	}
}

// waiting are the signals that wait while a helper executes another one in its place.
func waiting() []syscall.Signal {
	return []syscall.Signal{syscall.SIGUSR1, syscall.SIGUSR2, syscall.SIGWINCH, syscall.SIGTTIN, syscall.SIGTTOU, syscall.SIGCONT}
}

// BlockSignals executes this program once more with the signals of waiting blocked,
// unless they are. It is for the first line of zdt run.
//
// Go's runtime keeps what was blocked at the start blocked in all threads but one, which
// receives what signal.Notify asks for. No thread of Go can block a signal for the others
// later.
func BlockSignals() error {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	var now, want unix.Sigset_t
	for _, s := range waiting() {
		addSignal(&want, s)
	}
	if err := unix.PthreadSigmask(unix.SIG_BLOCK, nil, &now); err != nil {
		return fmt.Errorf("look at the signals that are blocked: %w", err)
	}
	if contains(now, want) {
		return nil
	}
	if err := unix.PthreadSigmask(unix.SIG_BLOCK, &want, nil); err != nil {
		return fmt.Errorf("block signals: %w", err)
	}
	path := ownFile()
	return &os.PathError{Op: "execute", Path: path, Err: syscall.Exec(path, os.Args, os.Environ())}
}

// ownFile is a path to the file that this process runs: by its name while that is its, since ps
// and journald show the last part of it.
func ownFile() string {
	const self = "/proc/self/exe"
	path, err := os.Executable()
	if err != nil {
		return self
	}
	named, err1 := os.Stat(path)
	running, err2 := os.Stat(self)
	if err1 != nil || err2 != nil || !os.SameFile(named, running) {
		return self
	}
	return path
}

func addSignal(set *unix.Sigset_t, s syscall.Signal) {
	set.Val[(s-1)/64] |= 1 << (uint(s-1) % 64)
}

func contains(set, want unix.Sigset_t) bool {
	for i := range want.Val {
		if set.Val[i]&want.Val[i] != want.Val[i] {
			return false
		}
	}
	return true
}
