// Package journalstream keeps the standard output of programs readable across
// restarts of systemd-journald.
package journalstream

import (
	"fmt"
	"net"
	"os"

	"golang.org/x/sys/unix"
)

// path is where systemd connects the output of services to
// (StandardOutput=journal). The protocol is that of sd_journal_stream_fd(3).
const path = "/run/systemd/journal/stdout"

// StandardFDs are descriptors 0, 1 and 2 for a program that this process starts:
// its own ones, but an output whose reader is gone is replaced. It would kill a
// program that writes a line before it is prepared for that. It happens to all
// services when journald was stopped, and systemd connects them anew only at a
// restart; doing it for each program that is started keeps the next one from being silent
// for ever. What is replaced goes to the journal under ident (SYSLOG_IDENTIFIER=), or
// nowhere while journald does not run.
//
// The caller calls release when the program has its copies.
func StandardFDs(ident string) (fds [3]int, release func()) {
	fds = [3]int{0, 1, 2}
	var spare *os.File
	release = func() {
		if spare != nil {
			spare.Close()
		}
	}
	for fd := 1; fd <= 2; fd++ {
		if !readerGone(fd) && !isPlaceholder(fd) {
			continue
		}
		if spare == nil {
			var err error
			if spare, err = open(ident); err != nil {
				spare, err = openPlaceholder()
			}
			if err != nil {
				return fds, release
			}
		}
		fds[fd] = int(spare.Fd()) // blocking, as the standard ones are
	}
	return fds, release
}

// readerGone reports whether nobody can ever read what is written to fd.
func readerGone(fd int) bool {
	fds := []unix.PollFd{{Fd: int32(fd)}} // POLLHUP and POLLERR need not be asked for
	n, err := unix.Poll(fds, 0)
	return err == nil && n == 1 && fds[0].Revents&(unix.POLLHUP|unix.POLLERR) != 0
}

// openPlaceholder opens what stands in for an output until journald is back.
// O_APPEND means nothing there but tells it from a null device that the unit or the
// program wanted.
func openPlaceholder() (*os.File, error) {
	return os.OpenFile(os.DevNull, os.O_WRONLY|os.O_APPEND, 0)
}

func isPlaceholder(fd int) bool {
	var st unix.Stat_t
	if unix.Fstat(fd, &st) != nil || st.Mode&unix.S_IFMT != unix.S_IFCHR || st.Rdev != unix.Mkdev(1, 3) {
		return false
	}
	flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFL, 0)
	return err == nil && flags&unix.O_APPEND != 0
}

func open(ident string) (*os.File, error) {
	conn, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	// Identifier, unit (journald knows better), priority LOG_DAEMON|LOG_INFO,
	// whether lines begin with <N>, and three times whether to forward them.
	if _, err := fmt.Fprintf(conn, "%s\n\n30\n1\n0\n0\n0\n", ident); err != nil {
		return nil, err
	}
	conn.CloseRead()
	return conn.File()
}
