// confine starts a program as the engines of containers do: with the capabilities that they leave to root, and
// a seccomp filter. The scenarios use it.
//
//	confine FILTER PROGRAM [ARGUMENT...]
//
// FILTER is a file with instructions of classic BPF, as struct sock_filter has them in memory.
package main

import (
	"fmt"
	"os"
	"runtime"
	"slices"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

func main() {
	if err := confine(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "confine:", err)
		os.Exit(1)
	}
}

// kept are the capabilities that Docker, containerd and Podman leave to root by default; Podman leaves fewer.
func kept() []uintptr {
	return []uintptr{
		unix.CAP_AUDIT_WRITE, unix.CAP_CHOWN, unix.CAP_DAC_OVERRIDE, unix.CAP_FOWNER, unix.CAP_FSETID, unix.CAP_KILL, unix.CAP_MKNOD,
		unix.CAP_NET_BIND_SERVICE, unix.CAP_NET_RAW, unix.CAP_SETFCAP, unix.CAP_SETGID, unix.CAP_SETPCAP, unix.CAP_SETUID, unix.CAP_SYS_CHROOT,
	}
}

func confine(args []string) error {
	if len(args) < 2 {
		return fmt.Errorf("usage: confine FILTER PROGRAM [ARGUMENT...]")
	}
	filter, err := os.ReadFile(args[0])
	if err != nil {
		return err
	}
	const size = int(unsafe.Sizeof(unix.SockFilter{}))
	if len(filter) == 0 || len(filter)%size != 0 {
		return fmt.Errorf("%s: no filter", args[0])
	}
	// What is set here is this thread's, which is the one that executes the program.
	runtime.LockOSThread()
	for c := uintptr(0); c <= unix.CAP_LAST_CAP; c++ {
		if slices.Contains(kept(), c) {
			continue
		}
		if err := unix.Prctl(unix.PR_CAPBSET_DROP, c, 0, 0, 0); err != nil && err != unix.EINVAL { // unknown to this kernel
			return fmt.Errorf("drop capability %d: %w", c, err)
		}
	}
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return err
	}
	prog := unix.SockFprog{Len: uint16(len(filter) / size), Filter: (*unix.SockFilter)(unsafe.Pointer(&filter[0]))}
	if err := unix.Prctl(unix.PR_SET_SECCOMP, unix.SECCOMP_MODE_FILTER, uintptr(unsafe.Pointer(&prog)), 0, 0); err != nil {
		return fmt.Errorf("load the filter: %w", err)
	}
	return &os.PathError{Op: "execute", Path: args[1], Err: syscall.Exec(args[1], args[1:], os.Environ())}
}
