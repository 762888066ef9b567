package load

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"sync"
	"time"
)

// client is one client; its goroutine owns everything but what mu guards.
type client struct {
	l     *Load
	id    int
	kind  Client
	b     behaviour
	first time.Duration // pause before the first turn

	r     *bufio.Reader
	head  limitedReader // below r
	rand  *rand.Rand
	turns int
	req   bytes.Buffer
	had   bool      // a connection, earlier: the next one is a reconnect
	ended time.Time // when the last connection ended

	mu      sync.Mutex
	conn    net.Conn // nil when there is none; written by the client's goroutine alone
	pausing bool     // the client only listens, and Stop may end that
	given   bool     // up, by Cancel
}

// behaviour is what distinguishes the kinds of clients. The functions run on an open connection; with an error the
// connection is closed, and the error is counted.
type behaviour struct {
	keep   bool // the connection, for the next turn
	stream bool // the connection is meant to last: its end is a cut
	think  time.Duration

	open func(c *client) error // on a new connection, before the first turn; nil: nothing
	turn func(c *client, began time.Time) error
	hear func(c *client) error // takes what comes between two turns; nil: nothing may come
}

// slowestStart bounds the time within which the clients start.
const slowestStart = 20 * time.Millisecond

func newClient(l *Load, id int, kind Client) *client {
	c := &client{l: l, id: id, kind: kind, rand: rand.New(rand.NewPCG(uint64(id), 1))}
	c.b = behaviour{keep: true, think: l.cfg.Think, turn: (*client).exchange}
	c.first = time.Duration(c.rand.Float64() * float64(min(l.cfg.Think, slowestStart)))
	switch kind {
	case Fresh:
		c.b.keep = false
	case Idle:
		c.b.think = l.cfg.IdleThink
	case Slow:
		c.b.turn = (*client).askSlowly
	case Upload:
		c.b.turn = (*client).upload
	case Pipelined:
		c.b.turn = (*client).pipeline
	case HalfHead:
		c.b.turn = (*client).sendInPieces
	case Expect:
		c.b.turn = (*client).expect
	case Events:
		c.b.stream, c.b.turn = true, (*client).readEvents
	case WebSocket:
		chat := newChat(c)
		c.b.stream, c.b.open, c.b.turn, c.b.hear = true, chat.open, chat.say, chat.hear
	case Lines:
		lines := &lineTalk{}
		c.b.stream, c.b.open, c.b.turn = true, lines.open, lines.talk
	}
	return c
}

func (c *client) run() {
	defer c.close()
	c.pause(c.first)
	for !c.stopped() {
		began := time.Now()
		if c.conn == nil {
			if err := c.dial(); err != nil {
				c.l.rec.refused(c, err, began)
				c.pause(max(c.b.think, time.Millisecond))
				continue
			}
			if c.b.keep {
				began = time.Now() // a client that opens a connection for each request pays for it each time
			}
			if c.b.open != nil {
				if err := c.b.open(c); err != nil {
					c.fail(err, began)
					c.pause(max(c.b.think, time.Millisecond))
					continue
				}
			}
		}
		c.turns++
		if err := c.b.turn(c, began); err != nil {
			c.fail(err, began)
		}
		c.pause(c.thinking())
	}
}

// thinking is about as long as Config.Think: clients that keep step leave gaps in which nobody would notice anything.
func (c *client) thinking() time.Duration {
	return c.b.think/2 + time.Duration(c.rand.Float64()*float64(c.b.think))
}

// fail counts an error and gives the connection up.
func (c *client) fail(err error, began time.Time) {
	if c.b.stream && isEnd(err) {
		c.l.rec.cut(c, err)
	} else {
		c.l.rec.failed(c, err, began)
	}
	c.close()
}

// limitedReader bounds what one head of an answer may hold: http.ReadResponse does not, and the service is not trusted
// with the memory of whoever runs zdt prove.
type limitedReader struct {
	r    io.Reader
	left int
}

// maxHead is the largest head of an answer, in bytes.
const maxHead = 1 << 20

var errTooLarge = errors.New("the head of the answer is larger than 1 MiB")

func (l *limitedReader) Read(p []byte) (int, error) {
	if l.left <= 0 {
		return 0, errTooLarge
	}
	n, err := l.r.Read(p[:min(len(p), l.left)])
	l.left -= n
	return n, err
}

func (l *limitedReader) unlimited() { l.left = int(^uint(0) >> 1) }

func (c *client) dial() error {
	// Not ended by Stop: a connect under way is answered or refused like any other, and counted.
	ctx, cancel := context.WithTimeout(c.l.dialing, c.l.cfg.Timeout)
	defer cancel()
	conn, err := c.l.cfg.Dial(ctx)
	if err != nil {
		return err
	}
	c.mu.Lock()
	c.conn = conn
	c.mu.Unlock()
	c.head = limitedReader{r: conn}
	c.head.unlimited()
	c.r = bufio.NewReader(&c.head)
	if c.b.keep && c.had {
		c.l.rec.reconnected(c, c.ended)
	}
	c.had = true
	return nil
}

func (c *client) close() {
	if c.conn == nil {
		return
	}
	c.mu.Lock()
	conn := c.conn
	c.conn = nil
	c.mu.Unlock()
	conn.Close()
	c.r, c.ended = nil, time.Now()
}

// longAgo is a deadline that has passed.
var longAgo = time.Unix(1, 0)

// allow bounds what follows on the connection by Config.Timeout from now.
func (c *client) allow() {
	c.mu.Lock()
	defer c.mu.Unlock()
	deadline := time.Now().Add(c.l.cfg.Timeout)
	if c.given {
		deadline = longAgo
	}
	c.conn.SetDeadline(deadline)
}

// write writes once; what arrives of it in part is a failure like any other.
func (c *client) write(p []byte) error {
	_, err := c.conn.Write(p)
	return err
}

// listen waits until there is something to read, until end, or until Stop; the latter two are os.ErrDeadlineExceeded.
func (c *client) listen(end time.Time) error {
	if !c.relax(end) {
		return os.ErrDeadlineExceeded
	}
	_, err := c.r.Peek(1)
	c.tense()
	return err
}

// relax lets Stop end a Read from now on, and not only the deadline. It reports false when Stop was called already.
func (c *client) relax(deadline time.Time) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.given || c.stopped() {
		return false
	}
	c.pausing = true
	c.conn.SetDeadline(deadline)
	return true
}

func (c *client) tense() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.pausing = false
}

// interrupt wakes a client that pauses; now wakes it from anything. Stop is closed already: a client that looks at it
// after this sees it.
func (c *client) interrupt(now bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.given = c.given || now
	if c.conn != nil && (now || c.pausing) {
		c.conn.SetDeadline(longAgo)
	}
}

func (c *client) stopped() bool {
	select {
	case <-c.l.stop:
		return true
	default:
		return false
	}
}

// pause thinks. A client with a connection listens meanwhile: when the server closes it now, no request is lost.
func (c *client) pause(d time.Duration) {
	end := time.Now().Add(d)
	for c.conn != nil && !c.stopped() && time.Now().Before(end) {
		switch err := c.listen(end); {
		case errors.Is(err, os.ErrDeadlineExceeded):
		case err != nil && c.b.stream:
			c.l.rec.cut(c, err)
			c.close()
		case err != nil:
			c.l.rec.idleClosed(c)
			c.close()
		case c.b.hear != nil:
			c.allow()
			if err := c.b.hear(c); err != nil {
				c.fail(err, time.Now())
			}
		default:
			c.l.rec.failed(c, bad("the server speaks without being asked"), time.Now())
			c.close()
		}
	}
	c.rest(time.Until(end))
}

// rest lets time pass, and does not look at the connection.
func (c *client) rest(d time.Duration) {
	if d <= 0 {
		return
	}
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-c.l.stop:
	}
}
