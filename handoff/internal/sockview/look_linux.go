package sockview

import (
	"fmt"
	"net/netip"
	"runtime"
	"strconv"
	"unsafe"

	"golang.org/x/sys/unix"
)

// steadyTries is how often the kernel is asked until nothing happened to the
// connection meanwhile. With nobody reading, a peer that sends fills the receive
// buffer and stops; it takes a very fast one to outlast the tries.
const steadyTries = 32

// Look looks at a connected stream socket. fd stays the caller's.
//
// With repair the sequence numbers are read too. For that the socket is put into
// TCP_REPAIR for a few microseconds, in which nobody else may read from it,
// write to it or close it: reads would fail with EPERM and a write could end up in
// the wrong queue. Where the kernel refuses (no CAP_NET_ADMIN over the
// socket's network namespace, Multipath TCP) the view lacks them, and Repair is false.
//
// A process killed in those microseconds leaves the mode on: whoever holds
// another descriptor of the socket calls restore or leaveRepair. If nobody does, the kernel
// destroys the connection without a word to the peer.
func Look(fd int, repair bool) (View, error) {
	v := View{}
	if err := v.identify(fd); err != nil {
		return View{}, err
	}
	tcp := v.Socket == "tcp"
	if tcp && repair {
		if err := leaveRepair(fd); err != nil {
			return View{}, err
		}
	}
	// Each question is answered by itself. When the counters are the same before
	// and after the others were answered, then all answers are of one moment.
	v.Unsteady = true
	for range steadyTries {
		first, last := tcpInfo{}, tcpInfo{}
		if tcp {
			if err := first.read(fd); err != nil {
				return View{}, fmt.Errorf("look at connection %d: TCP_INFO: %w", fd, err)
			}
		}
		if err := v.queues(fd); err != nil {
			return View{}, err
		}
		if !tcp {
			v.Unsteady = false
			break
		}
		v.take(first)
		if err := last.read(fd); err != nil {
			return View{}, fmt.Errorf("look at connection %d: TCP_INFO: %w", fd, err)
		}
		if !first.same(last) {
			continue
		}
		if repair {
			// In the mode and with the send queue chosen, the kernel takes what waits to
			// be sent for sent as soon as an acknowledgement comes. It would be sent again
			// after the retransmission timeout; so that queue is left alone.
			seq := sequences{withSend: first.waits() == 0}
			if err := seq.read(fd); err != nil {
				return View{}, err
			}
			v.Repair, v.RcvSeq, v.SndSeq = seq.known, uint32(seq.rcv), uint32(seq.snd)
			if err := last.read(fd); err != nil {
				return View{}, fmt.Errorf("look at connection %d: TCP_INFO: %w", fd, err)
			}
			if !first.same(last) {
				continue
			}
		}
		v.Unsteady = false
		break
	}
	return v, nil
}

// identify fills in what a connection is.
func (v *View) identify(fd int) error {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return fmt.Errorf("look at connection %d: fstat: %w", fd, err)
	}
	v.Inode = st.Ino
	domain, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_DOMAIN)
	if err != nil {
		return fmt.Errorf("look at connection %d: SO_DOMAIN: %w", fd, err)
	}
	typ, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_TYPE)
	if err != nil {
		return fmt.Errorf("look at connection %d: SO_TYPE: %w", fd, err)
	}
	protocol, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_PROTOCOL)
	if err != nil {
		return fmt.Errorf("look at connection %d: SO_PROTOCOL: %w", fd, err)
	}
	reuse, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR)
	if err != nil {
		return fmt.Errorf("look at connection %d: SO_REUSEADDR: %w", fd, err)
	}
	v.ReuseAddr = reuse != 0
	v.Cookie, _ = unix.GetsockoptUint64(fd, unix.SOL_SOCKET, unix.SO_COOKIE) // before Linux 4.12 there is none
	inet := domain == unix.AF_INET || domain == unix.AF_INET6
	switch {
	case domain == unix.AF_UNIX && typ == unix.SOCK_STREAM:
		v.Socket = "unix"
		return nil // the names say less than the inode, and need not be text
	case inet && typ == unix.SOCK_STREAM && protocol == unix.IPPROTO_TCP:
		v.Socket = "tcp"
	case inet && typ == unix.SOCK_STREAM && protocol == unix.IPPROTO_MPTCP:
		// TCP_INFO and TCP_REPAIR are those of a subflow there, or refused.
		v.Socket = "mptcp"
	default:
		return fmt.Errorf("look at connection %d: no stream socket of TCP or unix (domain %d, type %d, protocol %d)", fd, domain, typ, protocol)
	}
	local, err := unix.Getsockname(fd)
	if err != nil {
		return fmt.Errorf("look at connection %d: getsockname: %w", fd, err)
	}
	v.Local = addressText(local)
	v.Remote = ""
	if remote, err := unix.Getpeername(fd); err == nil { // ENOTCONN when it was reset
		v.Remote = addressText(remote)
	}
	return nil
}

func addressText(sa unix.Sockaddr) string {
	switch a := sa.(type) {
	case *unix.SockaddrInet4:
		return netip.AddrPortFrom(netip.AddrFrom4(a.Addr), uint16(a.Port)).String()
	case *unix.SockaddrInet6:
		ip := netip.AddrFrom16(a.Addr)
		if a.ZoneId != 0 {
			ip = ip.WithZone(strconv.FormatUint(uint64(a.ZoneId), 10))
		}
		return netip.AddrPortFrom(ip, uint16(a.Port)).String()
	}
	return ""
}

// queues fills in what waits in the socket.
func (v *View) queues(fd int) error {
	unread, err := unix.IoctlGetInt(fd, unix.SIOCINQ)
	if err != nil {
		return fmt.Errorf("look at connection %d: SIOCINQ: %w", fd, err)
	}
	unsent, err := unix.IoctlGetInt(fd, unix.SIOCOUTQ)
	if err != nil {
		return fmt.Errorf("look at connection %d: SIOCOUTQ: %w", fd, err)
	}
	v.Unread, v.Unsent = int64(unread), int64(unsent)
	fds := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLPRI}}
	n, err := unix.Poll(fds, 0)
	v.Urgent = err == nil && n == 1 && fds[0].Revents&unix.POLLPRI != 0
	return nil
}

func (v *View) take(i tcpInfo) {
	v.State = tcpState(i.info.State)
	v.Counted = i.has(unsafe.Offsetof(i.info.Bytes_received) + unsafe.Sizeof(i.info.Bytes_received))
	v.BytesReceived, v.BytesAcked = i.info.Bytes_received, i.info.Bytes_acked
	v.SegsIn, v.SegsOut = i.info.Segs_in, i.info.Segs_out
}

// tcpInfo is TCP_INFO, which has grown: the kernel fills in as much as it knows.
type tcpInfo struct {
	info unix.TCPInfo
	size uint32
}

func (i *tcpInfo) read(fd int) error {
	i.size = uint32(unsafe.Sizeof(i.info))
	_, _, errno := unix.Syscall6(unix.SYS_GETSOCKOPT, uintptr(fd), unix.SOL_TCP, unix.TCP_INFO,
		uintptr(unsafe.Pointer(&i.info)), uintptr(unsafe.Pointer(&i.size)), 0)
	if errno != 0 {
		return errno
	}
	return nil
}

// has reports whether the kernel knows the field that ends there.
func (i *tcpInfo) has(end uintptr) bool { return uintptr(i.size) >= end }

// same reports whether nothing was received or acknowledged between the two.
func (i *tcpInfo) same(j tcpInfo) bool {
	return i.info.State == j.info.State && i.info.Bytes_received == j.info.Bytes_received && i.info.Bytes_acked == j.info.Bytes_acked
}

// waits returns how many bytes were written and never sent, 1 where the kernel
// does not say (before Linux 4.6).
func (i *tcpInfo) waits() uint32 {
	if !i.has(unsafe.Offsetof(i.info.Notsent_bytes) + unsafe.Sizeof(i.info.Notsent_bytes)) {
		return 1
	}
	return i.info.Notsent_bytes
}

// The queues of TCP_REPAIR_QUEUE.
const (
	tcpRecvQueue = 1
	tcpSendQueue = 2
)

// sequences are the sequence numbers of a connection.
type sequences struct {
	withSend bool // read the send queue's too

	known    bool
	rcv, snd int32

	// Room for the system calls, so that they need none of their own.
	mask, blocked unix.Sigset_t
	value, size   int32
	errno         unix.Errno // of leaving the mode
}

// read reads them. That the kernel refuses is no error, that it does not let
// the socket go again is.
func (s *sequences) read(fd int) error {
	for i := range s.mask.Val {
		s.mask.Val[i] = ^s.mask.Val[i]
	}
	runtime.LockOSThread()
	s.look(uintptr(fd))
	runtime.UnlockOSThread()
	if s.errno != 0 {
		return fmt.Errorf("take connection %d out of TCP_REPAIR: %w", fd, s.errno)
	}
	return nil
}

// look is the time in which the socket is in TCP_REPAIR. Nothing stops it but SIGKILL,
// SIGSTOP and the kernel's own scheduling: signals are blocked, that of Go's
// preemption with them, and neither this function nor those it calls give
// Go's scheduler or its garbage collector an opportunity.
//
//go:nosplit
//go:norace
func (s *sequences) look(fd uintptr) {
	unix.RawSyscall6(unix.SYS_RT_SIGPROCMASK, unix.SIG_SETMASK,
		uintptr(unsafe.Pointer(&s.mask)), uintptr(unsafe.Pointer(&s.blocked)), kernelSigsetSize, 0, 0)
	// Leaving the mode turns SO_REUSEADDR off. Without it on all connections of
	// a port nobody can listen on that port anew.
	reuse := s.get(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR) == 0 && s.value != 0
	if s.set(fd, unix.SOL_TCP, unix.TCP_REPAIR, unix.TCP_REPAIR_ON) == 0 {
		if s.set(fd, unix.SOL_TCP, unix.TCP_REPAIR_QUEUE, tcpRecvQueue) == 0 && s.get(fd, unix.SOL_TCP, unix.TCP_QUEUE_SEQ) == 0 {
			s.rcv, s.known = s.value, true
		}
		if s.withSend && s.set(fd, unix.SOL_TCP, unix.TCP_REPAIR_QUEUE, tcpSendQueue) == 0 && s.get(fd, unix.SOL_TCP, unix.TCP_QUEUE_SEQ) == 0 {
			s.snd = s.value
		}
		s.leave(fd, reuse)
	}
	unix.RawSyscall6(unix.SYS_RT_SIGPROCMASK, unix.SIG_SETMASK,
		uintptr(unsafe.Pointer(&s.blocked)), 0, kernelSigsetSize, 0, 0)
}

// kernelSigsetSize is what rt_sigprocmask wants to hear; only MIPS differs, and
// looks with its signals on.
const kernelSigsetSize = 8

// leave ends the mode without a packet (Linux 4.19), or with a window probe.
//
//go:nosplit
//go:norace
func (s *sequences) leave(fd uintptr, reuse bool) {
	s.errno = s.set(fd, unix.SOL_TCP, unix.TCP_REPAIR, unix.TCP_REPAIR_OFF_NO_WP)
	if s.errno == unix.EINVAL {
		s.errno = s.set(fd, unix.SOL_TCP, unix.TCP_REPAIR, unix.TCP_REPAIR_OFF)
	}
	if reuse && s.errno == 0 {
		s.errno = s.set(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1)
	}
}

//go:nosplit
//go:norace
func (s *sequences) set(fd, level, option uintptr, value int32) unix.Errno {
	s.value = value
	_, _, errno := unix.RawSyscall6(unix.SYS_SETSOCKOPT, fd, level, option, uintptr(unsafe.Pointer(&s.value)), 4, 0)
	return errno
}

//go:nosplit
//go:norace
func (s *sequences) get(fd, level, option uintptr) unix.Errno {
	s.size = 4
	_, _, errno := unix.RawSyscall6(unix.SYS_GETSOCKOPT, fd, level, option,
		uintptr(unsafe.Pointer(&s.value)), uintptr(unsafe.Pointer(&s.size)), 0)
	return errno
}

// leaveRepair puts a socket that a killed process left in TCP_REPAIR back to
// normal, and does nothing to any other. fd stays the caller's.
//
// Asking needs no capability, leaving takes CAP_NET_ADMIN: without it the error says so, and the
// connection cannot be used. SO_REUSEADDR, which the mode has overwritten, is
// turned on, as it is for all that came from a listener of Go or systemd.
func leaveRepair(fd int) error {
	var s sequences
	if s.get(uintptr(fd), unix.SOL_TCP, unix.TCP_REPAIR) != 0 || s.value == 0 {
		return nil // normal, or a socket that does not know the mode
	}
	if s.leave(uintptr(fd), true); s.errno != 0 {
		return fmt.Errorf("take connection %d out of TCP_REPAIR: %w", fd, s.errno)
	}
	return nil
}

// Restore is leaveRepair for who has a view from before: also when the other
// process was killed just after it left TCP_REPAIR it restores SO_REUSEADDR.
func (before View) Restore(fd int) error {
	if err := leaveRepair(fd); err != nil || !before.ReuseAddr {
		return err
	}
	if on, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR); err != nil || on != 0 {
		return err
	}
	if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1); err != nil {
		return fmt.Errorf("set SO_REUSEADDR on connection %d: %w", fd, err)
	}
	return nil
}
