package handoff

import (
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"net"
	"net/netip"
	"os"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/zdt-dev/zdt/internal/memfile"
	"github.com/zdt-dev/zdt/internal/wire"
)

// batchesTo returns how a mover sends parked connections to the other end of l.
func batchesTo(l *wire.Link) func(batch uint64, load []*parked) error {
	return func(batch uint64, load []*parked) error { return sendBatch(l, batch, load) }
}

// sendBatch sends parked connections. The kernel holds a reference of its own
// to each descriptor until the receiver has it; ours stay ours.
func sendBatch(l *wire.Link, batch uint64, load []*parked) error {
	var m manifest
	fds := make([]int, 1, len(load)+1)
	for _, p := range load {
		fd, err := borrowFD(p.conn.net)
		if err != nil {
			return &unfitError{fmt.Errorf("descriptor: %w", err)} // somebody has closed what is under it
		}
		fds = append(fds, fd)
		m.Connections = append(m.Connections, p.cargo)
	}
	data, err := json.Marshal(m)
	if err != nil {
		return fmt.Errorf("encode manifest: %w", err)
	}
	if len(data) > maxManifest {
		return &unfitError{fmt.Errorf("the record has %d bytes, %d are possible", len(data), maxManifest)}
	}
	// In a file, because sessions may be larger than a packet can be.
	if fds[0], err = memfile.Write("zdt-manifest", data); err != nil {
		return err
	}
	defer unix.Close(fds[0])
	return l.SendWithin(wire.BatchTimeout, wire.Message{Type: wire.Move, Batch: batch, Count: len(load)}, fds...)
}

// borrowFD returns the descriptor of a parked connection, which nobody closes
// before it is unparked.
func borrowFD(c net.Conn) (int, error) {
	raw, err := c.(syscall.Conn).SyscallConn()
	if err != nil {
		return -1, err
	}
	fd := -1
	err = raw.Control(func(n uintptr) { fd = int(n) })
	return fd, err
}

// readManifest reads a batch's records from fd, which stays the caller's.
func readManifest(fd, count int) ([]cargo, error) {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return nil, fmt.Errorf("manifest: %w", err)
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG || st.Size > maxManifest {
		return nil, fmt.Errorf("%w: manifest of %d bytes, mode %o", wire.ErrPacket, st.Size, st.Mode)
	}
	data := make([]byte, st.Size)
	for off := 0; off < len(data); {
		n, err := unix.Pread(fd, data[off:], int64(off))
		if err != nil || n == 0 {
			return nil, fmt.Errorf("read manifest at %d of %d: %w", off, len(data), errors.Join(err, wire.ErrPacket))
		}
		off += n
	}
	return decodeManifest(data, count)
}

// builder builds connections over received descriptors.
type builder struct {
	// One file serves for a whole batch: net.FileConn duplicates what is under
	// it, so that the received descriptor itself is closed. See fileOf for why
	// not a file over the descriptor.
	file *os.File
}

// descriptorRoom is the number from which on descriptors are left free: an
// eighth of those that this process may have.
func descriptorRoom() int {
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil || limit.Cur > math.MaxInt32 {
		return math.MaxInt32
	}
	return int(limit.Cur - limit.Cur/8)
}

func newBuilder() (*builder, error) {
	placeholder, err := unix.Eventfd(0, unix.EFD_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("eventfd: %w", err)
	}
	return &builder{os.NewFile(uintptr(placeholder), "connection")}, nil
}

func (b *builder) close() { b.file.Close() }

// connectionNetwork tells "tcp" and "unix" stream connections, and nothing else.
func connectionNetwork(fd int) (network string, err error) {
	option := func(name int) (value int) {
		if err == nil {
			value, err = unix.GetsockoptInt(fd, unix.SOL_SOCKET, name)
		}
		return value
	}
	listening, protocol := option(unix.SO_ACCEPTCONN), option(unix.SO_PROTOCOL)
	switch {
	case err != nil:
		return "", fmt.Errorf("descriptor is no connection: %w", errors.Join(err, wire.ErrPacket))
	case listening != 0:
		return "", fmt.Errorf("%w: a listening socket does not move", wire.ErrPacket)
	case protocol == unix.IPPROTO_TCP, protocol == unix.IPPROTO_MPTCP:
		return "tcp", nil
	}
	domain, typ := option(unix.SO_DOMAIN), option(unix.SO_TYPE)
	if err != nil || domain != unix.AF_UNIX || typ != unix.SOCK_STREAM {
		return "", fmt.Errorf("%w: a socket of domain %d, type %d, protocol %d does not move", wire.ErrPacket, domain, typ, protocol)
	}
	return "unix", nil
}

// localAddress is where a connection was accepted.
func localAddress(fd int) (network, address string) {
	name, err := unix.Getsockname(fd)
	if err != nil {
		return "", ""
	}
	switch a := name.(type) {
	case *unix.SockaddrInet4:
		return "tcp", netip.AddrPortFrom(netip.AddrFrom4(a.Addr), uint16(a.Port)).String()
	case *unix.SockaddrInet6: // of a dual-stack socket, perhaps an IPv4 address within
		return "tcp", netip.AddrPortFrom(netip.AddrFrom16(a.Addr).Unmap(), uint16(a.Port)).String()
	case *unix.SockaddrUnix:
		return "unix", a.Name
	}
	return "", ""
}

// peerAddress is the client of a TCP connection; nil of another one, which net
// knows. The error says that there is none any more.
func peerAddress(fd int, network string) (net.Addr, error) {
	if network != "tcp" {
		return nil, nil
	}
	name, err := unix.Getpeername(fd)
	if err != nil {
		return nil, fmt.Errorf("its client has reset it: %w", err)
	}
	return tcpAddress(name), nil
}

// tcpAddress is nil for what is no address of TCP.
func tcpAddress(name unix.Sockaddr) net.Addr {
	switch a := name.(type) {
	case *unix.SockaddrInet4:
		return net.TCPAddrFromAddrPort(netip.AddrPortFrom(netip.AddrFrom4(a.Addr), uint16(a.Port)))
	case *unix.SockaddrInet6:
		ip := netip.AddrFrom16(a.Addr).Unmap() // of a dual-stack socket, perhaps an IPv4 address within
		if a.ZoneId != 0 {
			ip = ip.WithZone(strconv.FormatUint(uint64(a.ZoneId), 10))
		}
		return net.TCPAddrFromAddrPort(netip.AddrPortFrom(ip, uint16(a.Port)))
	}
	return nil
}

// build returns the connection over fd, which stays the caller's and is one
// according to connectionNetwork.
func (b *builder) build(fd int) (net.Conn, error) {
	if err := unix.Dup3(fd, int(b.file.Fd()), unix.O_CLOEXEC); err != nil {
		return nil, fmt.Errorf("duplicate descriptor: %w", err)
	}
	return net.FileConn(b.file)
}

// readable waits until the connection has something to read, or has ended,
// and reads nothing: what comes stays in the kernel, where it can move.
func readable(c net.Conn) error {
	raw, err := c.(syscall.Conn).SyscallConn()
	if err != nil {
		return err
	}
	var one [1]byte
	return raw.Read(func(fd uintptr) bool {
		_, _, err := unix.Recvfrom(int(fd), one[:], unix.MSG_PEEK|unix.MSG_DONTWAIT)
		return !errors.Is(err, unix.EAGAIN)
	})
}
