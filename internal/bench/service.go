package main

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/zdt-dev/zdt/handoff/control"
)

// movingService is the service of serveMoving, as whoever measures has it.
type movingService struct {
	*process
	dir        string
	http, line string // addresses
	conns      []net.Conn
	status     control.Status // as of the last settled
}

func startMoving(ctx context.Context, env ...string) (s *movingService, err error) {
	dir, err := os.MkdirTemp("", "zdt-bench-")
	if err != nil {
		return nil, err
	}
	p, err := startProcess(ctx, roleMoving, false, append(env, "RUNTIME_DIRECTORY="+dir, "NOTIFY_SOCKET=")...)
	if err != nil {
		os.RemoveAll(dir)
		return nil, err
	}
	s = &movingService{process: p, dir: dir}
	defer func() {
		if err != nil {
			s.stop()
		}
	}()
	var r report
	if err := s.hear(&r); err != nil {
		return nil, err
	}
	s.http, s.line = r.HTTP, r.Line
	return s, s.settled(ctx, 1)
}

func (s *movingService) stop() {
	hangUp(s.conns)
	s.process.stop()
	os.RemoveAll(s.dir)
}

// handOver hands the service over to a successor and returns what the old generation says of the connections that moved.
func (s *movingService) handOver(ctx context.Context) (report, error) {
	if err := unix.Kill(s.status.PID, unix.SIGUSR2); err != nil {
		return report{}, err
	}
	var first, last report
	if err := s.hear(&first); err != nil { // the successor listens
		return report{}, err
	}
	if err := s.hear(&last); err != nil {
		return report{}, err
	}
	return last, s.settled(ctx, s.status.Generation+1)
}

// settled waits until a generation serves and the one before is gone.
func (s *movingService) settled(ctx context.Context, generation int) error {
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	for {
		c, err := control.Dial(ctx, filepath.Join(s.dir, "control.sock"))
		if err == nil {
			s.status, err = c.Status(ctx)
			c.Close()
		}
		if err == nil && s.status.Generation == generation && s.status.Phase == control.Idle && s.status.Predecessor == nil {
			return nil
		}
		select {
		case <-time.After(5 * time.Millisecond):
		case <-ctx.Done():
			return fmt.Errorf("wait for generation %d (%s, generation %d): %w", generation, s.status.Phase, s.status.Generation, ctx.Err())
		}
	}
}

// open waits until the service knows n connections.
func (s *movingService) open(ctx context.Context, n int) error {
	for {
		if err := s.settled(ctx, s.status.Generation); err != nil || s.status.Connections.Open() == n {
			return err
		}
		time.Sleep(time.Millisecond)
	}
}

// touch sends a request over every connection, as clients do now and then.
func (s *movingService) touch() error {
	for _, c := range s.conns {
		if _, err := io.WriteString(c, request); err != nil {
			return err
		}
	}
	answer := make([]byte, 4096)
	for _, c := range s.conns {
		if _, err := c.Read(answer); err != nil {
			return err
		}
	}
	return nil
}

// ask reads a document of the service over a connection of its own.
func ask(addr, path string, v any) error {
	c, err := net.Dial("tcp", addr)
	if err != nil {
		return err
	}
	defer c.Close()
	if _, err := fmt.Fprintf(c, "GET %s HTTP/1.1\r\nHost: bench\r\nConnection: close\r\n\r\n", path); err != nil {
		return err
	}
	resp, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	return json.NewDecoder(resp.Body).Decode(v)
}

// dial opens n connections.
func dial(addr string, n int) (conns []net.Conn, err error) {
	for range n {
		c, err := net.Dial("tcp", addr)
		if err != nil {
			hangUp(conns)
			return nil, err
		}
		conns = append(conns, c)
	}
	return conns, nil
}

func hangUp(conns []net.Conn) {
	for _, c := range conns {
		c.Close()
	}
}
