package load

import (
	"bufio"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"time"
)

// readEvents opens a stream of server-sent events, if there is none, and reads it until it ends. Only Stop ends it
// without being noticed.
func (c *client) readEvents(began time.Time) error {
	c.req.Reset()
	c.begin(http.MethodGet, c.l.cfg.EventsPath)
	c.req.WriteString("Accept: text/event-stream\r\n\r\n")
	c.allow()
	if err := c.write(c.req.Bytes()); err != nil {
		return fmt.Errorf("write request: %w", err)
	}
	if _, err := c.r.Peek(1); err != nil {
		return fmt.Errorf("await the stream: %w", err)
	}
	resp, err := c.readHead()
	switch {
	case err != nil:
		return err
	case resp.StatusCode != http.StatusOK:
		return bad("status %s", resp.Status)
	case !strings.HasPrefix(resp.Header.Get("Content-Type"), "text/event-stream"):
		return bad("Content-Type %q is no stream of events", resp.Header.Get("Content-Type"))
	}
	c.l.rec.answered(c, answer{status: resp.StatusCode, version: resp.Header.Get("X-Version")}, began, 0)
	var seq sequence
	for r := bufio.NewReader(resp.Body); ; {
		// Stop may end the wait wherever it is: nothing is read from this connection afterwards.
		if !c.relax(time.Now().Add(c.l.cfg.Timeout)) {
			c.close()
			return nil
		}
		e, err := readEvent(r)
		c.tense()
		switch {
		case err != nil && c.stopped():
			c.close()
			return nil
		case err != nil:
			return fmt.Errorf("read events: %w", err)
		}
		n, text, ok := e.number()
		if !ok {
			c.l.rec.wrong(c, fmt.Sprintf("event without a number: %.100q", e.data))
			continue
		}
		if _, _, intact, mine := parseMessage(text); mine && !intact {
			c.l.rec.wrong(c, fmt.Sprintf("event %d: %.300q", n, text))
			continue
		}
		c.l.rec.message(c, &seq, n)
	}
}

// event is a server-sent event.
type event struct {
	id, data string
}

// number is the event's id or, where it has none, what its data begins with. text is the data without that.
func (e event) number() (n uint64, text string, ok bool) {
	n, text, ok = numbered(e.data)
	if id, err := strconv.ParseUint(e.id, 10, 64); err == nil {
		if !ok || n != id {
			text = e.data
		}
		return id, text, true
	}
	return n, text, ok
}

// maxEvent is the size of the largest event, in bytes.
const maxEvent = 1 << 20

// readEvent reads the next event that has data: comments keep a stream alive and say nothing. It returns io.EOF when the
// stream ends, also in the middle of an event, which then counts for nothing, as the standard has it.
func readEvent(r *bufio.Reader) (event, error) {
	var e event
	var data []string
	for size := 0; ; {
		line, err := readLine(r, maxEvent-size)
		if err != nil {
			return event{}, err
		}
		size += len(line)
		if line == "" {
			if data == nil {
				e, size = event{}, 0
				continue
			}
			e.data = strings.Join(data, "\n")
			return e, nil
		}
		field, value, _ := strings.Cut(line, ":")
		value = strings.TrimPrefix(value, " ")
		switch field {
		case "id":
			e.id = value
		case "data":
			data = append(data, value)
		}
	}
}

var errLongLine = errors.New("a line is too long")

// readLine reads a line of at most most bytes, without its end.
func readLine(r *bufio.Reader, most int) (string, error) {
	var line []byte
	for {
		part, err := r.ReadSlice('\n')
		line = append(line, part...)
		switch {
		case len(line) > most:
			return "", badAnswer{errLongLine}
		case err == nil:
			return strings.TrimRight(string(line), "\r\n"), nil
		case err != bufio.ErrBufferFull:
			return "", err
		}
	}
}
