package rehearse

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"os"
	"runtime"

	"golang.org/x/sys/unix"

	"github.com/zdt-dev/zdt/internal/sockowner"
)

// namespace is a network namespace with nothing in it but a loopback device to which every address leads.
type namespace struct{ f *os.File }

// newNamespace makes one. It ends with close and with all sockets that were opened in it. It needs CAP_SYS_ADMIN.
func newNamespace() (*namespace, error) {
	type made struct {
		f   *os.File
		err error
	}
	done := make(chan made)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread ends with the goroutine
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			done <- made{err: fmt.Errorf("make a network namespace: %w", err)}
			return
		}
		if err := furnish(); err != nil {
			done <- made{err: fmt.Errorf("set a network namespace up: %w", err)}
			return
		}
		f, err := os.Open("/proc/thread-self/ns/net")
		done <- made{f, err}
	}()
	m := <-done
	if m.err != nil {
		return nil, m.err
	}
	return &namespace{m.f}, nil
}

// openNamespace is newNamespace for a rehearsal, which there is none without.
func openNamespace() (*namespace, error) {
	ns, err := newNamespace()
	if err != nil {
		return nil, impossible("zdt has to be root, with CAP_SYS_ADMIN", "%v", err)
	}
	return ns, nil
}

func (n *namespace) close() { n.f.Close() }

// path is where others find the namespace while this process lives.
func (n *namespace) path() string { return fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), n.f.Fd()) }

// do runs f in the namespace. What f starts is not in it.
func (n *namespace) do(f func() error) error {
	done := make(chan error)
	go func() {
		runtime.LockOSThread()
		if err := unix.Setns(int(n.f.Fd()), unix.CLONE_NEWNET); err != nil {
			done <- fmt.Errorf("enter the network namespace: %w", err)
			return
		}
		done <- f()
	}()
	return <-done
}

// dial opens a connection in the namespace. The address has no name in it: there is nobody to ask for names.
func (n *namespace) dial(ctx context.Context, network, address string) (net.Conn, error) {
	var conn net.Conn
	err := n.do(func() (err error) {
		conn, err = (&net.Dialer{}).DialContext(ctx, network, address)
		return err
	})
	return conn, err
}

// whose says who accepted a connection that was opened in the namespace.
func (n *namespace) whose(ctx context.Context, conn net.Conn, pid int, nudge func() error) (sockowner.Owner, error) {
	owner := sockowner.None
	err := n.do(func() (err error) {
		owner, err = sockowner.Family(pid).Await(ctx, conn, nudge)
		return err
	})
	return owner, err
}

// furnish sets the loopback device of this thread's network namespace up, and makes every address one of it. Without
// IPv6 there is none here, and none outside.
func furnish() error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	ifr, err := unix.NewIfreq("lo")
	if err != nil {
		return err
	}
	ifr.SetUint16(unix.IFF_UP | unix.IFF_RUNNING)
	if err := unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, ifr); err != nil {
		return fmt.Errorf("set lo up: %w", err)
	}
	const lo = 1 // the first device of a namespace
	if err := routeAll(unix.AF_INET, lo); err != nil {
		return fmt.Errorf("route to lo: %w", err)
	}
	err = routeAll(unix.AF_INET6, lo)
	if errors.Is(err, unix.EAFNOSUPPORT) || errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.EACCES) {
		return nil
	}
	return err
}

// routeAll is "ip route add local default dev lo": rtnetlink(7), RTM_NEWROUTE.
func routeAll(family uint8, device uint32) error {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_ROUTE)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	const size = unix.SizeofNlMsghdr + unix.SizeofRtMsg + unix.SizeofRtAttr + 4
	m := make([]byte, size)
	e := binary.NativeEndian
	e.PutUint32(m[0:], size)
	e.PutUint16(m[4:], unix.RTM_NEWROUTE)
	e.PutUint16(m[6:], unix.NLM_F_REQUEST|unix.NLM_F_ACK|unix.NLM_F_CREATE)
	e.PutUint32(m[8:], 1)
	rt := m[unix.SizeofNlMsghdr:]
	rt[0] = family // and a prefix of no bits
	rt[4], rt[5], rt[6], rt[7] = unix.RT_TABLE_LOCAL, unix.RTPROT_BOOT, unix.RT_SCOPE_HOST, unix.RTN_LOCAL
	attr := rt[unix.SizeofRtMsg:]
	e.PutUint16(attr[0:], unix.SizeofRtAttr+4)
	e.PutUint16(attr[2:], unix.RTA_OIF)
	e.PutUint32(attr[4:], device)
	if err := unix.Sendto(fd, m, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return err
	}
	answer := make([]byte, 4096)
	n, _, err := unix.Recvfrom(fd, answer, 0)
	switch {
	case err != nil:
		return err
	case n < unix.SizeofNlMsghdr+4 || e.Uint16(answer[4:]) != unix.NLMSG_ERROR:
		return errors.New("the kernel's answer is not understood")
	}
	if code := int32(e.Uint32(answer[unix.SizeofNlMsghdr:])); code != 0 {
		return unix.Errno(-code)
	}
	return nil
}
