package wire

import (
	"errors"

	"golang.org/x/sys/unix"
)

const msgTrunc = unix.MSG_TRUNC

// rightsSpace is room for the descriptors of one packet. Linux passes
// SCM_MAX_FD, 253, at most.
const rightsSpace = 4 * 1024

// rights packs descriptors into a control message.
func rights(fds []int) []byte {
	if len(fds) == 0 {
		return nil
	}
	return unix.UnixRights(fds...)
}

// receivedFiles unpacks the descriptors that came with a packet. A receiver
// short of descriptors gets the first few, and MSG_CTRUNC in place of an error.
func receivedFiles(control []byte) []int {
	messages, err := unix.ParseSocketControlMessage(control)
	if err != nil {
		return nil
	}
	var all []int
	for _, m := range messages {
		if fds, err := unix.ParseUnixRights(&m); err == nil {
			all = append(all, fds...)
		}
	}
	return all
}

// ConnectionReset reports that the peer has ended with something unread. Linux says so
// once, and before the packets that the peer had still sent.
func ConnectionReset(err error) bool { return errors.Is(err, unix.ECONNRESET) }

// BrokenPipe reports that the peer has ended.
func BrokenPipe(err error) bool { return errors.Is(err, unix.EPIPE) }
