package handoff

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/zdt-dev/zdt/handoff/control"
	"github.com/zdt-dev/zdt/internal/netfd"
)

// The wire between an incumbent and its candidate: a private SOCK_SEQPACKET
// pair made by the incumbent, or a connection to its takeover socket; one JSON
// document a packet. docs/protocol.md describes it.
//
//	candidate → incumbent   takeover  I was not started by you and want your service
//	incumbent → candidate   refused   not now, or not to you
//	incumbent → candidate   sockets   some of my sockets, with their descriptors; hello follows
//	incumbent → candidate   hello     who you are: pid, generation; my versions
//	candidate → incumbent   hello     the version I chose
//	candidate → incumbent   ready     I accept from now on
//	incumbent → candidate   commit    you are the service
//	incumbent → candidate   abort     end: finish what you accepted
//	incumbent → candidate   progress  how my drain goes
//	either → other          takes     which connections I can go on with
//	leaving → staying       move      connections, with their descriptors
//	staying → leaving       moved     which of them I have taken
//	candidate → incumbent   stop      I end: so does the service, or this handoff
//	candidate → incumbent   quit      the service ends at once, and so do you
//	incumbent → candidate   bye       my last word, with the final counts
//
// The end of the other process shows as the end of the stream.
const (
	wireVersion    = WireVersion
	wireMinVersion = 1
)

// WireVersion is the newest version of the protocol between two generations
// that this package speaks.
//
//	1  handoff without moving connections
//	2  capabilities; takes, move, moved
const WireVersion = 2

// capabilityMove: the sender of a hello understands takes, move and moved.
const capabilityMove = "move"

type messageType string

const (
	msgHello    messageType = "hello"
	msgReady    messageType = "ready"
	msgCommit   messageType = "commit"
	msgAbort    messageType = "abort"
	msgProgress messageType = "progress"
	msgStop     messageType = "stop"
	msgQuit     messageType = "quit"
	msgBye      messageType = "bye"
	msgTakes    messageType = "takes"
	msgMove     messageType = "move"
	msgMoved    messageType = "moved"
	msgTakeover messageType = "takeover"
	msgRefused  messageType = "refused"
	msgSockets  messageType = "sockets"
)

// message is every packet. Unknown types and fields are ignored, so that a
// newer peer may say more.
type message struct {
	Type messageType `json:"type"`

	// hello, takeover, refused
	Version    int    `json:"version,omitempty"`     // the sender's newest
	MinVersion int    `json:"min_version,omitempty"` // and oldest version
	PID        int    `json:"pid,omitempty"`         // the receiver's, as the incumbent's fork returned it
	Generation int    `json:"generation,omitempty"`  // the receiver's
	TxID       string `json:"txid,omitempty"`
	ControlFD  int    `json:"control_fd,omitempty"`  // the control socket's descriptor in the receiver
	TakeoverFD int    `json:"takeover_fd,omitempty"` // the takeover socket's
	// SharesControl: the sender, a newcomer, answers on the receiver's control socket after the commit.
	SharesControl bool `json:"shares_control,omitempty"`
	// Capabilities are what the sender can do beyond its version's minimum; absent in version 1.
	Capabilities []string `json:"capabilities,omitempty"`

	// hello, takes
	Takes []take `json:"takes,omitempty"`

	// move, moved
	Batch   uint64    `json:"batch,omitempty"`
	Count   int       `json:"count,omitempty"` // connections in the batch; connections taken
	Refused []refusal `json:"refused,omitempty"`

	// takeover
	Exe string `json:"exe,omitempty"` // what the sender runs, as its own mount namespace calls it

	// sockets
	Total   int      `json:"total,omitempty"` // in all packets
	Sockets []handed `json:"sockets,omitempty"`

	// refused
	Code string `json:"code,omitempty"` // one of package control's, or codeVersion

	// abort, stop, refused
	Reason string `json:"reason,omitempty"`

	// progress, bye
	Connections *control.Counts `json:"connections,omitempty"`

	// files are the descriptors that came with the packet, owned by whoever has the message.
	files []int
	// resets are those of Refused whose client had gone: nothing is the matter with this process.
	resets int
}

// closeFiles closes what came with the packet.
func (m *message) closeFiles() {
	for _, fd := range m.files {
		if fd >= 0 {
			netfd.Close(fd)
		}
	}
	m.files = nil
}

// maxPacket bounds a packet. Messages are a few hundred bytes.
const maxPacket = 64 << 10

// versionError is the answer to a peer with which there is no common version.
type versionError struct{ self, min, peer, peerMin int }

func (e *versionError) Error() string {
	return fmt.Sprintf("wire protocol: the peer speaks versions %d to %d, this program %d to %d", e.peerMin, e.peer, e.min, e.self)
}

// chooseVersion returns the newest version both sides speak.
func chooseVersion(peer, peerMin int) (int, error) {
	v := min(wireVersion, peer)
	if v < wireMinVersion || v < peerMin {
		return 0, &versionError{wireVersion, wireMinVersion, peer, peerMin}
	}
	return v, nil
}

// link is one end of the wire. It owns its descriptor. One goroutine reads it
// and ends when the link is closed or the peer is gone.
type link struct {
	conn    *net.UnixConn
	writeMu sync.Mutex
	once    sync.Once
	// taker gets messages of type move, in the reading goroutine; it owns their
	// descriptors. nil: they are dropped.
	taker   func(*link, message)
	taking  sync.Mutex // held while taker runs
	closing atomic.Bool

	packet, control []byte // owned by the reading goroutine
}

// newLink takes fd over.
func newLink(fd int) (*link, error) {
	conn, err := netfd.From(fd, net.FileConn)
	netfd.Close(fd)
	if err != nil {
		return nil, err
	}
	u, ok := conn.(*net.UnixConn)
	if !ok {
		conn.Close()
		return nil, errors.New("not a unix socket")
	}
	return &link{conn: u}, nil
}

// close ends the wire. A batch of connections that is being received is finished
// first, its acknowledgement included: the sender may believe that what is not
// acknowledged by the end of the wire is its own.
func (l *link) close() {
	l.once.Do(func() {
		l.closing.Store(true)
		l.taking.Lock()
		defer l.taking.Unlock()
		l.conn.Close()
	})
}

// writeTimeout bounds a send: a peer that does not read (stopped, or wedged)
// must not hold the sender up.
const writeTimeout = time.Second

// batchTimeout is the same for connections, whose clients wait meanwhile, and
// for what is said again soon.
const batchTimeout = 50 * time.Millisecond

func (l *link) send(m message) error { return l.sendFiles(m) }

// sendFiles sends a message with descriptors, which stay the caller's.
func (l *link) sendFiles(m message, fds ...int) error {
	timeout := writeTimeout
	if m.Type == msgProgress {
		timeout = batchTimeout
	}
	return l.sendWithin(timeout, m, fds...)
}

func (l *link) sendWithin(timeout time.Duration, m message, fds ...int) error {
	packet, err := json.Marshal(m)
	if err != nil {
		return err
	}
	l.writeMu.Lock()
	defer l.writeMu.Unlock()
	l.conn.SetWriteDeadline(time.Now().Add(timeout))
	if _, _, err := l.conn.WriteMsgUnix(packet, rights(fds), nil); err != nil {
		return fmt.Errorf("send %s: %w", m.Type, err)
	}
	return nil
}

// receive returns the next message with its descriptors, which are the
// caller's, and io.EOF when the peer is gone.
func (l *link) receive() (message, error) {
	if l.packet == nil {
		l.packet, l.control = make([]byte, maxPacket), make([]byte, rightsSpace)
	}
	n, oobn, flags, _, err := l.conn.ReadMsgUnix(l.packet, l.control)
	if err != nil {
		return message{}, err
	}
	files := receivedFiles(l.control[:oobn])
	if n == 0 && len(files) == 0 {
		return message{}, io.EOF // no sender here sends empty packets
	}
	m, err := decodeMessage(l.packet[:n], flags)
	m.files = files
	if err != nil || m.Type != msgMove && m.Type != msgSockets {
		m.closeFiles()
	}
	return m, err
}

// decodeMessage parses one packet.
func decodeMessage(packet []byte, flags int) (message, error) {
	if flags&msgTrunc != 0 {
		return message{}, fmt.Errorf("%w of more than %d bytes", errPacket, maxPacket)
	}
	var m message
	if err := json.Unmarshal(packet, &m); err != nil {
		return message{}, fmt.Errorf("%w: %w", errPacket, err)
	}
	if m.Type == "" {
		return message{}, fmt.Errorf("%w without a type", errPacket)
	}
	return m, nil
}

// errPacket marks what a peer sent and this side cannot read. A newer peer may
// send such packets; they are skipped, because taking them for the end of the
// stream would make of a misunderstanding the death of a generation.
var errPacket = errors.New("packet")

// take hands a batch to the taker, unless the wire is at its end.
func (l *link) take(m message) {
	l.taking.Lock()
	defer l.taking.Unlock()
	if l.closing.Load() {
		m.closeFiles()
		return
	}
	l.taker(l, m)
}

// pump delivers what arrives until the peer is gone and then closes out.
func (l *link) pump(out chan<- message, stop <-chan struct{}) {
	defer close(out)
	reset := false
	for {
		m, err := l.receive()
		if errors.Is(err, errPacket) {
			continue
		}
		if !reset && connectionReset(err) {
			// The peer has ended with something of ours unread. Linux reports
			// that once, and before the packets that the peer had still sent.
			reset = true
			continue
		}
		if err != nil {
			return
		}
		if m.Type == msgMove {
			// Not through the deciding goroutine, which it would hold up, and
			// one batch after the other: that slows a sender that is too fast.
			if l.taker == nil {
				m.closeFiles()
				continue
			}
			l.take(m)
			continue
		}
		m.closeFiles() // sockets come before anybody pumps
		select {
		case out <- m:
		case <-stop:
			return
		}
	}
}
