package handoff

import (
	"errors"
	"fmt"
	"os"
	"syscall"

	"github.com/zdt-dev/zdt/internal/journalstream"
	"github.com/zdt-dev/zdt/internal/wire"
	"golang.org/x/sys/unix"
)

// cannotExecute tells a file that is the problem from a host that is short of
// something.
func cannotExecute(err error) bool {
	for _, e := range []error{unix.ENOENT, unix.EACCES, unix.EPERM, unix.ENOEXEC, unix.ENOTDIR, unix.ETXTBSY, unix.ELIBBAD, unix.ELOOP, unix.EISDIR} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}

// launch executes the candidate with the standard descriptors, the sockets at
// listenfds.Start and up, its end of the pair and what else it needs after them.
//
// syscall.ForkExec and not os/exec: the latter calls Fd on every file it passes
// and so makes sockets blocking that the incumbent still accepts on.
func launch(spec launchSpec) (*os.Process, *wire.Link, error) {
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("socketpair: %w", err)
	}
	defer unix.Close(pair[1])
	standard, release := journalstream.StandardFDs(spec.service)
	defer release()
	var files []uintptr
	for _, fd := range standard {
		files = append(files, uintptr(fd))
	}
	for _, fd := range spec.fds {
		files = append(files, uintptr(fd))
	}
	files = append(files, uintptr(pair[1]))
	for _, fd := range spec.extra {
		files = append(files, uintptr(fd))
	}
	pid, err := syscall.ForkExec(spec.exe, spec.argv, &syscall.ProcAttr{
		Dir: spec.dir, Env: spec.env, Files: files,
		Sys: &syscall.SysProcAttr{Setpgid: true}, // see killGroup
	})
	if err != nil {
		unix.Close(pair[0])
		return nil, nil, &os.PathError{Op: "execute", Path: spec.exe, Err: err}
	}
	// The child is not waited for yet, so its pid cannot have been reused;
	// from here on os.Process holds a pidfd.
	process, err := os.FindProcess(pid)
	if err != nil {
		unix.Close(pair[0])
		syscall.Kill(pid, syscall.SIGKILL)
		syscall.Wait4(pid, nil, 0, nil)
		return nil, nil, fmt.Errorf("candidate %d: %w", pid, err)
	}
	l, err := wire.NewLink(pair[0])
	if err != nil {
		process.Kill()
		process.Wait()
		return nil, nil, fmt.Errorf("candidate %d: %w", pid, err)
	}
	return process, l, nil
}

// awaitEnd waits until a child has ended and leaves it to be reaped. It reports
// false when that cannot be known.
func awaitEnd(pid int) bool {
	for {
		err := unix.Waitid(unix.P_PID, pid, nil, unix.WEXITED|unix.WNOWAIT, nil)
		if err != unix.EINTR {
			return err == nil
		}
	}
}

// killGroup ends what is left of the process group that a candidate leads.
func killGroup(pid int) { unix.Kill(-pid, unix.SIGKILL) }
