package systest

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"time"
)

// http2Conn is as much of an HTTP/2 client (RFC 9113) as it takes to see what becomes of a connection: one request at a
// time, each sent once. The one of net/http sends requests again.
type http2Conn struct {
	net.Conn
	r      *bufio.Reader
	stream uint32
	away   bool   // the server says goodbye: a connection for the next request is wanted
	last   uint32 // the last request that it answers, then
}

const (
	frameData, frameHeaders, frameReset, frameSettings = 0, 1, 3, 4
	framePing, frameGoAway, frameWindow                = 6, 7, 8

	flagEndStream, flagAck, flagEndHeaders = 1, 1, 4
)

func newHTTP2Conn(conn net.Conn) (*http2Conn, error) {
	c := &http2Conn{Conn: conn, r: bufio.NewReader(conn)}
	out := []byte("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
	out = appendHTTP2(out, frameSettings, 0, 0, nil)
	out = appendHTTP2(out, frameWindow, 0, 0, binary.BigEndian.AppendUint32(nil, 1<<30)) // all that this test will ever read
	_, err := conn.Write(out)
	return c, err
}

func appendHTTP2(b []byte, kind, flags byte, stream uint32, payload []byte) []byte {
	b = append(b, byte(len(payload)>>16), byte(len(payload)>>8), byte(len(payload)), kind, flags)
	return append(binary.BigEndian.AppendUint32(b, stream), payload...)
}

// errUnprocessed: the server has said goodbye and that it did nothing with the request. To send it again, on another
// connection, is not a retry but what the protocol wants.
var errUnprocessed = errors.New("the server has ended the connection before the request")

// ask sends a request, a POST if there is a body, and returns the body of the answer.
func (c *http2Conn) ask(body []byte) ([]byte, error) {
	c.SetDeadline(time.Now().Add(patience))
	c.stream += 2
	id := c.stream - 1
	// HPACK (RFC 7541): entries of its static table by their number, and :authority in plain.
	const authority = "\x01\x05hello"
	var out []byte
	if body == nil {
		out = appendHTTP2(nil, frameHeaders, flagEndHeaders|flagEndStream, id, []byte("\x82\x87\x84"+authority))
	} else {
		out = appendHTTP2(nil, frameHeaders, flagEndHeaders, id, []byte("\x83\x87\x84"+authority))
		out = appendHTTP2(out, frameData, flagEndStream, id, body)
	}
	if _, err := c.Write(out); err != nil {
		return nil, err
	}
	var answer []byte
	for status := false; ; {
		kind, flags, stream, payload, err := c.frame()
		switch {
		case err != nil && c.away && c.last < id:
			return nil, errUnprocessed
		case err != nil:
			return nil, err
		case stream != id:
			continue
		}
		switch kind {
		case frameHeaders:
			if status = len(payload) > 0 && payload[0] == 0x88; !status { // :status 200
				return nil, fmt.Errorf("status other than 200: head %x", payload)
			}
		case frameData:
			answer = append(answer, payload...)
		case frameReset:
			return nil, fmt.Errorf("the server gives the request up: %x", payload)
		}
		if (kind == frameHeaders || kind == frameData) && flags&flagEndStream != 0 {
			if !status {
				return nil, errors.New("an answer without a head")
			}
			return answer, nil
		}
	}
}

// listen takes what the server says by itself until end; the error is os.ErrDeadlineExceeded, or that of the connection.
func (c *http2Conn) listen(end time.Time) error {
	c.SetDeadline(end)
	if _, err := c.r.Peek(1); err != nil {
		return err
	}
	c.SetDeadline(time.Now().Add(patience))
	_, _, _, _, err := c.frame()
	return err
}

// frame reads a frame and does what those want that belong to no request.
func (c *http2Conn) frame() (kind, flags byte, stream uint32, payload []byte, err error) {
	var head [9]byte
	if _, err := io.ReadFull(c.r, head[:]); err != nil {
		return 0, 0, 0, nil, err
	}
	kind, flags, stream = head[3], head[4], binary.BigEndian.Uint32(head[5:])
	payload = make([]byte, int(head[0])<<16|int(head[1])<<8|int(head[2]))
	if _, err := io.ReadFull(c.r, payload); err != nil {
		return 0, 0, 0, nil, err
	}
	switch {
	case kind == frameSettings && flags&flagAck == 0:
		_, err = c.Write(appendHTTP2(nil, frameSettings, flagAck, 0, nil))
	case kind == framePing && flags&flagAck == 0:
		_, err = c.Write(appendHTTP2(nil, framePing, flagAck, 0, payload))
	case kind == frameGoAway && len(payload) >= 8:
		c.away, c.last = true, binary.BigEndian.Uint32(payload)
		if code := binary.BigEndian.Uint32(payload[4:]); code != 0 {
			err = fmt.Errorf("the server goes away with error %d", code)
		}
	}
	return kind, flags, stream, payload, err
}

// http2Load are clients that keep their connection until the server says goodbye. It counts as package load does.
type http2Load struct {
	dial func(context.Context) (net.Conn, error)
	stop chan struct{}
	once sync.Once
	wg   sync.WaitGroup

	mu sync.Mutex
	http2Report
}

type http2Report struct {
	Requests, Failed, Refused, PoliteCloses, IdleCloses, Reconnects, Unprocessed int
	Versions                                                                     map[string]int
	Failures                                                                     []string
}

func startHTTP2Load(clients int, dial func(context.Context) (net.Conn, error)) *http2Load {
	l := &http2Load{dial: dial, stop: make(chan struct{}), http2Report: http2Report{Versions: make(map[string]int)}}
	for i := range clients {
		l.wg.Go(func() { l.client(i) })
	}
	return l
}

func (l *http2Load) end() http2Report {
	l.once.Do(func() { close(l.stop) })
	l.wg.Wait()
	return l.http2Report
}

func (l *http2Load) requests() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.Requests
}

func (l *http2Load) count(change func(*http2Report)) {
	l.mu.Lock()
	defer l.mu.Unlock()
	change(&l.http2Report)
}

func (l *http2Load) client(n int) {
	const think = 5 * time.Millisecond
	var c *http2Conn
	giveUp := func() { c.Close(); c = nil }
	for turn, had := 0, false; ; turn++ {
		select {
		case <-l.stop:
			if c != nil {
				c.Close()
			}
			return
		default:
		}
		if c == nil {
			var err error
			if c, err = l.connect(); err != nil {
				l.count(func(r *http2Report) { r.Refused++; r.Failures = append(r.Failures, err.Error()) })
				return
			}
			if had {
				l.count(func(r *http2Report) { r.Reconnects++ })
			}
			had = true
		}
		var body []byte
		if (n+turn)%2 == 0 {
			body = fmt.Appendf(nil, "client %d request %d", n, turn)
		}
		answer, err := c.ask(body)
		switch {
		case errors.Is(err, errUnprocessed):
			l.count(func(r *http2Report) { r.Unprocessed++ })
		case err == nil && body != nil && !bytes.Equal(answer, body):
			err = fmt.Errorf("sent %q, got %q back", body, answer)
			fallthrough
		case err != nil:
			l.count(func(r *http2Report) { r.Requests++; r.Failed++; r.Failures = append(r.Failures, err.Error()) })
			giveUp()
			continue
		case body == nil:
			l.count(func(r *http2Report) { r.Requests++; r.Versions[string(answer)]++ })
		default:
			l.count(func(r *http2Report) { r.Requests++ })
		}
		for end := time.Now().Add(think); c != nil && !c.away && time.Now().Before(end); {
			if err := c.listen(end); err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
				l.count(func(r *http2Report) { r.IdleCloses++; r.Failures = append(r.Failures, "idle: "+err.Error()) })
				giveUp()
			}
		}
		if c != nil && c.away {
			l.count(func(r *http2Report) { r.PoliteCloses++ })
			giveUp()
		}
	}
}

func (l *http2Load) connect() (*http2Conn, error) {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	conn, err := l.dial(ctx)
	if err != nil {
		return nil, err
	}
	c, err := newHTTP2Conn(conn)
	if err != nil {
		conn.Close()
		return nil, err
	}
	return c, nil
}
