package cmd

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/zdt-dev/zdt/dbusctl"
	"github.com/zdt-dev/zdt/handoff/control"
	"github.com/zdt-dev/zdt/handoffcheck"
	"github.com/zdt-dev/zdt/internal/netfd"
	"github.com/zdt-dev/zdt/release"
	"github.com/zdt-dev/zdt/unitgen"
)

// lastDescriptor bounds the numbers of descriptors that are looked at. A runtime has its sockets since its start, so their numbers are
// small; those of connections are not.
const lastDescriptor = 128

// releases is what is known of the current release, and of what systemd would start.
func (h *host) releases(live *handoffcheck.Live, u dbusctl.Unit) error {
	store, err := release.Open(h.paths.disk(h.paths.StateDir(h.service)), release.Options{})
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer store.Close()
	r, err := store.Current()
	switch {
	case errors.Is(err, release.ErrNoRelease), errors.Is(err, release.ErrDamaged):
		live.Damage = err.Error()
		return nil
	case errors.Is(err, release.ErrNoCurrent):
		return nil
	case err != nil:
		return err
	}
	live.Starts, live.Current = unitgen.Program(u.ExecStartPath, u.ExecStart), filepath.Join(h.paths.StateDir(h.service), "current", r.Program)
	return nil
}

// listeners are the sockets that the runtime says it has, as the kernel knows them. It needs CAP_SYS_PTRACE, or the same user and a
// process that may be dumped: without either there are none.
func (h *host) listeners(u dbusctl.Unit, s control.Status) (all []handoffcheck.Listener, err error) {
	if len(s.Sockets) == 0 {
		return nil, nil
	}
	process, err := unix.PidfdOpen(s.PID, 0)
	if errors.Is(err, unix.ESRCH) {
		return nil, errors.New("it has just ended")
	}
	if err != nil {
		return nil, os.NewSyscallError("pidfd_open", err)
	}
	defer unix.Close(process)
	// The number is that of the main process still: it could have become another's before the pidfd held it.
	if inside, err := inUnit(s.PID, unitOf(u)); err != nil || !inside {
		return nil, errors.Join(fmt.Errorf("process %d is not in the unit", s.PID), err)
	}
	held, err := h.heldBySystemd()
	if err != nil {
		return nil, err
	}
	seen := map[uint64]bool{}
	for number := 3; number <= lastDescriptor; number++ {
		fd, err := unix.PidfdGetfd(process, number, 0) // Linux 5.6
		if errors.Is(err, unix.EBADF) {
			continue
		}
		if errors.Is(err, unix.EPERM) && h.f.euid != 0 {
			return nil, nil
		}
		if err != nil {
			return nil, os.NewSyscallError("pidfd_getfd", err)
		}
		l, inode, ok := listener(fd)
		unix.Close(fd)
		if !ok || seen[inode] || !slices.ContainsFunc(s.Sockets, func(s control.Socket) bool { return s.Network == l.Network && s.Address == l.Address }) {
			continue
		}
		seen[inode] = true
		if held != nil {
			l.Held = held[inode]
			l.Loose = !l.Held
		}
		all = append(all, l)
	}
	return all, nil
}

// longestQueue is net.core.somaxconn, in zdt's network namespace; 0: not known. systemd opens sockets in that one.
func longestQueue() uint32 {
	text, err := os.ReadFile("/proc/sys/net/core/somaxconn")
	if err != nil {
		return 0
	}
	n, err := strconv.ParseUint(strings.TrimSpace(string(text)), 10, 32)
	if err != nil {
		return 0
	}
	return uint32(n)
}

// listener is what the kernel says of a descriptor, if it is a socket that can be listened on.
func listener(fd int) (l handoffcheck.Listener, inode uint64, ok bool) {
	var err error
	if l.Network, l.Address, err = netfd.Info(fd); err != nil {
		return l, 0, false
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return l, 0, false
	}
	flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFL, 0)
	l.Blocking = err == nil && flags&unix.O_NONBLOCK == 0
	if l.Network == "tcp" {
		// Of a listening socket tcpi_sacked is the length of its queue (tcp(7) does not say so, ss(8) shows it as Send-Q).
		if info, err := unix.GetsockoptTCPInfo(fd, unix.IPPROTO_TCP, unix.TCP_INFO); err == nil {
			l.Queue = info.Sacked
		}
	}
	return l, st.Ino, true
}

// heldBySystemd are the inodes of the sockets that systemd has; nil where nobody but root may look, or where systemd is not process 1.
func (h *host) heldBySystemd() (map[uint64]bool, error) {
	if h.f.globals.user || h.f.euid != 0 {
		return nil, nil
	}
	dir, err := os.Open("/proc/1/fd")
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	names, err := dir.Readdirnames(-1)
	if err != nil {
		return nil, err
	}
	held := map[uint64]bool{}
	var link [64]byte
	for _, name := range names {
		n, err := unix.Readlinkat(int(dir.Fd()), name, link[:])
		if err != nil {
			continue // closed meanwhile
		}
		if text, ok := strings.CutPrefix(string(link[:n]), "socket:["); ok {
			if inode, err := strconv.ParseUint(strings.TrimSuffix(text, "]"), 10, 64); err == nil {
				held[inode] = true
			}
		}
	}
	return held, nil
}
