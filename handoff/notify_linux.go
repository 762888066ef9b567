package handoff

import (
	"fmt"
	"time"

	"golang.org/x/sys/unix"
)

// barrier waits until systemd has processed every message sent before
// (BARRIER=1, since systemd 246): systemd closes the descriptor that travels
// with it, which hangs up the pipe we keep.
func (n notifier) barrier() error {
	if n.socket == "" {
		return nil
	}
	conn, err := n.dial()
	if err != nil {
		return err
	}
	defer conn.Close()
	var pipe [2]int
	if err := unix.Pipe2(pipe[:], unix.O_CLOEXEC|unix.O_NONBLOCK); err != nil {
		return fmt.Errorf("barrier: %w", err)
	}
	defer unix.Close(pipe[0])
	_, _, err = conn.WriteMsgUnix([]byte("BARRIER=1"), unix.UnixRights(pipe[1]), nil)
	unix.Close(pipe[1])
	if err != nil {
		return fmt.Errorf("barrier: %w", err)
	}
	deadline := time.Now().Add(notifyTimeout)
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
