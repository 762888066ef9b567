package helper

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"
)

// owners says who accepted a connection.
type owners int

const (
	ownersNone     owners = iota // nobody, so far
	ownersDeferred               // nobody, and nobody will before something was sent
	ownersOurs                   // a process of the generation
	ownersOther                  // another
	ownersUnknown                // the kernel does not tell this process
)

// accepted says who accepted the connection, which this process opened and keeps open meanwhile. The error
// belongs to ownersUnknown.
//
// A socket that is not accepted yet has no inode; after that it is some process's descriptor, and
// /proc/PID/fd shows it to who may look: the same user, unless the program made itself
// undumpable or has capabilities the helper lacks, or CAP_SYS_PTRACE. Within accept(2)
// the socket has an inode and is nobody's descriptor yet: for that moment the answer is ownersOther, and wrong.
func (b band) accepted(conn net.Conn) (owners, error) {
	other, err := peerOf(conn)
	switch {
	case err != nil:
		return ownersUnknown, err
	case other.deferred:
		return ownersDeferred, nil
	case other.inode == 0:
		return ownersNone, nil
	}
	ours, err := b.holds(other.inode)
	switch {
	case ours:
		return ownersOurs, nil
	case err != nil:
		return ownersUnknown, err
	}
	return ownersOther, nil
}

// holds reports whether a process of the generation has a descriptor of the socket. An error means that not all
// could be asked.
func (b band) holds(inode uint64) (bool, error) {
	want := "socket:[" + strconv.FormatUint(inode, 10) + "]"
	// Most often it is the first one, and the table of a large host is long.
	if found, err := hasDescriptor(b.Leader, want); found {
		return true, err
	}
	var blind error
	for _, pid := range b.members(processes()) {
		found, err := hasDescriptor(pid, want)
		if found {
			return true, nil
		}
		if err != nil {
			blind = err
		}
	}
	return false, blind
}

// members are the processes of the generation: the process group, and whoever descends from one
// of it. Who left the group and has lost its parent is not told from others.
func (b band) members(table []process) []int {
	children := map[int][]int{}
	var pids []int
	seen := map[int]bool{}
	for _, p := range table {
		children[p.parent] = append(children[p.parent], p.pid)
		if p.group == b.Leader || p.pid == b.Leader {
			pids, seen[p.pid] = append(pids, p.pid), true
		}
	}
	for i := 0; i < len(pids); i++ {
		for _, child := range children[pids[i]] {
			if !seen[child] {
				pids, seen[child] = append(pids, child), true
			}
		}
	}
	return pids
}

// hasDescriptor reports whether the process has a descriptor that leads to want. A
// process that is gone has none.
func hasDescriptor(pid int, want string) (bool, error) {
	path := "/proc/" + strconv.Itoa(pid) + "/fd"
	dir, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ESRCH) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("look at the descriptors of process %d: %w", pid, err)
	}
	defer dir.Close()
	buf := make([]byte, len(want)+1) // what is longer is another
	for {
		names, err := dir.Readdirnames(256)
		for _, name := range names {
			n, linkErr := unix.Readlinkat(int(dir.Fd()), name, buf)
			if linkErr == nil && string(buf[:n]) == want {
				return true, nil
			}
			if errors.Is(linkErr, fs.ErrPermission) {
				return false, fmt.Errorf("look at the descriptors of process %d: %w", pid, linkErr)
			}
		}
		if err != nil {
			return false, nil // io.EOF, or the process has ended
		}
	}
}

// gone reports whether the peer has closed the connection.
func gone(conn net.Conn) bool {
	closed := false
	withFD(conn, func(fd int) {
		var one [1]byte
		n, _, err := unix.Recvfrom(fd, one[:], unix.MSG_PEEK|unix.MSG_DONTWAIT)
		closed = err == nil && n == 0 || err != nil && err != unix.EAGAIN && err != unix.EINTR
	})
	return closed
}

func withFD(conn net.Conn, f func(fd int)) error {
	c, ok := conn.(syscall.Conn)
	if !ok {
		return fmt.Errorf("%T has no descriptor", conn)
	}
	raw, err := c.SyscallConn()
	if err != nil {
		return err
	}
	return raw.Control(func(fd uintptr) { f(int(fd)) })
}
