package memfile

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// Write returns a file that holds data, whose name /proc shows. It is the caller's,
// with FD_CLOEXEC; its offset is undefined.
func Write(name string, data []byte) (fd int, err error) {
	// Linux 6.3 to 6.5 can be told to refuse any other (vm.memfd_noexec=2), and all since
	// 6.3 complain in the log. Those before do not know the flag.
	fd, err = unix.MemfdCreate(name, unix.MFD_CLOEXEC|unix.MFD_NOEXEC_SEAL)
	if errors.Is(err, unix.EINVAL) {
		fd, err = unix.MemfdCreate(name, unix.MFD_CLOEXEC)
	}
	if err != nil {
		return -1, fmt.Errorf("memfd_create: %w", err)
	}
	for off := 0; off < len(data); {
		n, err := unix.Pwrite(fd, data[off:], int64(off))
		if err != nil && !errors.Is(err, unix.EINTR) {
			unix.Close(fd)
			return -1, fmt.Errorf("write %s: %w", name, err)
		}
		off += max(n, 0)
	}
	return fd, nil
}
