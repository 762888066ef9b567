package handoff

import (
	"errors"
	"net"
	"syscall"

	"github.com/zdt-dev/zdt/internal/listenfds"
	"github.com/zdt-dev/zdt/internal/netfd"
	"golang.org/x/sys/unix"
)

// emptyQueue accepts everything that waits in a listening socket. It returns
// what it has accepted also with an error, which is one of those that leave
// connections in the queue: too many open files, out of memory.
//
// By accept4(2) and not by Accept, which a deadline in the past would end before it
// has looked, and one in the future only some time after the queue is empty.
func emptyQueue(ln syscall.Conn) ([]inQueue, error) {
	raw, err := ln.SyscallConn()
	if err != nil {
		return nil, err
	}
	var conns []inQueue
	var failed error
	err = raw.Control(func(fd uintptr) {
		var spare spareFDs
		if failed = spare.take(int(fd)); failed != nil {
			return
		}
		defer spare.release()
		for {
			conn, peer, err := unix.Accept4(int(fd), unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC)
			switch {
			case err == nil:
			case errors.Is(err, unix.EAGAIN):
				return
			case errors.Is(err, unix.EINTR), errors.Is(err, unix.ECONNABORTED), errors.Is(err, unix.EPROTO):
				continue // accept(2): the error of one connection
			default:
				failed = err
				return
			}
			var c net.Conn
			if c, failed = netfd.From(conn, net.FileConn); failed != nil {
				spare.release()
				c, err = netfd.From(conn, net.FileConn)
			}
			netfd.Close(conn)
			if err == nil {
				conns = append(conns, inQueue{c, tcpAddress(peer)})
			}
			if failed != nil {
				return
			}
		}
	})
	return conns, errors.Join(failed, err)
}

// spareFDs are descriptors to give up when there are no others: a connection
// that was accepted shall not be lost because it takes two more to make a net.Conn of it.
type spareFDs []int

func (s *spareFDs) take(fd int) error {
	for range 2 {
		dup, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, listenfds.Start)
		if err != nil {
			s.release()
			return err
		}
		*s = append(*s, dup)
	}
	return nil
}

func (s *spareFDs) release() {
	for _, fd := range *s {
		netfd.Close(fd)
	}
	*s = nil
}
