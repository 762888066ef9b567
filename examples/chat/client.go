package main

import (
	"errors"
	"fmt"
	"log"
	"net"
	"os"
	"strings"
	"time"

	"github.com/zdt-dev/zdt/handoff"
)

// seat is all there is to a client besides its socket. It travels as JSON.
type seat struct {
	Name    string   `json:"name,omitempty"`
	Next    int64    `json:"next"`    // number of the message it gets next
	Partial assembly `json:"partial"` // WebSocket: the fragments that have come
}

// What a connection speaks, and the format of its session. A release that
// changes the meaning of seat calls them /2, and registers an OnConn for as
// many of the old ones as it understands: what it does not take stays where it is.
const (
	speaksWebSocket = "chat-websocket/1"
	speaksEvents    = "chat-events/1"
)

// client is one connection. One goroutine reads it, writes it and changes its
// seat; all that others do is to end its Read when there is something to write.
//
// That is the way to write to a connection that moves. The seat says what was
// sent, so Write and Next++ have to come before the move together, or after
// it. A connection moves while its goroutine is in Read, where neither is under way.
// A second goroutine that writes would let the move come between the two, and the
// message would be sent again, or never.
type client struct {
	room  *room
	conn  *handoff.Tracked
	seat  seat
	ahead []byte // what net/http has read behind the request
}

// writeTimeout is how long a client may take no byte before it is given up. A
// connection cannot move while a Write waits.
const writeTimeout = 5 * time.Second

// track makes conn movable.
func (c *client) track(h *handoff.Handoff, conn net.Conn, speaks string) error {
	t, err := h.Track(conn, handoff.Codec{
		Protocol: speaks,
		Session:  func() (any, error) { return c.seat, nil }, // runs within c.conn.Read
		Ahead:    c.ahead,                                    // the first Read returns it
	})
	if err != nil {
		conn.Close()
		return err
	}
	c.conn = t
	return nil
}

// attend passes on what is said in the room and what the client sends, until
// one of them ends it. encode makes a message what one Write sends.
func (c *client) attend(encode func(message) []byte, receive func([]byte) error) error {
	leave := c.room.join(c.wake)
	defer leave()
	buf := make([]byte, 4096)
	for {
		// In this order: whoever says something after the look ends the Read.
		c.conn.SetReadDeadline(time.Time{})
		due, err := c.room.from(c.seat.Next)
		if err != nil {
			return err
		}
		for _, text := range due {
			if err := c.write(encode(message{c.seat.Next, text})); err != nil {
				return err
			}
			c.seat.Next++
		}
		n, err := c.conn.Read(buf)
		if n > 0 {
			if err := receive(buf[:n]); err != nil {
				return err
			}
		}
		if err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
			return err // handoff.ErrMoved: another process attends; io.EOF: the client has gone
		}
	}
}

// wake ends the client's Read. The deadline is soon and not in the past: with
// one in the past, a Read that begins only then would neither look at the socket
// nor let the connection move, and in a busy room that can be most of them.
func (c *client) wake() { c.conn.SetReadDeadline(time.Now().Add(100 * time.Microsecond)) }

func (c *client) write(b []byte) error {
	c.conn.SetWriteDeadline(time.Now().Add(writeTimeout))
	_, err := c.conn.Write(b)
	return err
}

// speak serves a client that speaks WebSocket.
func (c *client) speak() {
	defer c.conn.Close()
	var unused []byte // the beginning of a frame
	err := c.attend(
		func(m message) []byte { return appendFrame(nil, opText, []byte(m.line())) },
		func(b []byte) error {
			unused = append(unused, b...)
			for {
				f, n, err := parseFrame(unused, maxMessage)
				if err != nil {
					return err
				}
				if n == 0 {
					break
				}
				unused = unused[n:]
				if err := c.obey(f); err != nil {
					return err
				}
			}
			// Should the connection move now, these bytes go along, and are the
			// first that the next process reads.
			c.conn.Boundary(len(unused))
			return nil
		})
	if bye := (*closeError)(nil); errors.As(err, &bye) {
		c.write(appendFrame(nil, opClose, closePayload(bye.code, bye.why)))
	}
}

// obey does what a frame says.
func (c *client) obey(f frame) error {
	switch f.op {
	case opPing:
		return c.write(appendFrame(nil, opPong, f.payload))
	case opPong:
		return nil
	case opClose:
		code, err := parseClose(f.payload)
		if err != nil {
			return err
		}
		return &closeError{code, ""} // sent back, which completes the closing
	}
	text, err := c.seat.Partial.add(f, maxMessage)
	if err != nil || text == nil {
		return err
	}
	if c.seat.Name != "" {
		text = append([]byte(c.seat.Name+": "), text...)
	}
	if err := c.room.say(string(text)); err != nil {
		log.Print(err)
		return &closeError{closeInternal, "the room cannot be written"}
	}
	return nil
}

// listen serves a client that only listens, by server-sent events.
func (c *client) listen() {
	defer c.conn.Close()
	c.attend(event, func([]byte) error {
		c.conn.Boundary(0) // it has nothing to say
		return nil
	})
}

// event is a message as a server-sent event. Every line of its text has to be a
// line of the event, and there a CR alone ends a line too.
func event(m message) []byte {
	data := strings.NewReplacer("\r\n", "\ndata: ", "\r", "\ndata: ", "\n", "\ndata: ").Replace(m.line())
	return fmt.Appendf(nil, "id: %d\ndata: %s\n\n", m.Seq, data)
}
