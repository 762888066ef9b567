package netfd

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// Bind opens a socket for programs to inherit: network is tcp, tcp4, tcp6,
// unix or unixpacket, which listen when Bind returns, or udp, udp4, udp6 or
// unixgram. The file of a unix socket that nobody listens on is replaced, and
// the new one stays when the descriptor is closed. With reusePort other sockets of
// this user may have the same TCP or UDP address (SO_REUSEPORT).
//
// The descriptor is the caller's, with FD_CLOEXEC and, like the ones that
// systemd passes, without O_NONBLOCK: programs that call accept(2) in a loop
// know no EAGAIN. ctx bounds the look-up of a host's name.
//
// 0.0.0.0 is all addresses of IPv4, as for systemd and every other program: package net would make it those of IPv6 as well.
func Bind(ctx context.Context, network, address string, reusePort bool) (fd int, err error) {
	s, err := bind(ctx, network, address, reusePort)
	if err != nil {
		return -1, err
	}
	fd, err = Dup(s)
	// Before O_NONBLOCK goes: with a socket that blocks, net would block too.
	s.Close()
	if err != nil {
		return -1, err
	}
	if err := unix.SetNonblock(fd, false); err != nil {
		unix.Close(fd)
		return -1, fmt.Errorf("clear O_NONBLOCK: %w", err)
	}
	return fd, nil
}

// socket is what net.Listener and net.PacketConn of this package's kinds are too.
type socket interface {
	syscall.Conn
	io.Closer
}

func bind(ctx context.Context, network, address string, reusePort bool) (socket, error) {
	var lc net.ListenConfig
	// Programs in other languages expect what systemd would have bound, plain TCP.
	// Go has asked for MPTCP by default since 1.24.
	lc.SetMultipathTCP(false)
	if (network == "tcp" || network == "udp") && strings.HasPrefix(address, "0.0.0.0:") {
		network += "4"
	}
	switch network {
	case "unix", "unixpacket", "unixgram":
		if reusePort {
			return nil, errors.New("a unix socket cannot share its address") // before 6.13 the kernel only ignores it
		}
		RemoveStaleFile(address)
	case "tcp", "tcp4", "tcp6", "udp", "udp4", "udp6":
		if reusePort {
			lc.Control = sharePort
		}
	default:
		return nil, net.UnknownNetworkError(network)
	}
	if network == "unixgram" || strings.HasPrefix(network, "udp") {
		pc, err := lc.ListenPacket(ctx, network, address)
		if err != nil {
			return nil, err
		}
		return pc.(socket), nil
	}
	ln, err := lc.Listen(ctx, network, address)
	if err != nil {
		return nil, err
	}
	KeepFile(ln)
	return ln.(socket), nil
}

// sharePort sets SO_REUSEPORT on a socket that is not bound yet.
func sharePort(_, _ string, c syscall.RawConn) error {
	var operr error
	err := c.Control(func(fd uintptr) { operr = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEPORT, 1) })
	return errors.Join(err, os.NewSyscallError("setsockopt SO_REUSEPORT", operr))
}
