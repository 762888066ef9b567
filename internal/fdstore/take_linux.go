package fdstore

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/zdt-dev/zdt/internal/netfd"
)

// Socket is a duplicate of a program's socket.
type Socket struct {
	Name string
	FD   int // the caller's, who closes it
}

// Take duplicates the sockets that are wished for out of the processes, which serve on unharmed. All of the wishes come true or
// none: without an error there is one socket for each, in their order.
//
// still says of a process that it is one of those which are meant. It is asked again when a pidfd holds the process: a
// number may have become another's since it was read.
//
// It needs CAP_SYS_PTRACE, or the same user. Linux before 5.6 has no pidfd_getfd(2): ENOSYS.
func Take(pids []int, still func(pid int) bool, wishes []Wish) (taken []Socket, err error) {
	found := make([]int, len(wishes))
	for i := range found {
		found[i] = -1
	}
	defer func() {
		if err != nil {
			for _, fd := range found {
				if fd >= 0 {
					unix.Close(fd)
				}
			}
		}
	}()
	seen := map[string]bool{}
	for _, pid := range pids {
		if err := takeFrom(pid, still, wishes, found, seen); err != nil {
			return nil, fmt.Errorf("the sockets of process %d: %w", pid, err)
		}
	}
	for i, w := range wishes {
		if found[i] < 0 {
			return nil, fmt.Errorf("no process of the service listens on %s %s", w.Network, w.Address)
		}
		taken = append(taken, Socket{w.Name, found[i]})
	}
	return taken, nil
}

// takeFrom looks at every socket of a process that was not seen before. Workers share those of their master.
func takeFrom(pid int, still func(int) bool, wishes []Wish, found []int, seen map[string]bool) error {
	process, err := unix.PidfdOpen(pid, 0)
	if errors.Is(err, unix.ESRCH) {
		return nil // it has ended
	}
	if err != nil {
		return err
	}
	defer unix.Close(process)
	if !still(pid) {
		return nil
	}
	links, err := sockets(pid)
	if err != nil {
		return err
	}
	for number, link := range links {
		if seen[link] {
			continue
		}
		seen[link] = true
		fd, err := unix.PidfdGetfd(process, number, 0)
		switch {
		case errors.Is(err, unix.EBADF), errors.Is(err, unix.ESRCH): // closed meanwhile
			continue
		case err != nil:
			return fmt.Errorf("pidfd_getfd: %w", err)
		}
		if err := grant(fd, wishes, found); err != nil {
			unix.Close(fd)
			return err
		}
	}
	return nil
}

// grant gives fd to the wish that it is for, or closes it.
func grant(fd int, wishes []Wish, found []int) error {
	network, address, err := netfd.Info(fd)
	if err != nil {
		unix.Close(fd) // a connection, or something of another kind
		return nil
	}
	for i, w := range wishes {
		switch {
		case !w.fits(network, address) || connected(fd):
		case found[i] >= 0:
			return fmt.Errorf("several sockets at %s %s (SO_REUSEPORT): clients of all but one of them would wait in vain", network, address)
		default:
			found[i] = fd
			return nil
		}
	}
	unix.Close(fd)
	return nil
}

// connected tells a datagram socket that talks to one peer from one that serves.
func connected(fd int) bool {
	_, err := unix.Getpeername(fd)
	return err == nil
}

// sockets are the descriptors of a process that are sockets, and what they are: the same text for the same socket.
func sockets(pid int) (map[int]string, error) {
	dir, err := os.Open("/proc/" + strconv.Itoa(pid) + "/fd")
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil // it has ended
	}
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	names, err := dir.Readdirnames(-1)
	if err != nil && !errors.Is(err, unix.ESRCH) && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	all := map[int]string{}
	var link [64]byte
	for _, name := range names {
		number, err := strconv.Atoi(name)
		if err != nil {
			continue
		}
		n, err := unix.Readlinkat(int(dir.Fd()), name, link[:])
		if err == nil && strings.HasPrefix(string(link[:n]), "socket:[") {
			all[number] = string(link[:n])
		}
	}
	return all, nil
}
