package helper

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/zdt-dev/zdt/internal/listenfds"
)

// shimWord is the first argument that makes a zdt the shim. It is no command: it
// is not in the help and a person has no use for it.
const shimWord = "__exec"

// Shim runs the program that a helper has ordered and does not return, when args (those
// behind the program's name) say that this process was started for it.
// Otherwise it returns false and has done nothing.
//
// It is for the first line of main. A variable with the program's own pid cannot
// be set before the fork, and Go runs no code between fork and exec; so the helper
// executes itself, and this code, in the process that becomes the program, sets the
// variables and executes once more.
func Shim(args []string) bool {
	if len(args) != 2 || args[0] != shimWord {
		return false
	}
	n, err := strconv.Atoi(args[1])
	if err != nil || n < 0 || n > math.MaxInt32-8 {
		return false
	}
	runtime.LockOSThread() // the signal mask is a thread's
	failed := becomeProgram(listenfds.Start + n)
	if _, err := unix.Write(reportFD(n), failed.encode()); err != nil {
		fmt.Fprintf(os.Stderr, "zdt: %s is for zdt run alone\n", shimWord)
	}
	os.Exit(127) // as a shell does
	return true
}

// reportFD is where the shim of a program with n sockets reports: behind the
// orders, which are behind the sockets.
func reportFD(n int) int { return listenfds.Start + n + 1 }

// shimFailure is what the shim could not do. On the wire: the step, four bytes of
// errno, the path.
type shimFailure struct {
	step  byte
	errno syscall.Errno
	path  string
}

const (
	stepOrders  = 'o'
	stepDir     = 'd'
	stepExecute = 'x'
)

func (f shimFailure) encode() []byte {
	return append(binary.LittleEndian.AppendUint32([]byte{f.step}, uint32(f.errno)), f.path...)
}

func decodeShimFailure(b []byte) (shimFailure, error) {
	if len(b) < 5 {
		return shimFailure{}, fmt.Errorf("report of %d bytes from the shim", len(b))
	}
	return shimFailure{b[0], syscall.Errno(binary.LittleEndian.Uint32(b[1:])), string(b[5:])}, nil
}

// asError is the failure as whoever called start wants to read it.
func (f shimFailure) asError() error {
	path := &os.PathError{Path: f.path, Err: f.errno}
	switch f.step {
	case stepDir:
		path.Op = "change to directory"
	case stepExecute:
		path.Op = "execute"
		if _, err := os.Stat(f.path); err == nil && f.errno == unix.ENOENT {
			return fmt.Errorf("%w (the file is there: what is missing is the interpreter in its #! line, or its dynamic linker)", path)
		}
		if f.errno == unix.ENOEXEC {
			return fmt.Errorf("%w (neither a program for this machine nor a script with a #! line)", path)
		}
	default:
		path.Op = "read orders"
	}
	return path
}

// becomeProgram returns only when that failed.
func becomeProgram(ordersFD int) shimFailure {
	// First of all: neither may reach the program, and the report's end tells the
	// helper that the exec succeeded.
	unix.CloseOnExec(ordersFD)
	unix.CloseOnExec(ordersFD + 1)
	p, err := readOrders(ordersFD)
	if err != nil {
		return failure(stepOrders, err, "")
	}
	if p.Dir != "" {
		if err := unix.Chdir(p.Dir); err != nil {
			return failure(stepDir, err, p.Dir)
		}
	}
	setOwnPID(p.Env, strconv.Itoa(os.Getpid()))
	keepNoOther(ordersFD)
	resetSignals(p.IgnoreSIGPIPE)
	return execute(p)
}

func failure(step byte, err error, path string) shimFailure {
	f := shimFailure{step: step, errno: unix.EINVAL, path: path}
	errors.As(err, &f.errno)
	return f
}

func readOrders(fd int) (program, error) {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return program{}, err
	}
	b := make([]byte, st.Size)
	for at := 0; at < len(b); {
		n, err := unix.Pread(fd, b[at:], int64(at))
		if err == unix.EINTR {
			continue
		}
		if err != nil || n == 0 {
			return program{}, errors.Join(err, errOrders)
		}
		at += n
	}
	return decodeOrders(b)
}

// keepNoOther lets the program have the descriptors below first and none else,
// whatever the helper may have been started with.
func keepNoOther(first int) {
	// CLOSE_RANGE_CLOEXEC is known since Linux 5.11; filters of seccomp may not know the
	// call at all.
	if unix.CloseRange(uint(first), math.MaxUint32, unix.CLOSE_RANGE_CLOEXEC) == nil {
		return
	}
	entries, _ := os.ReadDir("/proc/self/fd")
	for _, e := range entries {
		if fd, err := strconv.Atoi(e.Name()); err == nil && fd >= first {
			unix.CloseOnExec(fd)
		}
	}
}

// execute is execvpe(3): every directory of the program's PATH when the name has no
// slash. A directory that is not absolute is skipped, the name would
// depend on where the service happens to stand.
func execute(p program) shimFailure {
	if strings.Contains(p.Path, "/") {
		return failure(stepExecute, syscall.Exec(p.Path, p.Argv, p.Env), p.Path)
	}
	found := failure(stepExecute, unix.ENOENT, p.Path)
	for _, dir := range filepath.SplitList(pathOf(p.Env)) {
		if !filepath.IsAbs(dir) {
			continue
		}
		file := filepath.Join(dir, p.Path)
		switch err := syscall.Exec(file, p.Argv, p.Env); err {
		case unix.ENOENT, unix.ENOTDIR:
			if _, err := os.Lstat(file); err == nil {
				found = failure(stepExecute, unix.ENOENT, file) // it lacks its interpreter
			}
		case unix.EACCES:
			found = failure(stepExecute, err, file) // another directory may have one that can be executed
		default:
			return failure(stepExecute, err, file)
		}
	}
	return found
}

func pathOf(env []string) string {
	for _, kv := range env {
		if value, ok := strings.CutPrefix(kv, "PATH="); ok {
			return value
		}
	}
	return "/usr/local/bin:/usr/bin:/bin"
}

// Dispositions as the kernel wants them.
const (
	sigDefault = 0
	sigIgnore  = 1
)

// resetSignals makes the signals what systemd makes them for a service: default,
// none blocked. execve(2) does so for those that Go's runtime or the helper catch, and
// leaves those ignored and those blocked as they are.
func resetSignals(ignoreSIGPIPE bool) {
	for sig := 1; sig <= 64; sig++ {
		setDisposition(sig, sigDefault)
	}
	if ignoreSIGPIPE {
		setDisposition(int(unix.SIGPIPE), sigIgnore)
	}
	unblockAll()
}

// setDisposition goes past Go's runtime, which must not be asked to handle a signal
// afterwards. SIGKILL and SIGSTOP refuse, which is as well.
func setDisposition(sig int, handler uintptr) {
	// struct sigaction of the kernel on amd64 and arm64: handler, flags, restorer, mask.
	action := [4]uintptr{handler}
	unix.RawSyscall6(unix.SYS_RT_SIGACTION, uintptr(sig), uintptr(unsafe.Pointer(&action)), 0, 8, 0, 0)
}

// unblockAll is for a goroutine that is locked to its thread.
func unblockAll() {
	unix.PthreadSigmask(unix.SIG_SETMASK, &unix.Sigset_t{}, nil)
}
