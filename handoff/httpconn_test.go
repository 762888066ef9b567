package handoff

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"time"
)

// httpConn is a raw HTTP/1.1 connection, which sees closes as they happen.
type httpConn struct {
	net.Conn
	r *bufio.Reader
}

// idleConnection opens a connection and has one request answered on it.
func (s *stage) idleConnection() *httpConn {
	s.t.Helper()
	c, err := net.Dial("tcp", s.addr)
	if err != nil {
		s.t.Fatal(err)
	}
	h := &httpConn{c, bufio.NewReader(c)}
	if _, closing, err := h.get("/"); err != nil || closing {
		s.t.Fatalf("first request: %v, closing %v", err, closing)
	}
	return h
}

// get sends a request; closing reports whether the answer ends the connection.
func (h *httpConn) get(path string) (body string, closing bool, err error) {
	if _, err := fmt.Fprintf(h, "GET %s HTTP/1.1\r\nHost: test\r\n\r\n", path); err != nil {
		return "", false, err
	}
	return h.answer()
}

func (h *httpConn) answer() (body string, closing bool, err error) {
	h.SetReadDeadline(time.Now().Add(patience))
	resp, err := http.ReadResponse(h.r, nil)
	if err != nil {
		return "", false, err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	return string(b), resp.Close, err
}

// closed waits until the server closes the connection.
func (h *httpConn) closed() error {
	h.SetReadDeadline(time.Now().Add(patience))
	if _, err := h.r.ReadByte(); err != io.EOF {
		return fmt.Errorf("want the end of the connection, got %v", err)
	}
	return nil
}

// begin sends a request whose body the server asks for: whoever has accepted
// the connection is at work on it when begin returns. finish sends the body,
// which comes back as the answer.
func (h *httpConn) begin() (finish func() (closing bool, err error), err error) {
	fmt.Fprint(h, "POST / HTTP/1.1\r\nHost: test\r\nExpect: 100-continue\r\nContent-Length: 4\r\n\r\n")
	h.SetReadDeadline(time.Now().Add(patience))
	for _, want := range []string{"HTTP/1.1 100 Continue\r\n", "\r\n"} {
		if line, err := h.r.ReadString('\n'); line != want {
			return nil, fmt.Errorf("got %q in place of %q, %w", line, want, err)
		}
	}
	return func() (bool, error) {
		fmt.Fprint(h, "body")
		got, closing, err := h.answer()
		if err == nil && got != "body" {
			err = fmt.Errorf("answer %q", got)
		}
		return closing, err
	}, nil
}
