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
	done := make(chan error, 1)
	go func() {
		// Never unlocked: the thread belongs to the guest now, and Go ends it together with the goroutine.
		runtime.LockOSThread()
		err := errors.New("function ended its goroutine") // t.FailNow and the like
		defer func() { done <- err }()
		// Threads share their root directory; one that changes its mount namespace must not (setns(2), EINVAL).
		if namespaces&mountNamespace != 0 {
			if err = unix.Unshare(unix.CLONE_FS); err != nil {
				err = fmt.Errorf("unshare root directory: %w", err)
				return
			}
		}
		// A pidfd stands for all namespaces of its process since Linux 5.8.
		if err = unix.Setns(int(g.pidfd.Fd()), namespaces); err != nil {
			err = fmt.Errorf("enter guest: %w", err)
			return
		}
		err = errors.New("function ended its goroutine")
		err = fn()
	}()
	return <-done
}

// Do runs fn on a thread that is in the guest's network namespace and otherwise on the host. Sockets made by fn stay
// in the guest's network wherever they are used later. fn must not leave its goroutine (t.FailNow) or rely on others:
// what they do happens on the host.
func (g *Guest) Do(fn func() error) error { return g.enter(netNamespace, fn) }

// Dial connects to an address inside the guest, as [net.Dialer.DialContext] does: tcp, udp and unix, where unix paths
// are the guest's. The connection belongs to the caller and works on any goroutine of the host process.
func (g *Guest) Dial(ctx context.Context, network, addr string) (net.Conn, error) {
	namespaces := netNamespace
	if strings.HasPrefix(network, "unix") {
		namespaces |= mountNamespace
	}
	var conn net.Conn
	err := g.enter(namespaces, func() (err error) {
		// Without the delay's race between address families, net dials on the calling goroutine alone.
		d := net.Dialer{FallbackDelay: -1}
		conn, err = d.DialContext(ctx, network, addr)
		return err
	})
	return conn, err
}
