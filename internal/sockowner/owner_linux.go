package sockowner

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"strconv"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Owner says who accepted a connection.
type Owner int

const (
	None     Owner = iota // nobody, so far
	Deferred              // nobody, and nobody will before something was sent (TCP_DEFER_ACCEPT)
	Mine                  // a process of the set
	Other                 // another
	Unknown               // the kernel does not tell this process
)

// Set is a set of processes: those whose answers count.
type Set struct {
	// Leader is asked first: most often it is the one, and the table of a large host is long. Whoever uses a Set keeps it from
	// being reaped meanwhile, or holds a pidfd and looks at it afterwards: the number may be another's.
	Leader int
	// Members lists all, when the leader was not the one. nil: there is only the leader.
	Members func() []int
}

// Family is the set of a process, the processes of the group it leads, and all that descend from one of them, as /proc
// shows them at the time of each question.
func Family(leader int) Set {
	return Set{Leader: leader, Members: func() []int { return Members(leader, Table()) }}
}

const (
	// otherLooks is how often a socket has to be found nowhere in the set, a millisecond apart, to be another's.
	otherLooks = 3
	// nudgeAfter is when a connection that nobody can accept before something was sent gets something. Every one is half
	// open for a moment.
	nudgeAfter = 20 * time.Millisecond
)

// ErrClosed: the peer closed the connection before it could be seen who accepted it.
var ErrClosed = errors.New("the connection was closed before it could be seen who accepted it")

// Accepted says who accepted the connection, which this process opened and keeps open meanwhile. The error
// belongs to Unknown.
//
// A socket that is not accepted yet has no inode; after that it is some process's descriptor, and
// /proc/PID/fd shows it to who may look: the same user, unless the program made itself
// undumpable or has capabilities this process lacks, or CAP_SYS_PTRACE. Within accept(2)
// the socket has an inode and is nobody's descriptor yet: for that moment the answer is Other, and wrong.
func (s Set) Accepted(conn net.Conn) (Owner, error) {
	other, err := peerOf(conn)
	switch {
	case err != nil:
		return Unknown, err
	case other.deferred:
		return Deferred, nil
	case other.inode == 0:
		return None, nil
	}
	mine, err := s.holds(other.inode)
	switch {
	case mine:
		return Mine, nil
	case err != nil:
		return Unknown, err
	}
	return Other, nil
}

// Await waits until somebody has accepted the connection and says who: Mine, Other, or with an error that says why,
// Unknown. When nobody does, it returns None or Deferred with the end of ctx or ErrClosed.
//
// nudge is called once when nobody can accept before something was sent; it may be nil. Its error ends the wait.
func (s Set) Await(ctx context.Context, conn net.Conn, nudge func() error) (Owner, error) {
	began, pause := time.Now(), 250*time.Microsecond
	for others := 0; ; {
		whose, err := s.Accepted(conn)
		switch {
		case whose == Mine, whose == Unknown:
			return whose, err
		case whose == Other:
			// Whoever accepts it just now has no descriptor yet.
			if others++; others == otherLooks {
				return Other, nil
			}
			pause = time.Millisecond
		case gone(conn):
			return None, ErrClosed
		}
		if whose == Deferred && nudge != nil && time.Since(began) > nudgeAfter {
			if err := nudge(); err != nil {
				return Deferred, err
			}
			nudge = nil
		}
		// Nothing announces that a connection was accepted.
		timer := time.NewTimer(pause)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			if whose == Other {
				whose = None // it was not looked at often enough
			}
			return whose, ctx.Err()
		}
		pause = min(2*pause, 20*time.Millisecond)
	}
}

// holds reports whether a process of the set has a descriptor of the socket. An error means that not all
// could be asked.
func (s Set) holds(inode uint64) (bool, error) {
	want := "socket:[" + strconv.FormatUint(inode, 10) + "]"
	found, blind := hasDescriptor(s.Leader, want)
	if found || s.Members == nil {
		return found, blind
	}
	for _, pid := range s.Members() {
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

// hasDescriptor reports whether the process has a descriptor that leads to want. A
// process that is gone has none.
func hasDescriptor(pid int, want string) (bool, error) {
	path := "/proc/" + strconv.Itoa(pid) + "/fd"
	dir, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ESRCH) {
		return false, hidden(pid)
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

// hidden is an error where the process lives and /proc, mounted with hidepid=, does not show it.
func hidden(pid int) error {
	if unix.Kill(pid, 0) == unix.EPERM {
		return fmt.Errorf("look at the descriptors of process %d, which /proc does not show: %w", pid, fs.ErrPermission)
	}
	return nil
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
