package netfd

import (
	"fmt"
	"net"
	"os"
	"strconv"
	"syscall"

	"github.com/zdt-dev/zdt/internal/listenfds"
	"golang.org/x/sys/unix"
)

// Info asks the kernel what a descriptor is: its network (tcp, udp, unix,
// unixgram or unixpacket) and its address as package net writes it. A stream
// socket that does not listen is an error.
func Info(fd int) (network, address string, err error) {
	typ, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_TYPE)
	if err != nil {
		return "", "", fmt.Errorf("descriptor %d is not a socket: %w", fd, err)
	}
	domain, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_DOMAIN)
	if err != nil {
		return "", "", fmt.Errorf("descriptor %d: SO_DOMAIN: %w", fd, err)
	}
	switch {
	case domain == unix.AF_UNIX && typ == unix.SOCK_STREAM:
		network = "unix"
	case domain == unix.AF_UNIX && typ == unix.SOCK_DGRAM:
		network = "unixgram"
	case domain == unix.AF_UNIX && typ == unix.SOCK_SEQPACKET:
		network = "unixpacket"
	case (domain == unix.AF_INET || domain == unix.AF_INET6) && typ == unix.SOCK_STREAM:
		network = "tcp"
	case (domain == unix.AF_INET || domain == unix.AF_INET6) && typ == unix.SOCK_DGRAM:
		network = "udp"
	default:
		return "", "", fmt.Errorf("descriptor %d: sockets of domain %d, type %d are not supported", fd, domain, typ)
	}
	if typ != unix.SOCK_DGRAM {
		// A connected socket in place of a listener would make Accept fail for ever.
		if on, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ACCEPTCONN); err != nil || on == 0 {
			return "", "", fmt.Errorf("descriptor %d: a %s socket that does not listen (Accept=yes in the socket unit?)", fd, network)
		}
	}
	name, err := unix.Getsockname(fd)
	if err != nil {
		return "", "", fmt.Errorf("descriptor %d: getsockname: %w", fd, err)
	}
	switch a := name.(type) {
	case *unix.SockaddrInet4:
		address = net.JoinHostPort(net.IP(a.Addr[:]).String(), strconv.Itoa(a.Port))
	case *unix.SockaddrInet6:
		address = net.JoinHostPort(net.IP(a.Addr[:]).String(), strconv.Itoa(a.Port))
	case *unix.SockaddrUnix:
		address = a.Name
	}
	return network, address, nil
}

// Claim makes an inherited descriptor private to this process: programs
// that it starts must not get it.
func Claim(fd int) { unix.CloseOnExec(fd) }

// Dup duplicates the descriptor under a connection or listener without
// touching O_NONBLOCK, which File and Fd would clear: the flag belongs to the
// open file description that all generations share. The caller owns the result.
func Dup(s syscall.Conn) (int, error) {
	raw, err := s.SyscallConn()
	if err != nil {
		return -1, err
	}
	dup, operr := -1, error(nil)
	if err := raw.Control(func(fd uintptr) {
		dup, operr = unix.FcntlInt(fd, unix.F_DUPFD_CLOEXEC, listenfds.Start)
	}); err != nil {
		return -1, err
	}
	if operr != nil {
		return -1, fmt.Errorf("duplicate descriptor: %w", operr)
	}
	return dup, nil
}

// file returns an *os.File over a duplicate of fd that net.FileListener and
// its kin can take without making the shared socket blocking for an instant.
//
// They call File.Fd, which clears O_NONBLOCK when os.NewFile saw it set. So the
// File is made over a placeholder that is blocking and the socket is put
// under it afterwards. The caller closes the file; fd stays the caller's.
func file(fd int) (*os.File, error) {
	placeholder, err := unix.Eventfd(0, unix.EFD_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("eventfd: %w", err)
	}
	f := os.NewFile(uintptr(placeholder), "socket")
	if err := unix.Dup3(fd, placeholder, unix.O_CLOEXEC); err != nil {
		f.Close()
		return nil, fmt.Errorf("duplicate descriptor %d: %w", fd, err)
	}
	return f, nil
}

// SetNonblock makes a socket non-blocking if it is not: systemd passes sockets
// blocking unless the service says NonBlocking=yes. Nothing is changed that is
// already right.
func SetNonblock(fd int) error {
	flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFL, 0)
	if err != nil || flags&unix.O_NONBLOCK != 0 {
		return err
	}
	return unix.SetNonblock(fd, true)
}

// Close closes a descriptor.
func Close(fd int) { unix.Close(fd) }

// ListenAgain makes this process the one whom SO_PEERCRED shows to clients of
// a listening unix socket; the kernel takes the credentials at listen(2).
func ListenAgain(l *net.UnixListener) {
	raw, err := l.SyscallConn()
	if err != nil {
		return // closed
	}
	raw.Control(func(fd uintptr) { unix.Listen(int(fd), backlog) })
}

const backlog = 128
