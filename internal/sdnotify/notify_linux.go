package sdnotify

import (
	"fmt"
	"net"
	"time"

	"golang.org/x/sys/unix"
)

// Barrier waits until systemd has processed every message sent before
// (BARRIER=1, since systemd 246), up to Timeout: systemd closes the descriptor
// that travels with it, which hangs up the pipe we keep.
func (n Notifier) Barrier() error {
	if n.Socket == "" {
		return nil
	}
	conn, err := n.dial(Timeout)
	if err != nil {
		return err
	}
	defer conn.Close()
	var pipe [2]int
	if err := unix.Pipe2(pipe[:], unix.O_CLOEXEC|unix.O_NONBLOCK); err != nil {
		return fmt.Errorf("barrier: %w", err)
	}
	defer unix.Close(pipe[0])
	err = sendRights(conn, []byte("BARRIER=1"), pipe[1:])
	unix.Close(pipe[1])
	if err != nil {
		return fmt.Errorf("barrier: %w", err)
	}
	deadline := time.Now().Add(Timeout)
	for {
		left := time.Until(deadline)
		if left <= 0 {
			return fmt.Errorf("barrier: %w", errBarrier)
		}
		// No events asked for: POLLHUP is reported all the same.
		ready, err := unix.Poll([]unix.PollFd{{Fd: int32(pipe[0])}}, int(left.Milliseconds())+1)
		if err != nil && err != unix.EINTR {
			return fmt.Errorf("barrier: %w", err)
		}
		if ready > 0 {
			return nil
		}
	}
}

// sendRights sends data with descriptors. net.UnixConn.WriteMsgUnix refuses
// connected datagram sockets.
func sendRights(conn *net.UnixConn, data []byte, fds []int) error {
	raw, err := conn.SyscallConn()
	if err != nil {
		return err
	}
	var rights []byte
	if len(fds) > 0 { // UnixRights of nothing is a control message all the same
		rights = unix.UnixRights(fds...)
	}
	var operr error
	if err := raw.Write(func(s uintptr) bool {
		operr = unix.Sendmsg(int(s), data, rights, nil, unix.MSG_NOSIGNAL)
		return operr != unix.EAGAIN
	}); err != nil {
		return err
	}
	return operr
}
