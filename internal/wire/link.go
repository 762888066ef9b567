package wire

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/zdt-dev/zdt/internal/netfd"
)

// Link is one end of the wire. It owns its descriptor. One goroutine reads it
// and ends when the link is closed or the peer is gone.
type Link struct {
	// Conn is for credentials and read deadlines.
	Conn    *net.UnixConn
	writeMu sync.Mutex
	once    sync.Once
	// Taker gets messages of type move, in the reading goroutine; it owns their
	// descriptors. nil: they are dropped.
	Taker   func(*Link, Message)
	taking  sync.Mutex // held while Taker runs
	closing atomic.Bool

	packet, control []byte // owned by the reading goroutine
}

// NewLink takes fd over, also when it fails.
func NewLink(fd int) (*Link, error) {
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
	return &Link{Conn: u}, nil
}

// Close ends the wire. A batch of connections that is being received is finished
// first, its acknowledgement included: the sender may believe that what is not
// acknowledged by the end of the wire is its own.
func (l *Link) Close() {
	l.once.Do(func() {
		l.closing.Store(true)
		l.taking.Lock()
		defer l.taking.Unlock()
		l.Conn.Close()
	})
}

// writeTimeout bounds a send: a peer that does not read (stopped, or wedged)
// must not hold the sender up.
const writeTimeout = time.Second

// BatchTimeout is the same for connections, whose clients wait meanwhile, and
// for what is said again soon.
const BatchTimeout = 50 * time.Millisecond

// Send sends a message within a second, or a shorter time for what is said again soon.
func (l *Link) Send(m Message) error { return l.SendFiles(m) }

// IsClosing reports whether Close was called.
func (l *Link) IsClosing() bool { return l.closing.Load() }

// SendFiles sends a message with descriptors, which stay the caller's.
func (l *Link) SendFiles(m Message, fds ...int) error {
	timeout := writeTimeout
	if m.Type == Progress {
		timeout = BatchTimeout
	}
	return l.SendWithin(timeout, m, fds...)
}

// SendWithin is SendFiles with a time of its own; os.ErrDeadlineExceeded when the peer
// does not read.
func (l *Link) SendWithin(timeout time.Duration, m Message, fds ...int) error {
	packet, err := json.Marshal(m)
	if err != nil {
		return err
	}
	l.writeMu.Lock()
	defer l.writeMu.Unlock()
	l.Conn.SetWriteDeadline(time.Now().Add(timeout))
	if _, _, err := l.Conn.WriteMsgUnix(packet, rights(fds), nil); err != nil {
		return fmt.Errorf("send %s: %w", m.Type, err)
	}
	return nil
}

// Receive returns the next message with its descriptors, which are the
// caller's, and io.EOF when the peer is gone. See ErrPacket and ConnectionReset for errors
// after which the link goes on.
func (l *Link) Receive() (Message, error) {
	if l.packet == nil {
		l.packet, l.control = make([]byte, MaxPacket), make([]byte, rightsSpace)
	}
	n, oobn, flags, _, err := l.Conn.ReadMsgUnix(l.packet, l.control)
	if err != nil {
		return Message{}, err
	}
	files := receivedFiles(l.control[:oobn])
	if n == 0 && len(files) == 0 {
		return Message{}, io.EOF // no sender here sends empty packets
	}
	m, err := decodeMessage(l.packet[:n], flags)
	m.Files = files
	if err != nil || m.Type != Move && m.Type != Sockets {
		m.CloseFiles()
	}
	return m, err
}

// decodeMessage parses one packet.
func decodeMessage(packet []byte, flags int) (Message, error) {
	if flags&msgTrunc != 0 {
		return Message{}, fmt.Errorf("%w of more than %d bytes", ErrPacket, MaxPacket)
	}
	var m Message
	if err := json.Unmarshal(packet, &m); err != nil {
		return Message{}, fmt.Errorf("%w: %w", ErrPacket, err)
	}
	if m.Type == "" {
		return Message{}, fmt.Errorf("%w without a type", ErrPacket)
	}
	return m, nil
}

// ErrPacket marks what a peer sent and this side cannot read. A newer peer may
// send such packets; they are skipped, because taking them for the end of the
// stream would make of a misunderstanding the death of a generation.
var ErrPacket = errors.New("packet")

// take hands a batch to Taker, unless the wire is at its end.
func (l *Link) take(m Message) {
	l.taking.Lock()
	defer l.taking.Unlock()
	if l.closing.Load() {
		m.CloseFiles()
		return
	}
	l.Taker(l, m)
}

// Pump delivers what arrives until the peer is gone and then closes out.
func (l *Link) Pump(out chan<- Message, stop <-chan struct{}) {
	defer close(out)
	reset := false
	for {
		m, err := l.Receive()
		if errors.Is(err, ErrPacket) {
			continue
		}
		if !reset && ConnectionReset(err) {
			// The peer has ended with something of ours unread. Linux reports
			// that once, and before the packets that the peer had still sent.
			reset = true
			continue
		}
		if err != nil {
			return
		}
		if m.Type == Move {
			// Not through the deciding goroutine, which it would hold up, and
			// one batch after the other: that slows a sender that is too fast.
			if l.Taker == nil {
				m.CloseFiles()
				continue
			}
			l.take(m)
			continue
		}
		m.CloseFiles() // sockets come before anybody pumps
		select {
		case out <- m:
		case <-stop:
			return
		}
	}
}
