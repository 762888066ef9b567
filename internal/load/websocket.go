package load

import (
	"bufio"
	"crypto/sha1"
	"encoding/base64"
	"encoding/binary"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"
	"unicode/utf8"
)

// chat is a client of a chat over a WebSocket (RFC 6455): it says something, waits until it hears it, and hears what
// others say.
type chat struct {
	sender uint32
	said   uint64 // messages, on all connections
	heard  uint64 // own ones that came back
	seq    sequence
}

func newChat(c *client) *chat { return &chat{sender: c.l.room + uint32(c.id)} }

func (t *chat) open(c *client) error {
	t.seq, t.heard = sequence{}, t.said
	var nonce [16]byte
	for i := range nonce {
		nonce[i] = byte(c.rand.Uint32())
	}
	key := base64.StdEncoding.EncodeToString(nonce[:])
	c.req.Reset()
	c.begin(http.MethodGet, c.l.cfg.ChatPath)
	fmt.Fprintf(&c.req, "Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: %s\r\n\r\n", key)
	c.allow()
	if err := c.write(c.req.Bytes()); err != nil {
		return fmt.Errorf("write handshake: %w", err)
	}
	if _, err := c.r.Peek(1); err != nil {
		return fmt.Errorf("await the answer to the handshake: %w", err)
	}
	resp, err := c.readHead()
	switch {
	case err != nil:
		return err
	case resp.StatusCode != http.StatusSwitchingProtocols || !strings.EqualFold(resp.Header.Get("Upgrade"), "websocket"):
		return bad("status %s where a WebSocket is expected", resp.Status)
	case resp.Header.Get("Sec-WebSocket-Accept") != acceptKey(key):
		return bad("Sec-WebSocket-Accept is %q", resp.Header.Get("Sec-WebSocket-Accept"))
	}
	return nil
}

// acceptKey is what a server answers a key with (RFC 6455, section 4.2.2).
func acceptKey(key string) string {
	sum := sha1.Sum([]byte(key + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"))
	return base64.StdEncoding.EncodeToString(sum[:])
}

// say sends a message and waits until it comes back.
func (t *chat) say(c *client, began time.Time) error {
	text := composeMessage(t.sender, t.said)
	t.said++
	c.allow()
	if err := c.write(appendFrame(nil, opText, c.rand.Uint32(), []byte(text))); err != nil {
		return t.gone(c, fmt.Errorf("write message: %w", err))
	}
	for t.heard < t.said {
		if err := t.hear(c); err != nil {
			return t.gone(c, err)
		}
	}
	c.l.rec.answered(c, answer{}, began, 0)
	return nil
}

// gone counts the message that will not come back as lost.
func (t *chat) gone(c *client, err error) error {
	if isEnd(err) {
		c.l.rec.lost(c, int(t.said-t.heard), "a message was sent and never heard")
	}
	return err
}

// hear takes one message of the chat.
func (t *chat) hear(c *client) error {
	text, err := t.next(c)
	if err != nil {
		return fmt.Errorf("read message: %w", err)
	}
	n, said, ok := numbered(text)
	if !ok {
		c.l.rec.wrong(c, fmt.Sprintf("message without a number: %.100q", text))
		return nil
	}
	sender, own, intact, known := parseMessage(said)
	if known && !intact {
		c.l.rec.wrong(c, fmt.Sprintf("message %d: %.300q", n, said))
		return nil
	}
	expected := !t.seq.begun || n == t.seq.next
	c.l.rec.message(c, &t.seq, n)
	if !known || sender != t.sender {
		return nil
	}
	switch {
	case own >= t.said:
		c.l.rec.wrong(c, fmt.Sprintf("message %d was never said: %.100q", n, said))
	case own >= t.heard:
		t.heard = own + 1
	case expected: // a new number for a message that was here before
		c.l.rec.doubled(c, 1, fmt.Sprintf("message %d again: %.100q", n, said))
	}
	return nil
}

// The opcodes of RFC 6455, section 5.2.
const (
	opContinue = 0x0
	opText     = 0x1
	opClose    = 0x8
	opPing     = 0x9
	opPong     = 0xa
)

// next reads frames up to the end of a message, and answers pings.
func (t *chat) next(c *client) (string, error) {
	var message []byte
	begun := false
	for {
		f, err := readFrame(c.r)
		if err != nil {
			return "", err
		}
		switch {
		case f.op == opClose:
			return "", fmt.Errorf("%w: close frame %q", errEnded, f.payload)
		case f.op == opPing:
			if err := c.write(appendFrame(nil, opPong, c.rand.Uint32(), f.payload)); err != nil {
				return "", err
			}
			continue
		case f.op == opPong:
			continue
		case f.op == opText && begun, f.op == opContinue && !begun:
			return "", bad("frame with opcode %d in the wrong place", f.op)
		case f.op != opText && f.op != opContinue:
			return "", bad("frame with opcode %d", f.op)
		}
		begun = true
		if message = append(message, f.payload...); len(message) > maxFrame {
			return "", bad("a message of more than %d bytes", maxFrame)
		}
		if f.final {
			if !utf8.Valid(message) {
				return "", bad("a text that is not UTF-8")
			}
			return string(message), nil
		}
	}
}

// frame is a frame from a server.
type frame struct {
	op      byte
	final   bool
	payload []byte
}

// maxFrame is the size of the largest payload, in bytes.
const maxFrame = 1 << 20

func readFrame(r *bufio.Reader) (frame, error) {
	var head [2]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return frame{}, err
	}
	f := frame{op: head[0] & 0xf, final: head[0]&0x80 != 0}
	size := uint64(head[1] & 0x7f)
	switch {
	case head[0]&0x70 != 0:
		return frame{}, bad("a frame with reserved bits set: %#x", head[0])
	case head[1]&0x80 != 0:
		return frame{}, bad("a server must not mask its frames")
	case f.op >= opClose && (!f.final || size > 125):
		return frame{}, bad("a control frame in fragments, or of more than 125 bytes")
	case size == 126:
		var long [2]byte
		if _, err := io.ReadFull(r, long[:]); err != nil {
			return frame{}, err
		}
		size = uint64(binary.BigEndian.Uint16(long[:]))
	case size == 127:
		var long [8]byte
		if _, err := io.ReadFull(r, long[:]); err != nil {
			return frame{}, err
		}
		size = binary.BigEndian.Uint64(long[:])
	}
	if size > maxFrame {
		return frame{}, bad("a frame of %d bytes", size)
	}
	f.payload = make([]byte, size)
	if _, err := io.ReadFull(r, f.payload); err != nil {
		return frame{}, err
	}
	return f, nil
}

// appendFrame appends a final frame of a client, which has to mask it.
func appendFrame(b []byte, op byte, mask uint32, payload []byte) []byte {
	b = append(b, 0x80|op)
	switch n := len(payload); {
	case n < 126:
		b = append(b, 0x80|byte(n))
	case n < 1<<16:
		b = binary.BigEndian.AppendUint16(append(b, 0x80|126), uint16(n))
	default:
		b = binary.BigEndian.AppendUint64(append(b, 0x80|127), uint64(n))
	}
	var key [4]byte
	binary.BigEndian.PutUint32(key[:], mask)
	b = append(b, key[:]...)
	for i, x := range payload {
		b = append(b, x^key[i%4])
	}
	return b
}
