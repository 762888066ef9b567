package guest

import (
	"context"
	"errors"
	"fmt"
	"net"
	"runtime"
	"strings"

	"golang.org/x/sys/unix"
)

const (
	netNamespace   = unix.CLONE_NEWNET
	mountNamespace = unix.CLONE_NEWNS
	allNamespaces  = unix.CLONE_NEWNS | unix.CLONE_NEWPID | unix.CLONE_NEWUTS | unix.CLONE_NEWIPC | unix.CLONE_NEWNET | unix.CLONE_NEWCGROUP
)

// enter runs fn on a thread that is in the given namespaces of the guest. What fn starts on other goroutines is not.
func (g *Guest) enter(namespaces int, fn func() error) error {
	return onDisposableThread(func() error {
		// Threads share their root directory; one that changes its mount namespace must not (setns(2), EINVAL).
		if namespaces&mountNamespace != 0 {
			if err := unix.Unshare(unix.CLONE_FS); err != nil {
				return fmt.Errorf("unshare root directory: %w", err)
			}
		}
		// A pidfd stands for all namespaces of its process since Linux 5.8.
		if err := unix.Setns(int(g.pidfd.Fd()), namespaces); err != nil {
			return fmt.Errorf("enter guest: %w", err)
		}
		return fn()
	})
}

// onDisposableThread runs fn on a thread that ends after it, so that fn may change what cannot be changed back.
func onDisposableThread(fn func() error) error {
	j := newJob(fn)
	go func() {
		runtime.LockOSThread()
		if unix.Gettid() == unix.Getpid() {
			// Go never ends the main thread, it would stay in the guest's namespaces for ever, and /proc/self with it.
			// While this goroutine sits on it, another one gets another thread.
			defer runtime.UnlockOSThread()
			j.done <- onDisposableThread(fn)
			return
		}
		// Never unlocked: Go ends the thread together with the goroutine.
		j.run()
	}()
	return <-j.done
}

// job is a function that one goroutine runs for another.
type job struct {
	fn   func() error
	done chan error // buffered
}

func newJob(fn func() error) job { return job{fn: fn, done: make(chan error, 1)} }

func (j job) run() {
	err := errors.New("function ended its goroutine") // t.FailNow and the like
	defer func() { j.done <- err }()
	err = j.fn()
}

// Do runs fn on a thread that is in the guest's network namespace and otherwise on the host. Sockets made by fn stay
// in the guest's network wherever they are used later. fn must not change the thread any further, and not rely on
// other goroutines: what those do happens on the host.
func (g *Guest) Do(fn func() error) error {
	select {
	case <-g.closing:
		return errors.New("guest is closed")
	default:
	}
	j := newJob(fn)
	select {
	case g.netJobs <- j: // an idle thread that is inside already
	default:
		g.threads.Go(func() { g.serveNet(j) })
	}
	return <-j.done
}

// serveNet runs the job and all that follow, until the guest is closed. A new thread for each job costs half as
// much again, and load generators dial a thousand times each second.
func (g *Guest) serveNet(first job) {
	err := g.enter(netNamespace, func() error {
		first.run()
		for {
			select {
			case j := <-g.netJobs:
				j.run()
			case <-g.closing:
				return nil
			}
		}
	})
	if err != nil {
		select {
		case first.done <- err: // it never ran
		default:
		}
	}
}

// Dial connects to an address inside the guest as root, as [net.Dialer.DialContext] does: tcp, udp and unix, where unix
// paths are the guest's. The connection belongs to the caller and works on any goroutine of the host process. A unix
// server of the guest sees the peer's user but no pid, as this process has none in there.
func (g *Guest) Dial(ctx context.Context, network, addr string) (net.Conn, error) {
	return g.DialAs(ctx, 0, network, addr)
}

// DialAs is Dial as another user, whom a unix server sees as its peer. A user's own bus, for one, admits nobody else.
func (g *Guest) DialAs(ctx context.Context, uid int, network, addr string) (net.Conn, error) {
	var conn net.Conn
	dial := func() (err error) {
		// Without the race between address families that the delay arranges, net dials on the calling goroutine alone.
		d := net.Dialer{FallbackDelay: -1}
		conn, err = d.DialContext(ctx, network, addr)
		return err
	}
	if uid == 0 && !strings.HasPrefix(network, "unix") {
		err := g.Do(dial)
		return conn, err
	}
	err := g.enter(netNamespace|mountNamespace, func() error {
		if err := becomeUser(uid); err != nil {
			return fmt.Errorf("become user %d: %w", uid, err)
		}
		return dial()
	})
	return conn, err
}

// becomeUser gives the calling thread, which is disposable, another user and group. The raw calls of the kernel do
// that; the functions of package syscall would change all threads of the process.
func becomeUser(uid int) error {
	if uid == 0 {
		return nil
	}
	id := uintptr(uid)
	for _, call := range [][4]uintptr{
		{unix.SYS_SETGROUPS, 0, 0, 0},
		{unix.SYS_SETRESGID, id, id, id},
		{unix.SYS_SETRESUID, id, id, id},
	} {
		if _, _, errno := unix.RawSyscall(call[0], call[1], call[2], call[3]); errno != 0 {
			return errno
		}
	}
	return nil
}
