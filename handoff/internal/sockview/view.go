// Package sockview looks at a connection through the kernel's eyes, so that what
// arrived in one process can be compared with what another one sent.
package sockview

import "fmt"

// View is what the kernel says of a connection at one moment. It travels
// on the wire beside the descriptor, so that the receiver can compare what it
// got with what was sent. Numbers that the kernel did not give are 0: they are
// not compared.
type View struct {
	Socket string `json:"socket"`           // tcp, mptcp or unix
	Inode  uint64 `json:"inode,omitempty"`  // of the socket object: the same in all processes and namespaces
	Cookie uint64 `json:"cookie,omitempty"` // SO_COOKIE: as the inode, but never used again (Linux 4.12)
	Local  string `json:"local,omitempty"`  // address and port; TCP alone
	Remote string `json:"remote,omitempty"` // empty too when the connection is closed

	Unread int64 `json:"unread"` // SIOCINQ: bytes received and not read, without the end of the stream
	// Unsent is SIOCOUTQ. TCP: bytes written and not acknowledged, 1 for the
	// end of the stream included. Unix: the memory held by what the peer has not read.
	Unsent int64 `json:"unsent"`

	Urgent    bool `json:"urgent,omitempty"`    // urgent data is there: unread ends before it
	ReuseAddr bool `json:"reuseaddr,omitempty"` // SO_REUSEADDR
	Unsteady  bool `json:"unsteady,omitempty"`  // bytes kept coming while the kernel was asked: the numbers do not add up

	// TCP_INFO.
	State         tcpState `json:"state,omitempty"`
	Counted       bool     `json:"counted,omitempty"`        // the next two are known (Linux 4.1)
	BytesReceived uint64   `json:"bytes_received,omitempty"` // in order, 1 for the end of the stream included
	BytesAcked    uint64   `json:"bytes_acked,omitempty"`    // by the peer, likewise
	SegsIn        uint32   `json:"segs_in,omitempty"`        // Linux 4.2; wraps around
	SegsOut       uint32   `json:"segs_out,omitempty"`

	// Read in TCP_REPAIR.
	Repair bool   `json:"repair,omitempty"` // false: not asked for, or no CAP_NET_ADMIN
	RcvSeq uint32 `json:"rcv_seq,omitempty"`
	SndSeq uint32 `json:"snd_seq,omitempty"` // of the next byte to be written; 0 too while bytes wait to be sent for the first time
}

// tcpState is the kernel's number of the state of a TCP connection.
type tcpState uint8

const (
	tcpEstablished tcpState = iota + 1
	tcpSynSent
	tcpSynRecv
	tcpFinWait1
	tcpFinWait2
	tcpTimeWait
	tcpClose
	tcpCloseWait
	tcpLastAck
	tcpListen
	tcpClosing
)

func (s tcpState) String() string {
	switch s {
	case tcpEstablished:
		return "ESTABLISHED"
	case tcpSynSent:
		return "SYN_SENT"
	case tcpSynRecv:
		return "SYN_RECV"
	case tcpFinWait1:
		return "FIN_WAIT1"
	case tcpFinWait2:
		return "FIN_WAIT2"
	case tcpTimeWait:
		return "TIME_WAIT"
	case tcpClose:
		return "CLOSE"
	case tcpCloseWait:
		return "CLOSE_WAIT"
	case tcpLastAck:
		return "LAST_ACK"
	case tcpListen:
		return "LISTEN"
	case tcpClosing:
		return "CLOSING"
	}
	return fmt.Sprintf("state %d", uint8(s))
}

// ended reports whether the peer's end of the stream has been received.
func (s tcpState) ended() bool {
	switch s {
	case tcpCloseWait, tcpClosing, tcpLastAck, tcpTimeWait:
		return true
	}
	return false
}

// mayBecome reports whether the peer alone, or the death of the connection, can
// lead from s to t.
func (s tcpState) mayBecome(t tcpState) bool {
	if s == t || t == tcpClose {
		return true
	}
	switch s {
	case tcpSynRecv: // accepted with TCP_FASTOPEN
		return t == tcpEstablished || t == tcpCloseWait
	case tcpEstablished:
		return t == tcpCloseWait
	case tcpFinWait1:
		return t == tcpFinWait2 || t == tcpClosing || t == tcpTimeWait
	case tcpFinWait2, tcpClosing:
		return t == tcpTimeWait
	}
	return false
}

// Compare returns the differences between two looks at a connection that
// was moved, a sentence each; none when the move was clean. Between the looks
// nobody on this side has read, written or shut down. What the peer may have
// done meanwhile is no difference: it may have sent, acknowledged or read, ended
// its stream, closed or reset; and the connection may have timed out.
//
// With nobody reading, what was read so far (bytes received less those unread)
// stays what it was, and with nobody writing, so does what was written so far
// (bytes acknowledged and those not). Sequence numbers move by the counted bytes.
func (before View) Compare(after View) []string {
	if before.Socket != after.Socket {
		return []string{fmt.Sprintf("another socket: %q before, %q after", before.Socket, after.Socket)}
	}
	if known(before.Inode, after.Inode) && before.Inode != after.Inode {
		return []string{fmt.Sprintf("another socket: inode %d before, %d after", before.Inode, after.Inode)}
	}
	if known(before.Cookie, after.Cookie) && before.Cookie != after.Cookie {
		return []string{fmt.Sprintf("another socket: cookie %d before, %d after", before.Cookie, after.Cookie)}
	}
	var d differences
	if before.Local != after.Local {
		d.add("local address: %q before, %q after", before.Local, after.Local)
	}
	// A connection that is closed has no peer any more (ENOTCONN).
	if before.Remote != after.Remote && !(after.Remote == "" && (after.State == tcpClose || after.State == 0)) {
		d.add("remote address: %q before, %q after", before.Remote, after.Remote)
	}
	if before.ReuseAddr != after.ReuseAddr {
		d.add("SO_REUSEADDR: %t before, %t after", before.ReuseAddr, after.ReuseAddr)
	}
	d.states(before, after)
	if before.State == tcpSynRecv { // where the kernel gives no queue lengths
		return d
	}
	d.segments(before, after)
	d.received(before, after)
	d.sent(before, after)
	return d
}

// known reports whether both looks have a number.
func known[T uint32 | uint64](before, after T) bool { return before != 0 && after != 0 }

// differences collects sentences.
type differences []string

func (d *differences) add(format string, args ...any) { *d = append(*d, fmt.Sprintf(format, args...)) }

func (d *differences) states(before, after View) {
	if before.State != 0 && after.State != 0 && !before.State.mayBecome(after.State) {
		d.add("state: %s before, %s after, which is not the peer's doing", before.State, after.State)
	}
}

// segments compares the numbers of packets.
func (d *differences) segments(before, after View) {
	if known(before.SegsIn, after.SegsIn) {
		switch n := int32(after.SegsIn - before.SegsIn); {
		case n < 0:
			d.add("segments received: %d before, %d after", before.SegsIn, after.SegsIn)
		case n == 0 && before.Counted && after.Counted &&
			(after.BytesReceived > before.BytesReceived || after.BytesAcked > before.BytesAcked):
			// The mark of data put into the queue by another process, in TCP_REPAIR.
			d.add("%d bytes received and %d acknowledged without a segment from the peer",
				after.BytesReceived-before.BytesReceived, after.BytesAcked-before.BytesAcked)
		}
	}
	if known(before.SegsOut, after.SegsOut) && int32(after.SegsOut-before.SegsOut) < 0 {
		d.add("segments sent: %d before, %d after", before.SegsOut, after.SegsOut)
	}
}

// received compares what came from the peer.
func (d *differences) received(before, after View) {
	exact := before.Counted && after.Counted
	if exact && after.BytesReceived < before.BytesReceived {
		d.add("bytes received: %d before, %d after", before.BytesReceived, after.BytesReceived)
		return
	}
	came := int64(after.BytesReceived - before.BytesReceived)
	if exact && before.State.ended() && came > 0 {
		d.add("%d bytes received after the peer's end of the stream", came)
	}
	exact = exact && !before.Unsteady && !after.Unsteady
	if known(before.RcvSeq, after.RcvSeq) {
		switch moved := int32(after.RcvSeq - before.RcvSeq); {
		case moved < 0:
			d.add("receive sequence number: %d before, %d after", before.RcvSeq, after.RcvSeq)
		case exact && uint32(moved) != uint32(came):
			d.add("receive sequence number: %d before, %d after, but %d bytes received between them", before.RcvSeq, after.RcvSeq, came)
		}
	}
	// SIOCINQ leaves out the end of the stream, which the other counter takes for
	// a byte. Of a connection that was then reset the state no longer tells.
	want, orOne := came, int64(0)
	switch {
	case before.State.ended() || before.State == tcpClose:
	case after.State.ended():
		want--
	case after.State == tcpClose && came > 0:
		orOne = 1
	}
	switch grown := after.Unread - before.Unread; {
	case grown < 0:
		d.add("%d unread bytes vanished: %d before, %d after", -grown, before.Unread, after.Unread)
	case !exact || before.Urgent || after.Urgent:
		// How many came is not known, or not how many of them the kernel shows.
	case grown < want-orOne:
		d.add("%d unread bytes vanished: %d before, %d received since, %d after", want-grown, before.Unread, want, after.Unread)
	case grown > want:
		d.add("%d unread bytes appeared: %d before, %d received since, %d after", grown-want, before.Unread, want, after.Unread)
	}
}

// sent compares what goes to the peer.
func (d *differences) sent(before, after View) {
	if known(before.SndSeq, after.SndSeq) && before.SndSeq != after.SndSeq {
		d.add("send sequence number: %d before, %d after", before.SndSeq, after.SndSeq)
	}
	exact := before.Counted && after.Counted
	if exact && after.BytesAcked < before.BytesAcked {
		d.add("bytes acknowledged: %d before, %d after", before.BytesAcked, after.BytesAcked)
		return
	}
	acked := int64(after.BytesAcked - before.BytesAcked)
	exact = exact && !before.Unsteady && !after.Unsteady
	switch left := before.Unsent - after.Unsent; {
	case left < 0:
		d.add("%d unsent bytes appeared: %d before, %d after", -left, before.Unsent, after.Unsent)
	case !exact || left == acked:
	case left > acked:
		d.add("%d unsent bytes vanished: %d before, %d acknowledged since, %d after", left-acked, before.Unsent, acked, after.Unsent)
	default:
		d.add("%d unsent bytes appeared: %d before, %d acknowledged since, %d after", acked-left, before.Unsent, acked, after.Unsent)
	}
}
