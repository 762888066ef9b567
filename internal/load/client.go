package load

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strconv"
	"syscall"
	"time"
)

// client sends one request after the other. It owns its connection, and nothing else touches that.
type client struct {
	l    *Load
	id   int
	keep bool // the connection, for the next request
	seq  int

	conn net.Conn // nil when there is none
	r    *bufio.Reader
	had  bool // a connection, earlier: the next one is a reconnect
	req  bytes.Buffer
}

// slice is how long a client pauses before it looks whether it shall stop.
const slice = 50 * time.Millisecond

func (l *Load) newClient(id int, keep bool) *client { return &client{l: l, id: id, keep: keep} }

func (c *client) run() {
	defer c.close()
	for !c.stopped() {
		began := time.Now()
		if c.conn == nil {
			if err := c.dial(); err != nil {
				c.l.rec.refused(c, err)
				c.pause()
				continue
			}
			if c.keep {
				began = time.Now() // a client that opens a connection for each request pays for it each time
			}
		}
		c.exchange(began)
		c.pause()
	}
}

// exchange sends a request and judges what comes back.
func (c *client) exchange(began time.Time) {
	body := c.compose()
	a, err := c.roundTrip(body)
	if err != nil {
		c.l.rec.failed(c, err)
		c.close()
		return
	}
	c.l.rec.answered(a.version, time.Since(began))
	if c.keep && a.last {
		c.l.rec.polite()
	}
	if !c.keep || a.last {
		c.close()
	}
}

// compose writes the next request into c.req and returns the body that the answer must have, or nil when any will do.
func (c *client) compose() (want []byte) {
	c.seq++
	end := "\r\n"
	if !c.keep {
		end = "Connection: close\r\n\r\n"
	}
	c.req.Reset()
	// Clients alternate, and not all in step.
	if (c.id+c.seq)%2 == 0 {
		fmt.Fprintf(&c.req, "GET %s HTTP/1.1\r\nHost: load\r\n%s", c.l.cfg.Get, end)
		return nil
	}
	want = strconv.AppendInt(append(strconv.AppendInt([]byte("client "), int64(c.id), 10), " request "...), int64(c.seq), 10)
	fmt.Fprintf(&c.req, "POST %s HTTP/1.1\r\nHost: load\r\nContent-Type: text/plain\r\nContent-Length: %d\r\n%s%s", c.l.cfg.Post, len(want), end, want)
	return want
}

// answer is what the load needs to know of a good answer.
type answer struct {
	version string
	last    bool // the server will close the connection
}

// roundTrip writes the composed request once and reads the answer.
func (c *client) roundTrip(want []byte) (answer, error) {
	c.conn.SetDeadline(time.Now().Add(c.l.cfg.Timeout))
	if _, err := c.conn.Write(c.req.Bytes()); err != nil {
		return answer{}, fmt.Errorf("write request: %w", err)
	}
	if _, err := c.r.Peek(1); err != nil {
		if errors.Is(err, io.EOF) {
			err = errNoAnswer
		}
		return answer{}, fmt.Errorf("await answer: %w", err)
	}
	method := http.MethodGet
	if want != nil {
		method = http.MethodPost
	}
	resp, err := http.ReadResponse(c.r, &http.Request{Method: method})
	if err != nil {
		return answer{}, bad("read answer: %w", err)
	}
	body, err := io.ReadAll(resp.Body)
	switch {
	case err != nil:
		return answer{}, bad("read body of answer: %w", err)
	case resp.StatusCode != http.StatusOK:
		return answer{}, bad("status %s", resp.Status)
	case want != nil && !bytes.Equal(body, want):
		return answer{}, bad("sent %q, got %.100q back", want, body)
	case c.r.Buffered() > 0:
		return answer{}, bad("%d bytes after the answer", c.r.Buffered())
	}
	return answer{version: resp.Header.Get("X-Version"), last: resp.Close}, nil
}

var errNoAnswer = errors.New("connection closed before the first byte of an answer")

// badAnswer marks an error as one about what the server sent, or stopped sending half way.
type badAnswer struct{ error }

func (b badAnswer) Unwrap() error { return b.error }

func bad(format string, args ...any) error { return badAnswer{fmt.Errorf(format, args...)} }

// kindOf sorts an error of roundTrip.
func kindOf(err error) Kind {
	var b badAnswer
	switch {
	case errors.Is(err, os.ErrDeadlineExceeded):
		return Timeout
	case errors.As(err, &b):
		return BadAnswer
	case errors.Is(err, errNoAnswer):
		return NoAnswer
	case errors.Is(err, syscall.ECONNRESET), errors.Is(err, syscall.EPIPE):
		return Reset
	}
	return Other
}

func (c *client) dial() error {
	// Not ended by Stop: a connect under way is answered or refused like any other, and counted.
	ctx, cancel := context.WithTimeout(context.Background(), c.l.cfg.Timeout)
	defer cancel()
	conn, err := c.l.cfg.Dial(ctx)
	if err != nil {
		return err
	}
	c.conn, c.r = conn, bufio.NewReader(conn)
	if c.keep && c.had {
		c.l.rec.reconnected()
	}
	c.had = true
	return nil
}

func (c *client) close() {
	if c.conn != nil {
		c.conn.Close()
		c.conn, c.r = nil, nil
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
func (c *client) pause() {
	end := time.Now().Add(c.l.cfg.Think)
	for c.conn != nil && !c.stopped() {
		left := time.Until(end)
		if left <= 0 {
			return
		}
		c.conn.SetReadDeadline(time.Now().Add(min(left, slice)))
		_, err := c.r.Peek(1)
		switch {
		case errors.Is(err, os.ErrDeadlineExceeded):
		case err != nil:
			c.l.rec.idleClosed()
			c.close()
		default:
			c.l.rec.failed(c, bad("the server speaks without being asked"))
			c.close()
		}
	}
	if left := time.Until(end); left > 0 {
		timer := time.NewTimer(left)
		defer timer.Stop()
		select {
		case <-timer.C:
		case <-c.l.stop:
		}
	}
}
