package load

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"strconv"
	"syscall"
	"time"
)

// exchange sends a request and judges what comes back.
func (c *client) exchange(began time.Time) error {
	want := c.compose()
	c.allow()
	if err := c.write(c.req.Bytes()); err != nil {
		return fmt.Errorf("write request: %w", err)
	}
	a, err := c.receive(want)
	if err != nil {
		return err
	}
	return c.settle(a, began, 0)
}

// settle counts a good answer and keeps or closes the connection, as the answer says. asked is the part of the time that
// the client wanted it to take.
func (c *client) settle(a answer, began time.Time, asked time.Duration) error {
	if c.r.Buffered() > 0 {
		return bad("%d bytes after the answer", c.r.Buffered())
	}
	c.l.rec.answered(c, a, began, asked)
	if c.b.keep && a.last {
		c.l.rec.polite(c)
	}
	if !c.b.keep || a.last {
		c.close()
	}
	return nil
}

// compose writes the next request into c.req and returns the body that the answer must have, or nil when any will do.
func (c *client) compose() (want []byte) {
	c.req.Reset()
	// Clients alternate, and not all in step.
	if c.l.cfg.GetOnly || (c.id+c.turns)%2 == 0 {
		c.begin(http.MethodGet, c.l.cfg.Get)
		c.req.WriteString("\r\n")
		return nil
	}
	want = c.text(c.turns)
	c.begin(http.MethodPost, c.l.cfg.Post)
	fmt.Fprintf(&c.req, "Content-Type: text/plain\r\nContent-Length: %d\r\n\r\n%s", len(want), want)
	return want
}

// begin appends the head of a request without its end.
func (c *client) begin(method, path string) {
	fmt.Fprintf(&c.req, "%s %s HTTP/1.1\r\nHost: %s\r\n", method, path, c.l.cfg.Host)
	if c.l.cfg.Agent != "" {
		fmt.Fprintf(&c.req, "User-Agent: %s\r\n", c.l.cfg.Agent)
	}
	if !c.b.keep {
		c.req.WriteString("Connection: close\r\n")
	}
}

// text is a body that no other request has.
func (c *client) text(n int) []byte {
	return strconv.AppendInt(append(strconv.AppendInt([]byte("client "), int64(c.id), 10), " request "...), int64(n), 10)
}

// answer is what the load needs to know of a good answer.
type answer struct {
	status  int
	version string
	last    bool // the server will close the connection
}

// receive reads one answer. want is the body that a POST must be answered with; nil stands for a GET, and any body.
func (c *client) receive(want []byte) (answer, error) {
	if _, err := c.r.Peek(1); err != nil {
		if errors.Is(err, io.EOF) {
			err = errNoAnswer
		}
		return answer{}, fmt.Errorf("await answer: %w", err)
	}
	resp, err := c.readHead()
	if err != nil {
		return answer{}, err
	}
	var body []byte
	if want != nil {
		body, err = io.ReadAll(io.LimitReader(resp.Body, int64(len(want))+1))
	} else {
		_, err = io.Copy(io.Discard, resp.Body)
	}
	switch {
	case err != nil:
		return answer{}, bad("read body of answer: %w", err)
	case resp.StatusCode != http.StatusOK && !c.l.cfg.AnyStatus:
		return answer{}, bad("status %s", resp.Status)
	case want != nil && !bytes.Equal(body, want):
		return answer{}, bad("sent %.100q, got %.100q back", want, body)
	}
	return answer{status: resp.StatusCode, version: resp.Header.Get("X-Version"), last: resp.Close}, nil
}

// readHead reads the head of the final answer. What a server may say before it (100, 103) is passed over.
func (c *client) readHead() (*http.Response, error) {
	for range 10 {
		resp, err := c.readAnyHead()
		if err != nil || resp.StatusCode >= 200 || resp.StatusCode == http.StatusSwitchingProtocols {
			return resp, err
		}
	}
	return nil, bad("more than 10 provisional answers")
}

func (c *client) readAnyHead() (*http.Response, error) {
	c.head.left = maxHead
	defer c.head.unlimited()
	resp, err := http.ReadResponse(c.r, nil) // no request has HEAD, the one method that matters
	if err != nil {
		return nil, bad("read answer: %w", err)
	}
	return resp, nil
}

var errNoAnswer = errors.New("connection closed before the first byte of an answer")

// badAnswer marks an error as one about what the server sent, or stopped sending half way.
type badAnswer struct{ error }

func (b badAnswer) Unwrap() error { return b.error }

func bad(format string, args ...any) error { return badAnswer{fmt.Errorf(format, args...)} }

// kindOf sorts an error.
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

// isEnd tells whether an error is the end of the connection, in whatever way it came.
func isEnd(err error) bool {
	for _, end := range []error{errEnded, errNoAnswer, io.EOF, io.ErrUnexpectedEOF, syscall.ECONNRESET, syscall.EPIPE} {
		if errors.Is(err, end) {
			return true
		}
	}
	return false
}

// errEnded is the end of a stream as its protocol announces it.
var errEnded = errors.New("the server ended the stream")
