package main

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"time"

	"golang.org/x/sys/unix"
)

// perPacket is how many descriptors Linux passes in one message.
const perPacket = 253

// carrier moves connections to another process with as little as possible: packets full of descriptors one way,
// net.FileConn of each, one byte back. It is what the library is compared with.
type carrier struct{ conns []net.Conn }

// carried is what a move took: until the other process had made connections of all, and until they were closed here.
type carried struct{ Built, Closed time.Duration }

// serveCarrier accepts as many connections as it is told. For each line that it reads then, it starts another process like
// itself, moves them there, says what that took, and ends; the other one goes on.
func serveCarrier(successor bool) (err error) {
	c := &carrier{}
	if successor {
		wire, err := wireOver(3)
		if err != nil {
			return err
		}
		if err := c.take(wire); err != nil {
			return err
		}
		wire.Close()
	} else if err := c.accept(); err != nil {
		return err
	}
	var line string
	if _, err := fmt.Fscanln(os.Stdin, &line); err != nil {
		return nil // the end of the measurement
	}
	wire, err := startSuccessor()
	if err != nil {
		return err
	}
	defer wire.Close()
	r, err := c.give(wire)
	if err != nil {
		return err
	}
	return tell(r)
}

func (c *carrier) accept() error {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	defer ln.Close()
	tell(ln.Addr().String())
	var n int
	if _, err := fmt.Fscanln(os.Stdin, &n); err != nil {
		return err
	}
	for range n {
		conn, err := ln.Accept()
		if err != nil {
			return err
		}
		c.conns = append(c.conns, conn)
	}
	return tell(n)
}

// startSuccessor returns the wire to a process that waits for connections.
func startSuccessor() (*net.UnixConn, error) {
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	theirs := os.NewFile(uintptr(pair[1]), "wire")
	defer theirs.Close()
	wire, err := wireOver(pair[0])
	if err != nil {
		return nil, err
	}
	cmd := exec.Command(os.Args[0], "-serve", roleCarrierSuccessor)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.ExtraFiles = []*os.File{theirs}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	_, err = io.ReadFull(wire, make([]byte, 1))
	return wire, err
}

func wireOver(fd int) (*net.UnixConn, error) {
	file := os.NewFile(uintptr(fd), "wire")
	defer file.Close()
	conn, err := net.FileConn(file)
	if err != nil {
		return nil, err
	}
	return conn.(*net.UnixConn), nil
}

func (c *carrier) give(wire *net.UnixConn) (r carried, err error) {
	began := time.Now()
	fds := make([]int, perPacket)
	for rest := c.conns; len(rest) > 0; {
		batch := rest[:min(perPacket, len(rest))]
		rest = rest[len(batch):]
		for i, conn := range batch {
			raw, err := conn.(*net.TCPConn).SyscallConn()
			if err != nil {
				return r, err
			}
			raw.Control(func(fd uintptr) { fds[i] = int(fd) })
		}
		more := byte(0)
		if len(rest) > 0 {
			more = 1
		}
		if _, _, err := wire.WriteMsgUnix([]byte{more}, unix.UnixRights(fds[:len(batch)]...), nil); err != nil {
			return r, err
		}
	}
	if _, err := io.ReadFull(wire, make([]byte, 1)); err != nil {
		return r, err
	}
	r.Built = time.Since(began)
	for _, conn := range c.conns {
		conn.Close()
	}
	r.Closed = time.Since(began)
	return r, nil
}

func (c *carrier) take(wire *net.UnixConn) error {
	if _, err := wire.Write([]byte{0}); err != nil { // ready
		return err
	}
	more, control := []byte{1}, make([]byte, unix.CmsgSpace(4*perPacket))
	for more[0] != 0 {
		n, oobn, _, _, err := wire.ReadMsgUnix(more, control)
		if err != nil {
			return err
		}
		if n == 0 {
			return io.EOF
		}
		messages, err := unix.ParseSocketControlMessage(control[:oobn])
		if err != nil {
			return err
		}
		for _, m := range messages {
			fds, err := unix.ParseUnixRights(&m)
			if err != nil {
				return err
			}
			for _, fd := range fds {
				file := os.NewFile(uintptr(fd), "")
				conn, err := net.FileConn(file)
				if err = errors.Join(err, file.Close()); err != nil {
					return err
				}
				c.conns = append(c.conns, conn)
			}
		}
	}
	_, err := wire.Write([]byte{0})
	return err
}
