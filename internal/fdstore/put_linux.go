package fdstore

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/zdt-dev/zdt/internal/sdnotify"
)

// Put has systemd keep a socket of each for the service, and returns when it has looked at them. They stay the
// caller's, too. Whether systemd kept them says NFileDescriptorStore of the service: one that has no room left, or does not
// listen to this process, says nothing.
//
// systemd drops a socket again on which poll(2) reports POLLHUP (FDPOLL=, since systemd 246), as it does for one that
// somebody has shut down. That is meant to be: nobody could connect to it.
func Put(n sdnotify.Notifier, sockets []Socket) error {
	if n.Socket == "" {
		return errors.New("$NOTIFY_SOCKET is not set: systemd does not listen to this process (NotifyAccess=exec)")
	}
	for _, s := range sockets {
		if err := n.SendFDs([]string{"FDSTORE=1", "FDNAME=" + s.Name}, s.FD); err != nil {
			return fmt.Errorf("store socket %q: %w", s.Name, err)
		}
	}
	return n.Barrier()
}

// Close closes the duplicates.
func Close(sockets []Socket) {
	for _, s := range sockets {
		unix.Close(s.FD)
	}
}
