package helper

import (
	"errors"
	"fmt"
	"os"
	"os/signal"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// reaper starts process groups and takes the exit status of every child, also of the
// orphans that come to the helper because it is their subreaper. Nothing else in
// the helper may wait for a child: whoever waits for any takes the others' too, and
// os/exec, which waits for its own, would then not find it.
//
// One goroutine owns the table and does all of it: the forks, the waits, the
// signals. So no child is reaped before it is in the table, and a pid that is
// in the table cannot be given to another process while something is sent to it.
type reaper struct {
	calls   chan func()
	quit    chan struct{}
	stopped chan struct{}
	// toGroup sends to the process group whose number is that of the process pidfd was
	// opened for; EINVAL: the kernel cannot.
	toGroup func(pidfd int, sig syscall.Signal) error

	kept bool // stop leaves the pidfds open; set before quit is closed

	// The goroutine's own.
	leaders   map[int]*group // whose leader is not yet reaped, by its pid
	lingering []*group       // whose leader has ended
}

// lingerInterval is how often a group without its leader is looked at when
// nothing else tells of it. Members whose parent is gone are children of the
// helper by then and tell at once; it is only for one whose parent has left the group
// and lives.
const lingerInterval = 200 * time.Millisecond

// reapBatch bounds how many children are reaped before something else has its
// turn: a program can make orphans as fast as they are reaped.
const reapBatch = 128

// pidfdProcessGroup makes pidfd_send_signal(2) send to the process group that has the number of
// the process that the pidfd was opened for, since Linux 6.9.
const pidfdProcessGroup = 1 << 2

var errStopped = errors.New("the reaper has stopped")

// startReaper makes this process the subreaper of its descendants and reaps from now on.
// inherited are groups that an earlier reaper in this process has left.
func startReaper(inherited ...*group) (*reaper, error) {
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		return nil, fmt.Errorf("become the reaper of orphans: %w", err)
	}
	r := &reaper{
		calls:   make(chan func()),
		quit:    make(chan struct{}),
		stopped: make(chan struct{}),
		toGroup: func(pidfd int, sig syscall.Signal) error {
			return unix.PidfdSendSignal(pidfd, sig, nil, pidfdProcessGroup)
		},
		leaders: map[int]*group{},
	}
	for _, g := range inherited {
		g.r = r
		if _, over := g.LeaderExit(); over {
			r.lingering = append(r.lingering, g)
			continue
		}
		r.leaders[g.leader] = g
	}
	died := make(chan os.Signal, 1)
	signal.Notify(died, unix.SIGCHLD)
	go func() {
		defer close(r.stopped)
		defer signal.Stop(died)
		r.loop(died)
	}()
	return r, nil
}

// stop ends reaping and waits until it has ended. Groups that live are left alone: their
// Done is never closed.
func (r *reaper) stop() {
	close(r.quit)
	<-r.stopped
}

// leave is stop for a helper that takes the place of this one: the groups keep their
// pidfds and can be given to startReaper. Who ends from now on is reaped by
// that.
func (r *reaper) leave() {
	r.kept = true
	r.stop()
}

func (r *reaper) loop(died <-chan os.Signal) {
	look := time.NewTicker(lingerInterval)
	defer look.Stop()
	again := make(chan struct{}, 1)
	again <- struct{}{} // what an earlier one in this process was told of
	for {
		select {
		case <-r.quit:
			if r.kept {
				return
			}
			for _, g := range r.leaders {
				unix.Close(g.pidfd)
			}
			for _, g := range r.lingering {
				unix.Close(g.pidfd)
			}
			return
		case call := <-r.calls:
			call()
			continue
		case <-died: // one signal may stand for many deaths
		case <-again:
		case <-look.C:
			if len(r.lingering) == 0 {
				continue
			}
		}
		if !r.reap() {
			select {
			case again <- struct{}{}:
			default:
			}
		}
		r.settle()
	}
}

// do has f run by the goroutine that owns the table.
func (r *reaper) do(f func()) error {
	ran := make(chan struct{})
	select {
	case r.calls <- func() { defer close(ran); f() }:
		<-ran
		return nil
	case <-r.stopped:
		return errStopped
	}
}

// reap reports whether all that have ended are reaped.
func (r *reaper) reap() bool {
	for range reapBatch {
		pid := anyEnded()
		if pid == 0 {
			return true
		}
		// It is a zombie, so its number is still its own.
		var ws syscall.WaitStatus
		if got, err := syscall.Wait4(pid, &ws, syscall.WNOHANG, nil); got != pid {
			if err == syscall.EINTR || err == syscall.ECHILD {
				continue
			}
			return true
		}
		if g := r.leaders[pid]; g != nil {
			delete(r.leaders, pid)
			r.lingering = append(r.lingering, g)
			g.exit = exitOf(ws)
			close(g.leaderDone)
		}
	}
	return false
}

// anyEnded returns a child that has ended and leaves it as it is; 0 if there is none.
func anyEnded() int {
	var info unix.Siginfo
	for {
		err := unix.Waitid(unix.P_ALL, 0, &info, unix.WEXITED|unix.WNOHANG|unix.WNOWAIT|unix.WALL, nil)
		if err == unix.EINTR {
			continue
		}
		if err != nil { // ECHILD
			return 0
		}
		// si_pid is the first member of the union, which 64-bit machines align to 16.
		return int(*(*int32)(unsafe.Add(unsafe.Pointer(&info), 16)))
	}
}

// settle ends the groups of which nothing is left.
func (r *reaper) settle() {
	var left []*group
	for _, g := range r.lingering {
		if g.populated() {
			left = append(left, g)
			continue
		}
		g.finished = true
		unix.Close(g.pidfd)
		close(g.done)
	}
	r.lingering = left
}
