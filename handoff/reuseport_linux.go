package handoff

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

const canReusePort = true

// listenFirst opens the first socket of a group. Since SO_REUSEPORT lets all
// processes of a user share an address, whoever listens there already is
// looked for first: the error is EADDRINUSE then.
//
// Without MPTCP, which Go has asked for by default since 1.24: a group consists
// of plain TCP sockets, as systemd's are.
func listenFirst(ctx context.Context, network, address string) (*net.TCPListener, error) {
	lc := net.ListenConfig{Control: func(_, address string, c syscall.RawConn) error {
		var err error
		if cerr := c.Control(func(fd uintptr) {
			if err = probe(int(fd), address); err == nil {
				err = os.NewSyscallError("setsockopt SO_REUSEPORT", unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEPORT, 1))
			}
		}); cerr != nil {
			return cerr
		}
		return err
	}}
	lc.SetMultipathTCP(false)
	ln, err := lc.Listen(ctx, network, address)
	if err != nil {
		return nil, err
	}
	return ln.(*net.TCPListener), nil
}

// probe finds out whether somebody listens on the address that fd will be bound
// to: it binds another socket of the same kind there, without SO_REUSEPORT. It does
// have SO_REUSEADDR, with which connections in TIME_WAIT are no obstacle and
// listening sockets are one still. It never listens, so no connection can get into it.
func probe(fd int, address string) error {
	domain, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_DOMAIN)
	if err != nil {
		return os.NewSyscallError("getsockopt SO_DOMAIN", err)
	}
	sa, err := sockaddr(domain, address)
	if err != nil {
		return err
	}
	p, err := unix.Socket(domain, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return os.NewSyscallError("socket", err)
	}
	defer unix.Close(p)
	if err := copyOptions(p, fd, domain); err != nil {
		return err
	}
	if err := unix.Bind(p, sa); err != nil {
		if errors.Is(err, unix.EADDRINUSE) {
			return fmt.Errorf("another socket listens there, and the two would share the connections (is the service running twice?): %w", err)
		}
		return os.NewSyscallError("bind", err)
	}
	return nil
}

// sockaddr is the address net gives to a Control function, which has no names in it.
func sockaddr(domain int, address string) (unix.Sockaddr, error) {
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		return nil, err
	}
	number, err := strconv.ParseUint(port, 10, 16)
	if err != nil {
		return nil, fmt.Errorf("port %q: %w", port, err)
	}
	var ip netip.Addr
	if host != "" {
		if ip, err = netip.ParseAddr(host); err != nil {
			return nil, err
		}
	}
	if domain == unix.AF_INET {
		sa := &unix.SockaddrInet4{Port: int(number)}
		if ip.IsValid() {
			sa.Addr = ip.Unmap().As4()
		}
		return sa, nil
	}
	sa := &unix.SockaddrInet6{Port: int(number)}
	if ip.IsValid() {
		sa.Addr = ip.As16()
		if zone := ip.Zone(); zone != "" {
			if i, err := net.InterfaceByName(zone); err == nil {
				sa.ZoneId = uint32(i.Index)
			} else if n, err := strconv.ParseUint(zone, 10, 32); err == nil {
				sa.ZoneId = uint32(n)
			}
		}
	}
	return sa, nil
}

// bindBeside returns a socket of the kind and address of fd, which does not
// listen yet. The caller owns it.
//
// fd gets SO_REUSEPORT if it has not: a release that wants a group may
// inherit the one socket of a release that did not.
func bindBeside(fd int) (int, error) {
	get := func(option int) int {
		v, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, option)
		if err != nil {
			return 0
		}
		return v
	}
	domain := get(unix.SO_DOMAIN)
	sa, err := unix.Getsockname(fd)
	if err != nil {
		return -1, os.NewSyscallError("getsockname", err)
	}
	if !reusesPort(fd) {
		if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEPORT, 1); err != nil {
			return -1, os.NewSyscallError("setsockopt SO_REUSEPORT", err)
		}
	}
	// The protocol may be MPTCP: plain TCP could not join.
	s, err := unix.Socket(domain, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, get(unix.SO_PROTOCOL))
	if err != nil {
		return -1, os.NewSyscallError("socket", err)
	}
	err = sameNamespace(s, fd)
	if err == nil {
		err = copyOptions(s, fd, domain)
	}
	if err == nil {
		err = os.NewSyscallError("setsockopt SO_REUSEPORT", unix.SetsockoptInt(s, unix.SOL_SOCKET, unix.SO_REUSEPORT, 1))
	}
	if err == nil {
		if err = unix.Bind(s, sa); errors.Is(err, unix.EADDRINUSE) {
			err = fmt.Errorf("bind: %w: the kernel lets in only sockets of the user who bound the others; where systemd did, give the socket unit ReusePort=yes and have a unit for each socket", err)
		}
	}
	if err != nil {
		unix.Close(s)
		return -1, err
	}
	return s, nil
}

// sameNamespace reports an error when two sockets are in different network
// namespaces, as after a takeover by a process in another one: what is bound there has
// the same address and other clients. Kernels before 5.14 cannot tell.
func sameNamespace(s, other int) error {
	mine, err1 := unix.GetsockoptUint64(s, unix.SOL_SOCKET, unix.SO_NETNS_COOKIE)
	theirs, err2 := unix.GetsockoptUint64(other, unix.SOL_SOCKET, unix.SO_NETNS_COOKIE)
	if err1 == nil && err2 == nil && mine != theirs {
		return errors.New("the inherited sockets are in another network namespace, where this process can bind none: ask for as many as there are")
	}
	return nil
}

// copyOptions gives s what decides about conflicts between addresses.
func copyOptions(s, from, domain int) error {
	if err := unix.SetsockoptInt(s, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1); err != nil {
		return os.NewSyscallError("setsockopt SO_REUSEADDR", err)
	}
	if domain != unix.AF_INET6 {
		return nil
	}
	only, err := unix.GetsockoptInt(from, unix.IPPROTO_IPV6, unix.IPV6_V6ONLY)
	if err == nil {
		err = unix.SetsockoptInt(s, unix.IPPROTO_IPV6, unix.IPV6_V6ONLY, only)
	}
	return os.NewSyscallError("IPV6_V6ONLY", err)
}

// beginListen listens; the kernel makes net.core.somaxconn of the backlog.
func beginListen(fd int) error {
	return os.NewSyscallError("listen", unix.Listen(fd, 1<<16-1))
}

// reusesPort reports whether a socket shares its address.
func reusesPort(fd int) bool {
	on, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEPORT)
	return err == nil && on != 0
}

// readMigrateReq reads net.ipv4.tcp_migrate_req of this process's network
// namespace. It reports false on kernels before 5.14, which do not have it.
func readMigrateReq() (int, bool) {
	text, err := os.ReadFile("/proc/sys/net/ipv4/tcp_migrate_req")
	if err != nil {
		return 0, false
	}
	v, err := strconv.Atoi(strings.TrimSpace(string(text)))
	return v, err == nil
}

func addressInUse(err error) bool { return errors.Is(err, unix.EADDRINUSE) }
