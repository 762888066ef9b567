package handoff

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"time"

	"github.com/zdt-dev/zdt/handoff/control"
)

// The wire between an incumbent and its candidate: a private SOCK_SEQPACKET
// pair made by the incumbent, one JSON document a packet. docs/protocol.md
// describes it.
//
//	incumbent → candidate   hello     who you are: pid, generation; my versions
//	candidate → incumbent   hello     the version I chose
//	candidate → incumbent   ready     I accept from now on
//	incumbent → candidate   commit    you are the service
//	incumbent → candidate   abort     end: finish what you accepted
//	incumbent → candidate   progress  how my drain goes
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
const WireVersion = 1

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
)

// message is every packet. Unknown types and fields are ignored, so that a
// newer peer may say more.
type message struct {
	Type messageType `json:"type"`

	// hello
	Version    int    `json:"version,omitempty"`     // the sender's newest
	MinVersion int    `json:"min_version,omitempty"` // and oldest version
	PID        int    `json:"pid,omitempty"`         // the receiver's, as the incumbent's fork returned it
	Generation int    `json:"generation,omitempty"`  // the receiver's
	TxID       string `json:"txid,omitempty"`
	ControlFD  int    `json:"control_fd,omitempty"` // the control socket's descriptor in the receiver

	// abort
	Reason string `json:"reason,omitempty"`

	// progress, bye
	Connections *control.Counts `json:"connections,omitempty"`
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
}

// newLink takes fd over.
func newLink(fd int) (*link, error) {
	conn, err := fromFD(fd, net.FileConn)
	closeFD(fd)
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

func (l *link) close() { l.once.Do(func() { l.conn.Close() }) }

// writeTimeout bounds a send: a peer that does not read (stopped, or wedged)
// must not hold the sender up.
const writeTimeout = time.Second

func (l *link) send(m message) error {
	packet, err := json.Marshal(m)
	if err != nil {
		return err
	}
	l.writeMu.Lock()
	defer l.writeMu.Unlock()
	l.conn.SetWriteDeadline(time.Now().Add(writeTimeout))
	if _, err := l.conn.Write(packet); err != nil {
		return fmt.Errorf("send %s: %w", m.Type, err)
	}
	return nil
}

// receive returns the next message, io.EOF when the peer is gone.
func (l *link) receive() (message, error) {
	buf := make([]byte, maxPacket)
	n, _, flags, _, err := l.conn.ReadMsgUnix(buf, nil)
	if err != nil {
		return message{}, err
	}
	if n == 0 {
		return message{}, io.EOF // no sender here sends empty packets
	}
	return decodeMessage(buf[:n], flags)
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
		select {
		case out <- m:
		case <-stop:
			return
		}
	}
}
