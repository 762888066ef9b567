package handoff

import (
	"bytes"
	"io"
	"net"
	"os"
	"sync"
	"testing"
	"time"
)

// tcpPair is a connection, and its other end.
func tcpPair(t *testing.T) (client, server *net.TCPConn) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	c, err := net.Dial("tcp", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	s, err := ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close(); s.Close() })
	return c.(*net.TCPConn), s.(*net.TCPConn)
}

// io.Copy takes another way out of a connection than Read (splice). It leads to
// what the other generation had read ahead all the same, and no wake ends it.
func TestCopyOfAConnection(t *testing.T) {
	tr := newTracker()
	client, server := tcpPair(t)
	tracked := tr.track(server, "http", nil)
	c, _ := baseConn(tracked)
	c.replay = []byte("read ahead, ")
	c.set(connIdle)
	c.wake() // the mover was about to take it when its request came

	copied := make(chan error, 1)
	var got bytes.Buffer
	begun := make(chan struct{})
	go func() {
		_, err := io.Copy(&signalled{Writer: &got, begun: begun}, tracked)
		copied <- err
	}()
	select {
	case <-begun:
	case err := <-copied:
		t.Fatalf("copied %q, %v", got.String(), err)
	}
	c.set(connIdle)
	c.wake() // it was noted as idle before
	io.WriteString(client, "and sent")
	client.CloseWrite()
	if err := <-copied; err != nil || got.String() != "read ahead, and sent" {
		t.Errorf("copied %q, %v", got.String(), err)
	}
	// The program's own deadline does end it.
	client, server = tcpPair(t)
	tracked = tr.track(server, "http", nil)
	tracked.SetReadDeadline(time.Now().Add(10 * time.Millisecond))
	if _, err := io.Copy(io.Discard, tracked); !os.IsTimeout(err) {
		t.Errorf("after the deadline: %v", err)
	}
}

// signalled tells when the first bytes are written.
type signalled struct {
	io.Writer
	once  sync.Once
	begun chan struct{}
}

func (s *signalled) Write(b []byte) (int, error) {
	s.once.Do(func() { close(s.begun) })
	return s.Writer.Write(b)
}
