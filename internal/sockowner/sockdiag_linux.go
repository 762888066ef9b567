package sockowner

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

// peer is the other end of a connection.
type peer struct {
	inode uint64 // 0 while nobody has accepted it
	// deferred: nobody can accept it yet. The listening socket has TCP_DEFER_ACCEPT, for
	// which the kernel keeps a connection half open until the client has sent something.
	deferred bool
}

// peerOf finds the other end of a connection within this network namespace.
//
// It asks sock_diag(7), which finds one socket among many at once. Where that
// is not to be had (a unit whose RestrictAddressFamilies= is without AF_NETLINK, a kernel without the module) TCP
// is read from /proc, which lists all sockets; for unix sockets there is no other way.
func peerOf(conn net.Conn) (peer, error) {
	switch local := conn.LocalAddr().(type) {
	case *net.TCPAddr:
		here, there := unmap(local.AddrPort()), unmap(conn.RemoteAddr().(*net.TCPAddr).AddrPort())
		p, err := diagTCP(there, here)
		if err != nil {
			var procErr error
			if p, procErr = procTCP(there, here); procErr != nil {
				return peer{}, errors.Join(err, procErr)
			}
		}
		return p, nil
	case *net.UnixAddr:
		var st unix.Stat_t
		var err error
		if controlErr := withFD(conn, func(fd int) { err = unix.Fstat(fd, &st) }); controlErr != nil || err != nil {
			return peer{}, errors.Join(controlErr, err)
		}
		inode, err := diagUnix(st.Ino)
		return peer{inode: inode}, err
	default:
		return peer{}, fmt.Errorf("find the other end of a connection over %s: it is neither TCP nor a unix socket", local.Network())
	}
}

func unmap(a netip.AddrPort) netip.AddrPort {
	return netip.AddrPortFrom(a.Addr().Unmap().WithZone(""), a.Port())
}

const (
	// Of the kernel's tcp_states.h.
	tcpSynRecv = 3
	tcpListen  = 10

	// Of linux/unix_diag.h.
	udiagShowPeer = 0x4
	unixDiagPeer  = 2

	diagTimeout = 2 * time.Second
)

var errNoSocket = errors.New("the other end is not in this network namespace")

// diagTCP asks for the socket at local that is connected to remote: struct
// inet_diag_req_v2 of linux/inet_diag.h, answered with inet_diag_msg.
func diagTCP(local, remote netip.AddrPort) (peer, error) {
	req := make([]byte, 56)
	req[0], req[1] = unix.AF_INET, unix.IPPROTO_TCP
	if local.Addr().Is6() {
		req[0] = unix.AF_INET6
	}
	binary.NativeEndian.PutUint32(req[4:], ^uint32(0)) // states: all
	binary.BigEndian.PutUint16(req[8:], local.Port())
	binary.BigEndian.PutUint16(req[10:], remote.Port())
	copy(req[12:28], local.Addr().AsSlice())
	copy(req[28:44], remote.Addr().AsSlice())
	copy(req[48:56], bytes.Repeat([]byte{0xff}, 8)) // no cookie
	msg, err := diag(req)
	if err != nil {
		return peer{}, fmt.Errorf("ask sock_diag for %v: %w", local, err)
	}
	if len(msg) < 72 {
		return peer{}, fmt.Errorf("ask sock_diag for %v: an answer of %d bytes", local, len(msg))
	}
	// Without such a connection the kernel answers with who listens there.
	if msg[1] == tcpListen {
		return peer{}, fmt.Errorf("ask sock_diag for %v: %w", local, errNoSocket)
	}
	return peer{uint64(binary.NativeEndian.Uint32(msg[68:])), msg[1] == tcpSynRecv}, nil
}

// diagUnix asks for the peer of the socket with the inode: struct unix_diag_req of
// linux/unix_diag.h, answered with unix_diag_msg and an attribute.
func diagUnix(inode uint64) (uint64, error) {
	req := make([]byte, 24)
	req[0] = unix.AF_UNIX
	binary.NativeEndian.PutUint32(req[4:], ^uint32(0)) // states: all
	binary.NativeEndian.PutUint32(req[8:], uint32(inode))
	binary.NativeEndian.PutUint32(req[12:], udiagShowPeer)
	copy(req[16:24], bytes.Repeat([]byte{0xff}, 8)) // no cookie
	msg, err := diag(req)
	if err != nil {
		return 0, fmt.Errorf("ask sock_diag for the peer of a unix socket: %w", err)
	}
	for attrs := msg[min(16, len(msg)):]; len(attrs) >= 4; {
		size, kind := int(binary.NativeEndian.Uint16(attrs)), binary.NativeEndian.Uint16(attrs[2:])
		if size < 4 || size > len(attrs) {
			break
		}
		if kind == unixDiagPeer && size >= 8 {
			return uint64(binary.NativeEndian.Uint32(attrs[4:])), nil
		}
		attrs = attrs[min((size+3)&^3, len(attrs)):]
	}
	return 0, fmt.Errorf("ask sock_diag for the peer of a unix socket: %w", errNoSocket)
}

// diag asks the kernel about one socket and returns what follows the header of the answer.
func diag(request []byte) ([]byte, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, unix.NETLINK_SOCK_DIAG)
	if err != nil {
		return nil, fmt.Errorf("open a netlink socket: %w", err)
	}
	defer unix.Close(fd)
	// The kernel answers while it is asked. If ever not, this is not the place to hang.
	patience := unix.NsecToTimeval(diagTimeout.Nanoseconds())
	if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &patience); err != nil {
		return nil, err
	}
	msg := make([]byte, unix.SizeofNlMsghdr, unix.SizeofNlMsghdr+len(request))
	binary.NativeEndian.PutUint32(msg, uint32(unix.SizeofNlMsghdr+len(request)))
	binary.NativeEndian.PutUint16(msg[4:], unix.SOCK_DIAG_BY_FAMILY)
	binary.NativeEndian.PutUint16(msg[6:], unix.NLM_F_REQUEST)
	msg = append(msg, request...)
	if err := unix.Sendto(fd, msg, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return nil, err
	}
	var buf [8192]byte
	var n int
	for {
		if n, _, err = unix.Recvfrom(fd, buf[:], 0); err != unix.EINTR {
			break
		}
	}
	if err != nil {
		return nil, err
	}
	return parseDiag(buf[:n])
}

// parseDiag reads one netlink message.
func parseDiag(b []byte) ([]byte, error) {
	if len(b) < unix.SizeofNlMsghdr {
		return nil, fmt.Errorf("a netlink message of %d bytes", len(b))
	}
	size, kind := binary.NativeEndian.Uint32(b), binary.NativeEndian.Uint16(b[4:])
	if size < unix.SizeofNlMsghdr || int64(size) > int64(len(b)) {
		return nil, fmt.Errorf("a netlink message of %d bytes that says %d", len(b), size)
	}
	body := b[unix.SizeofNlMsghdr:size]
	switch {
	case kind == unix.NLMSG_ERROR && len(body) >= 4:
		return nil, unix.Errno(-int32(binary.NativeEndian.Uint32(body)))
	case kind != unix.SOCK_DIAG_BY_FAMILY:
		return nil, fmt.Errorf("a netlink message of type %d", kind)
	}
	return body, nil
}

// procTCP finds the same in proc_pid_net(5). A dual-stack socket is in tcp6, with an IPv4-mapped address.
func procTCP(local, remote netip.AddrPort) (peer, error) {
	for _, file := range []string{"/proc/self/net/tcp", "/proc/self/net/tcp6"} {
		table, err := os.ReadFile(file)
		if err != nil {
			if errors.Is(err, os.ErrNotExist) {
				continue // no IPv6
			}
			return peer{}, err
		}
		if p, found := parseProcTCP(table, local, remote); found {
			return p, nil
		}
	}
	return peer{}, fmt.Errorf("look for %v in /proc/self/net: %w", local, errNoSocket)
}

func parseProcTCP(table []byte, local, remote netip.AddrPort) (p peer, found bool) {
	for line := range bytes.Lines(table) {
		fields := bytes.Fields(line)
		if len(fields) < 10 {
			continue
		}
		if a, ok := parseProcAddress(string(fields[1])); !ok || a != local {
			continue
		}
		if a, ok := parseProcAddress(string(fields[2])); !ok || a != remote {
			continue
		}
		state, stateErr := strconv.ParseUint(string(fields[3]), 16, 8)
		inode, inodeErr := strconv.ParseUint(string(fields[9]), 10, 64)
		if stateErr == nil && inodeErr == nil {
			return peer{inode, state == tcpSynRecv}, true
		}
	}
	return peer{}, false
}

// parseProcAddress reads 0100007F:1F90: words of 32 bits as the machine has them, and the port.
func parseProcAddress(text string) (netip.AddrPort, bool) {
	host, port, found := bytes.Cut([]byte(text), []byte(":"))
	if !found || len(host) != 8 && len(host) != 32 {
		return netip.AddrPort{}, false
	}
	p, err := strconv.ParseUint(string(port), 16, 16)
	if err != nil {
		return netip.AddrPort{}, false
	}
	address := make([]byte, 0, 16)
	for ; len(host) > 0; host = host[8:] {
		word, err := strconv.ParseUint(string(host[:8]), 16, 32)
		if err != nil {
			return netip.AddrPort{}, false
		}
		address = binary.NativeEndian.AppendUint32(address, uint32(word))
	}
	a, _ := netip.AddrFromSlice(address)
	return netip.AddrPortFrom(a.Unmap(), uint16(p)), true
}

// Listens reports whether a TCP socket of this network namespace listens where a connection to address would arrive: at it, or at
// the wildcard address. A socket that is bound to one device is not found.
func Listens(address netip.AddrPort) (bool, error) {
	// The kernel looks for a connection first. There is none with port 0.
	remote := netip.AddrPortFrom(address.Addr().Unmap(), 0)
	_, err := diagTCP(unmap(address), remote)
	switch {
	case errors.Is(err, errNoSocket): // it listens
		return true, nil
	case errors.Is(err, unix.ENOENT):
		return false, nil
	case err != nil:
		return false, err
	}
	return true, nil
}
