package upgrade

import (
	"fmt"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// process is a process held by a pidfd: what it is asked about is always the
// process that had the pid when it was opened, never a later one.
//
// One goroutine waits for its end; close stops and joins it.
type process struct {
	pid  int
	fd   int
	stop int // eventfd that ends the wait
	gone chan struct{}
	wg   sync.WaitGroup
}

// openProcess needs pidfd_open (Linux 5.3). A process that does not exist any
// more is no error: it is gone.
func openProcess(pid int) (*process, error) {
	p := &process{pid: pid, fd: -1, stop: -1, gone: make(chan struct{})}
	fd, err := unix.PidfdOpen(pid, 0)
	if err == unix.ESRCH {
		close(p.gone)
		return p, nil
	}
	if err != nil {
		return nil, fmt.Errorf("open process %d: %w", pid, os.NewSyscallError("pidfd_open", err))
	}
	p.fd = fd
	if p.stop, err = unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK); err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("open process %d: %w", pid, os.NewSyscallError("eventfd", err))
	}
	p.wg.Add(1)
	go p.wait()
	return p, nil
}

func (p *process) wait() {
	defer p.wg.Done()
	fds := []unix.PollFd{{Fd: int32(p.fd), Events: unix.POLLIN}, {Fd: int32(p.stop), Events: unix.POLLIN}}
	for {
		if _, err := unix.Poll(fds, -1); err == unix.EINTR {
			continue
		}
		if fds[0].Revents != 0 { // readable: it ended
			close(p.gone)
		}
		return
	}
}

// close releases the descriptors. A nil process may be closed.
func (p *process) close() {
	if p == nil || p.fd < 0 {
		return
	}
	unix.Write(p.stop, []byte{1, 0, 0, 0, 0, 0, 0, 0})
	p.wg.Wait()
	unix.Close(p.fd)
	unix.Close(p.stop)
	p.fd = -1
}

// isGone reports whether the process has ended.
func (p *process) isGone() bool {
	select {
	case <-p.gone:
		return true
	default:
		return false
	}
}

// endsWithin waits for the process's end, for d at most.
func (p *process) endsWithin(d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-p.gone:
		return true
	case <-t.C:
		return false
	}
}
