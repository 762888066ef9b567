package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/zdt-dev/zdt/examples/internal/staging"
	"github.com/zdt-dev/zdt/handoff/control"
)

func TestMain(m *testing.M) { staging.Main(m, main) }

// client is a client that has one connection and never gets another.
type client struct {
	conn  net.Conn
	lines *bufio.Reader
	n     int // answers
}

func dial(t *testing.T, s *staging.Service) *client {
	t.Helper()
	conn, err := net.Dial("tcp", s.Addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	conn.SetDeadline(time.Now().Add(time.Minute))
	return &client{conn: conn, lines: bufio.NewReader(conn)}
}

// expect reads the answer to line and holds every byte of it against what it must be.
func (c *client) expect(line string) error {
	got, err := c.lines.ReadString('\n')
	if err != nil {
		return fmt.Errorf("answer %d: %w", c.n+1, err)
	}
	c.n++
	if want := fmt.Sprintf("%d %s\n", c.n, line); got != want {
		return fmt.Errorf("answer %.80q, want %.80q", got, want)
	}
	return nil
}

func (c *client) say(t *testing.T, line string) {
	t.Helper()
	if _, err := io.WriteString(c.conn, line+"\n"); err != nil {
		t.Fatal(err)
	}
	if err := c.expect(line); err != nil {
		t.Fatal(err)
	}
}

// text is a line of up to size bytes, any but newlines.
func text(r *rand.Rand, size int) string {
	b := make([]byte, r.IntN(size))
	for i := range b {
		if b[i] = byte(r.Uint32()); b[i] == '\n' {
			b[i] = ' '
		}
	}
	return string(b)
}

// talk sends lines in pieces that end anywhere, and waits for the answers to a few at a time.
func (c *client) talk(r *rand.Rand, stop <-chan struct{}) error {
	for {
		select {
		case <-stop:
			return nil
		default:
		}
		var lines []string
		for range 1 + r.IntN(5) {
			lines = append(lines, text(r, 300))
		}
		for all := strings.Join(lines, "\n") + "\n"; all != ""; {
			n := 1 + r.IntN(len(all))
			if _, err := io.WriteString(c.conn, all[:n]); err != nil {
				return err
			}
			all = all[n:]
		}
		for _, line := range lines {
			if err := c.expect(line); err != nil {
				return err
			}
		}
	}
}

// pour sends without ever waiting for an answer, so that there is always more to read for the server; the lines are long,
// so that the kernel's buffers are full and it sends while it is moved.
func (c *client) pour(seed uint64, stop <-chan struct{}) error {
	sent := make(chan int, 1)
	failed := make(chan error, 1)
	go func() {
		r, n := rand.New(rand.NewPCG(seed, 0)), 0
		defer func() { sent <- n }()
		for {
			select {
			case <-stop:
				return
			default:
			}
			if _, err := io.WriteString(c.conn, text(r, maxLine)+"\n"); err != nil {
				failed <- err
				return
			}
			n++
		}
	}()
	r, all := rand.New(rand.NewPCG(seed, 0)), -1
	for c.n != all {
		select {
		case all = <-sent:
			continue
		case err := <-failed:
			return err
		default:
		}
		if all < 0 {
			// An answer may never come when the sender has just stopped.
			c.conn.SetReadDeadline(time.Now().Add(20 * time.Millisecond))
			_, err := c.lines.Peek(1)
			c.conn.SetReadDeadline(time.Now().Add(time.Minute))
			if errors.Is(err, os.ErrDeadlineExceeded) {
				continue
			}
		}
		if err := c.expect(text(r, maxLine)); err != nil {
			return err
		}
	}
	return nil
}

// Ten upgrades in a row, and no client notices: each has one connection, and gets every byte of every answer.
func TestUpgrades(t *testing.T) {
	s := staging.Start(t)
	const talkers, pourers = 4, 1
	var busy sync.WaitGroup
	stop := make(chan struct{})
	errs := make(chan error, talkers+pourers)
	for i := range talkers {
		c := dial(t, s)
		busy.Go(func() { errs <- c.talk(rand.New(rand.NewPCG(uint64(i), 0)), stop) })
	}
	for i := range pourers {
		c := dial(t, s)
		busy.Go(func() { errs <- c.pour(uint64(100+i), stop) })
	}
	half, idle, silent := dial(t, s), dial(t, s), dial(t, s)
	half.say(t, "first")
	idle.say(t, "first")
	for i := range 10 {
		// The server has the half line, in its own memory and not in the kernel's.
		line := fmt.Sprintf("in the middle of upgrade %d", i)
		cut := rand.IntN(len(line))
		if _, err := io.WriteString(half.conn, line[:cut]); err != nil {
			t.Fatal(err)
		}
		staging.AwaitRead(t, half.conn.LocalAddr().String())
		counts := s.Upgrade()
		if want := (control.Counts{Moved: talkers + pourers + 3}); counts != want {
			t.Errorf("upgrade %d: %+v, want %+v", i, counts, want)
		}
		if _, err := io.WriteString(half.conn, line[cut:]+"\n"); err != nil {
			t.Fatal(err)
		}
		if err := half.expect(line); err != nil {
			t.Fatal(err)
		}
	}
	idle.say(t, "second")
	silent.say(t, "first")
	close(stop)
	busy.Wait()
	close(errs)
	for err := range errs {
		if err != nil {
			t.Error(err)
		}
	}
}

// An upgrade that is undone: connections that the candidate had accepted come to the old process, in the middle of a line.
func TestUndoneUpgrade(t *testing.T) {
	s := staging.Start(t)
	before := dial(t, s)
	before.say(t, "to the incumbent")
	s.Hold()
	during := dial(t, s)
	during.say(t, "to the candidate")
	io.WriteString(during.conn, "to bo")
	staging.AwaitRead(t, during.conn.LocalAddr().String())
	s.Abort()
	io.WriteString(during.conn, "th\n")
	if err := during.expect("to both"); err != nil {
		t.Fatal(err)
	}
	before.say(t, "to the incumbent still")
	if counts := s.Upgrade(); counts.Moved != 2 {
		t.Errorf("%+v, want 2 moved", counts)
	}
	before.say(t, "to its successor")
	during.say(t, "to its successor")
}

// What the client has sent is answered, also when it closes its side at once.
func TestHalfClose(t *testing.T) {
	s := staging.Start(t)
	c := dial(t, s)
	io.WriteString(c.conn, "one\n\nthree\nno line")
	c.conn.(*net.TCPConn).CloseWrite()
	got, err := io.ReadAll(c.conn)
	if want := "1 one\n2 \n3 three\n"; err != nil || string(got) != want {
		t.Errorf("%q, %v, want %q", got, err, want)
	}
}

func TestLongLine(t *testing.T) {
	s := staging.Start(t)
	c := dial(t, s)
	c.say(t, strings.Repeat("x", maxLine-1))
	io.WriteString(c.conn, strings.Repeat("x", maxLine)) // without more, which the server would close in the face of
	got, err := io.ReadAll(c.conn)
	if want := "! a line has 4096 bytes at most\n"; err != nil || string(got) != want {
		t.Errorf("%q, %v, want %q", got, err, want)
	}
}
