package helper

import (
	"syscall"

	"golang.org/x/sys/unix"
)

// letter is a datagram as it came.
type letter struct {
	data  []byte // within the buffer it was received into
	from  sender
	fds   []int
	flags int // of recvmsg
}

// receive waits for a datagram. The descriptors with it are open, close-on-exec.
func receive(raw syscall.RawConn, buf, oob []byte) (letter, error) {
	return receiveBy(raw.Read, buf, oob)
}

// receiveWaiting is receive for one that is there already, whatever the read deadline is; unix.EAGAIN: none is.
func receiveWaiting(raw syscall.RawConn, buf, oob []byte) (letter, error) {
	return receiveBy(func(once func(fd uintptr) bool) error {
		return raw.Control(func(fd uintptr) { once(fd) })
	}, buf, oob)
}

func receiveBy(read func(func(fd uintptr) bool) error, buf, oob []byte) (letter, error) {
	var n, oobn, flags int
	var failed error
	if err := read(func(fd uintptr) bool {
		for {
			n, oobn, flags, _, failed = unix.Recvmsg(int(fd), buf, oob, unix.MSG_CMSG_CLOEXEC)
			if failed != unix.EINTR {
				return failed != unix.EAGAIN
			}
		}
	}); err != nil {
		return letter{}, err
	}
	if failed != nil {
		return letter{}, failed
	}
	got := letter{data: buf[:n], flags: flags, from: sender{PIDFD: -1}}
	messages, err := unix.ParseSocketControlMessage(oob[:oobn])
	if err != nil {
		// What was cut can end inside of a header; what is before is not lost for that.
		got.flags |= unix.MSG_CTRUNC
	}
	for _, c := range messages {
		if c.Header.Level != unix.SOL_SOCKET {
			continue
		}
		switch c.Header.Type {
		case unix.SCM_CREDENTIALS:
			if cred, err := unix.ParseUnixCredentials(&c); err == nil {
				got.from.PID, got.from.UID = int(cred.Pid), cred.Uid
			}
		case unix.SCM_RIGHTS:
			fds, _ := unix.ParseUnixRights(&c)
			got.fds = append(got.fds, fds...)
		case unix.SCM_PIDFD:
			// A negative one is the error for which there is none, as of a process that is gone.
			if fds, err := parsePIDFD(&c); err == nil && fds >= 0 {
				got.from.PIDFD = fds
			}
		}
	}
	return got, nil
}

// parsePIDFD reads a control message that looks like one of rights.
func parsePIDFD(c *unix.SocketControlMessage) (int, error) {
	rights := *c
	rights.Header.Type = unix.SCM_RIGHTS
	fds, err := unix.ParseUnixRights(&rights)
	if err != nil || len(fds) != 1 {
		return -1, unix.EINVAL
	}
	return fds[0], nil
}

func closeAll(fds []int) {
	for _, fd := range fds {
		unix.Close(fd)
	}
}
