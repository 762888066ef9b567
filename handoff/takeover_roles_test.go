package handoff

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"github.com/zdt-dev/zdt/handoff/control"
)

// envWait names a file that the role "crossing" waits for between Open and READY.
const envWait = "ZDT_TEST_WAIT"

// crossingMain is a service with every kind of connection that can cross over:
// HTTP, and lines over a socket called "lines".
func crossingMain() error {
	cfg, err := readConfig()
	if err != nil {
		return err
	}
	h, err := Open(cfg.options())
	if err != nil {
		return err
	}
	defer h.Close()
	h.OnConn("lines/1", func(conn net.Conn, session json.RawMessage) {
		var n int
		json.Unmarshal(session, &n)
		serveLines(h, conn, n)
	})
	for path := os.Getenv(envWait); path != "" && h.Context().Err() == nil; time.Sleep(3 * time.Millisecond) {
		if _, err := os.Stat(path); err == nil {
			break
		}
	}
	srv := &http.Server{Handler: serviceMux(h, new(atomic.Int64))}
	ended := make(chan error, len(cfg.Sockets))
	var serve []func()
	for _, s := range cfg.Sockets {
		if s.Network == "udp" {
			pc, err := h.ListenPacket(s.Name, s.Network, s.Address)
			if err != nil {
				return err
			}
			serve = append(serve, func() { ended <- echo(h, pc) })
			continue
		}
		ln, err := h.Listen(s.Name, s.Network, s.Address)
		if err != nil {
			return err
		}
		if s.Name == "lines" {
			serve = append(serve, func() { ended <- acceptLines(h, ln) })
			continue
		}
		serve = append(serve, func() { ended <- h.Serve(srv, ln) })
	}
	for _, f := range serve {
		go f()
	}
	var errs []error
	for range serve {
		errs = append(errs, <-ended)
	}
	<-h.Done()
	return errors.Join(errs...)
}

func acceptLines(h *Handoff, ln net.Listener) error {
	for {
		c, err := ln.Accept()
		if errors.Is(err, net.ErrClosed) {
			return nil
		}
		if err != nil {
			return err
		}
		go serveLines(h, c, 0)
	}
}

// serveLines answers each line with its number in this connection, and who answers.
func serveLines(h *Handoff, c net.Conn, n int) {
	t, err := h.Track(c, Codec{Protocol: "lines/1", Session: func() (any, error) { return n, nil }})
	if err != nil {
		c.Close()
		return
	}
	r := bufio.NewReader(t)
	for {
		line, err := r.ReadString('\n')
		if err != nil {
			t.Close()
			return
		}
		n++
		if _, err := fmt.Fprintf(t, "%d g%d %s", n, h.Generation(), line); err != nil {
			t.Close()
			return
		}
		t.Boundary(r.Buffered())
	}
}

// box is a process with a supervisor and a runtime directory of its own, as a
// container has.
type box struct{ *stage }

// crossings are the sockets of the role "crossing".
func crossings(dir string) []socketSpec {
	return []socketSpec{{"http", "tcp", "127.0.0.1:0"}, {"lines", "tcp", "127.0.0.1:0"}, {"udp", "udp", "127.0.0.1:0"}, {"unix", "unix", filepath.Join(dir, "u.sock")}}
}

// newBox prepares a first generation.
func newBox(t *testing.T, cfg serviceConfig) *box {
	t.Helper()
	b := &box{newStage(t, quick(cfg))}
	if cfg.Sockets == nil {
		b.cfg.Sockets = crossings(b.dir)
	}
	return b
}

// beside prepares another box of the same service.
func (b *box) beside() *box {
	b.t.Helper()
	n := &box{newStage(b.t, b.cfg)}
	n.addr = b.addr
	return n
}

// shared is where the boxes meet: in the directory of the first one.
func (b *box) shared() string { return filepath.Join(b.dir, "takeover") }

// start starts the box's process. How may change the command: its environment,
// its namespaces.
func (b *box) start(takeover string, how ...func(*exec.Cmd)) int {
	b.t.Helper()
	cfg, err := json.Marshal(b.cfg)
	if err != nil {
		b.t.Fatal(err)
	}
	cmd := exec.Command(b.play("crossing"))
	cmd.Dir, cmd.Stdout, cmd.Stderr = b.dir, b.stderr, b.stderr
	cmd.Env = append(os.Environ(), envRole+"="+b.dir, envConfig+"="+string(cfg), "NOTIFY_SOCKET="+b.systemd.path,
		"RUNTIME_DIRECTORY="+b.dir, "ZDT_SERVICE=web", "ZDT_TAKEOVER="+takeover, "GORACE=halt_on_error=1 exitcode=66 atexit_sleep_ms=0")
	for _, f := range how {
		f(cmd)
	}
	if err := cmd.Start(); err != nil {
		b.t.Fatal(err)
	}
	b.first = cmd
	b.opener.Add(1)
	go func() {
		defer b.opener.Done()
		cmd.Wait()
		exit := exitOf(cmd.ProcessState, nil)
		b.mu.Lock()
		defer b.mu.Unlock()
		b.exits[cmd.Process.Pid] = exit.Code + " " + exit.Status
	}()
	b.systemd.setMain(cmd.Process.Pid)
	return cmd.Process.Pid
}

// startFirst starts the first generation and waits until it serves.
func (b *box) startFirst(how ...func(*exec.Cmd)) control.Status {
	b.t.Helper()
	b.start(b.shared(), how...)
	st := b.await("idle", func(st control.Status) bool { return st.Phase == control.Idle })
	b.addr = b.address(st, "http")
	return st
}

func (b *box) address(st control.Status, name string) string {
	b.t.Helper()
	for _, s := range st.Sockets {
		if s.Name == name {
			return s.Address
		}
	}
	b.t.Fatalf("no socket %q in %+v", name, st.Sockets)
	return ""
}

// waiting makes a process wait between Open and READY until release is called.
func (b *box) waiting() (how func(*exec.Cmd), release func()) {
	path := filepath.Join(b.dir, "go")
	return func(cmd *exec.Cmd) { cmd.Env = append(cmd.Env, envWait+"="+path) }, func() {
		b.t.Helper()
		if err := os.WriteFile(path, nil, 0o644); err != nil {
			b.t.Fatal(err)
		}
	}
}

// failed waits until the box's process has ended with status 1, and returns
// what it said.
func (b *box) failed() string {
	b.t.Helper()
	b.awaitExit(b.first.Process.Pid, "exited 1")
	return readFile(b.stderr.Name())
}

// holdNext makes the next handoff one that somebody decides, whoever begins it.
func (b *box) holdNext(txid string) {
	b.t.Helper()
	if _, err := b.ask(func(ctx context.Context, c *control.Client) (control.Status, error) {
		return c.Arm(ctx, control.Arm{TxID: txid, Hold: true, HoldFor: patience})
	}); err != nil {
		b.t.Fatal(err)
	}
}

// held starts a newcomer, and waits until it is READY and held.
func (b *box) held(how ...func(*exec.Cmd)) *box {
	b.t.Helper()
	b.holdNext("held")
	n := b.beside()
	n.start(b.shared(), how...)
	b.await("held", func(st control.Status) bool { return st.Phase == control.Held })
	return n
}

func (b *box) decide(f func(*control.Client, context.Context) (control.Status, error)) {
	b.t.Helper()
	if _, err := b.ask(func(ctx context.Context, c *control.Client) (control.Status, error) { return f(c, ctx) }); err != nil {
		b.t.Fatal(err)
	}
}

// descriptors counts what a process has open.
func descriptors(t *testing.T, pid int) int {
	t.Helper()
	entries, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid))
	if err != nil {
		t.Fatal(err)
	}
	return len(entries)
}

// customers are the connections of clients that must not notice anything.
type customers struct {
	t     *testing.T
	http  []*httpConn
	lines net.Conn
	r     *bufio.Reader
	n     int
	udp   control.Socket
	s     *stage
}

// visit opens connections of every kind to the service that st tells of.
func (b *box) visit(st control.Status) *customers {
	b.t.Helper()
	c := &customers{t: b.t, s: b.stage}
	dial := func(network, address string) net.Conn {
		b.t.Helper()
		conn, err := net.Dial(network, address)
		if err != nil {
			b.t.Fatal(err)
		}
		b.t.Cleanup(func() { conn.Close() })
		return conn
	}
	for _, s := range st.Sockets {
		switch s.Name {
		case "http", "unix":
			conn := dial(s.Network, s.Address)
			c.http = append(c.http, &httpConn{conn, bufio.NewReader(conn)})
		case "lines":
			c.lines = dial(s.Network, s.Address)
			c.r = bufio.NewReader(c.lines)
		case "udp":
			c.udp = s
		}
	}
	return c
}

// answeredBy checks that all connections are open still, and that generation
// serves them and everything else.
func (c *customers) answeredBy(generation int) {
	c.t.Helper()
	c.servedBy(generation)
	want := fmt.Sprintf("%d ping", generation)
	eventually(c.t, fmt.Sprintf("UDP answers %q", want), func() bool { return c.s.ping(c.udp) == want })
}

// servedBy checks the connections alone: while a newcomer is held, those of
// before are still the incumbent's.
func (c *customers) servedBy(generation int) {
	c.t.Helper()
	for i, conn := range c.http {
		body, closing, err := conn.get("/")
		var got int
		fmt.Sscan(body, &got)
		if err != nil || closing || got != generation {
			c.t.Errorf("HTTP connection %d: %q, closing %v, %v; want generation %d", i, body, closing, err, generation)
		}
	}
	c.n++
	c.lines.SetDeadline(time.Now().Add(patience))
	fmt.Fprintf(c.lines, "hello\n")
	answer, err := c.r.ReadString('\n')
	if want := fmt.Sprintf("%d g%d hello\n", c.n, generation); err != nil || answer != want {
		c.t.Errorf("lines: %q, %v; want %q", answer, err, want)
	}
}

// leave closes the connections.
func (c *customers) leave() {
	for _, conn := range c.http {
		conn.Close()
	}
	c.lines.Close()
}

// saidReady reports whether this box's supervisor has heard of READY.
func (b *box) saidReady() bool {
	for _, n := range b.systemd.all() {
		if len(n.text) >= 8 && n.text[:8] == "READY=1\n" {
			return true
		}
	}
	return false
}
