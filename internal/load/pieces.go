package load

import (
	"crypto/sha256"
	"fmt"
	"net/http"
	"strconv"
	"time"
)

// askSlowly wants an answer that takes its time, so that it is under way while other things happen.
func (c *client) askSlowly(began time.Time) error {
	c.req.Reset()
	c.begin(http.MethodGet, c.l.cfg.SlowPath+"?for="+c.l.cfg.SlowFor.String())
	c.req.WriteString("\r\n")
	c.allow()
	if err := c.write(c.req.Bytes()); err != nil {
		return fmt.Errorf("write request: %w", err)
	}
	a, err := c.receive(nil)
	if err != nil {
		return err
	}
	return c.settle(a, began, c.l.cfg.SlowFor)
}

// sendInPieces sends a request whose head, and body if it has one, arrives at the server bit by bit.
func (c *client) sendInPieces(began time.Time) error {
	want := c.compose()
	rested, err := c.writePieces(c.req.Bytes(), 2+c.rand.IntN(3))
	if err != nil {
		return fmt.Errorf("write request: %w", err)
	}
	a, err := c.receive(want)
	if err != nil {
		return err
	}
	return c.settle(a, began, rested)
}

// expect sends the body of a POST when the server has asked for it.
func (c *client) expect(began time.Time) error {
	want := c.text(c.turns)
	c.req.Reset()
	c.begin(http.MethodPost, c.l.cfg.Post)
	fmt.Fprintf(&c.req, "Content-Length: %d\r\nExpect: 100-continue\r\n\r\n", len(want))
	c.allow()
	if err := c.write(c.req.Bytes()); err != nil {
		return fmt.Errorf("write head: %w", err)
	}
	if _, err := c.r.Peek(1); err != nil {
		_, err := c.receive(want) // the same error, in words
		return err
	}
	resp, err := c.readAnyHead()
	switch {
	case err != nil:
		return err
	case resp.StatusCode != http.StatusContinue:
		return bad("status %s where 100 Continue is expected", resp.Status)
	}
	rested, err := c.writePieces(want, 2)
	if err != nil {
		return fmt.Errorf("write body: %w", err)
	}
	a, err := c.receive(want)
	if err != nil {
		return err
	}
	return c.settle(a, began, rested)
}

// upload sends a body in pieces, with its length announced or chunked, and compares the digest that comes back.
func (c *client) upload(began time.Time) error {
	body := make([]byte, c.l.cfg.UploadSize)
	for i := range body {
		body[i] = byte(c.rand.Uint32())
	}
	want := fmt.Appendf(nil, "%x %d\n", sha256.Sum256(body), len(body))
	chunked := c.turns%2 == 0
	c.req.Reset()
	c.begin(http.MethodPost, c.l.cfg.UploadPath)
	if chunked {
		c.req.WriteString("Transfer-Encoding: chunked\r\n\r\n")
		for rest := body; len(rest) > 0; {
			n := min(len(rest), 1+c.rand.IntN(1+len(body)/4))
			c.req.WriteString(strconv.FormatInt(int64(n), 16) + "\r\n")
			c.req.Write(rest[:n])
			c.req.WriteString("\r\n")
			rest = rest[n:]
		}
		c.req.WriteString("0\r\n\r\n")
	} else {
		fmt.Fprintf(&c.req, "Content-Length: %d\r\n\r\n", len(body))
		c.req.Write(body)
	}
	rested, err := c.writePieces(c.req.Bytes(), 8)
	if err != nil {
		return fmt.Errorf("write upload: %w", err)
	}
	a, err := c.receive(want)
	if err != nil {
		return err
	}
	return c.settle(a, began, rested)
}

// pipelineDepth is how many requests are sent at once.
const pipelineDepth = 4

// pipeline sends several requests in one write, and wants all answers, in the order of the requests.
func (c *client) pipeline(began time.Time) error {
	var all []byte
	var wants [][]byte
	for range pipelineDepth {
		wants = append(wants, c.compose())
		all = append(all, c.req.Bytes()...)
		c.turns++
	}
	c.allow()
	if err := c.write(all); err != nil {
		return fmt.Errorf("write requests: %w", err)
	}
	for i, want := range wants {
		a, err := c.receive(want)
		switch {
		case err != nil:
			return fmt.Errorf("answer %d of %d: %w", i+1, pipelineDepth, err)
		case i == pipelineDepth-1:
			return c.settle(a, began, 0)
		case a.last:
			// Those behind it have been sent and will have no answer.
			c.l.rec.answered(c, a, began, 0)
			return fmt.Errorf("answer %d of %d: %w", i+2, pipelineDepth, errNoAnswer)
		}
		c.l.rec.answered(c, a, began, 0)
	}
	return nil
}

// writePieces writes p in n pieces of any size with pauses between, and returns how long it paused.
func (c *client) writePieces(p []byte, n int) (rested time.Duration, err error) {
	c.allow()
	for ; n > 1 && len(p) > 1; n-- {
		cut := 1 + c.rand.IntN(len(p)-1)
		if n > 2 { // in equal parts on average
			cut = 1 + c.rand.IntN(max(1, 2*len(p)/n-1))
		}
		if err := c.write(p[:cut]); err != nil {
			return rested, err
		}
		p = p[cut:]
		began := time.Now()
		c.rest(c.l.cfg.Piece)
		rested += time.Since(began)
	}
	c.allow() // the pauses are the client's own
	return rested, c.write(p)
}
