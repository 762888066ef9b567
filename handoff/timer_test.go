package handoff

import (
	"context"
	"encoding/json"
	"errors"
	"net"
	"net/http"
	"os"
	"testing"
	"testing/synctest"
	"time"

	"github.com/zdt-dev/zdt/handoff/control"
	"github.com/zdt-dev/zdt/internal/gate"
	"github.com/zdt-dev/zdt/journal"
)

// What depends on time alone, in a time of its own.

// bareHandoff is a generation with its deciding goroutine and without
// signals, sockets or processes. The caller closes it.
func bareHandoff(t *testing.T, o Options) *Handoff {
	t.Helper()
	o.Logger = quiet()
	o, err := o.withDefaults(func(string) string { return "" })
	if err != nil {
		t.Fatal(err)
	}
	h := &Handoff{
		opt: o, started: time.Now(), generation: 1, origin: fromSystemd, gate: gate.New(gate.Paused), tracker: newTracker(),
		unserved: map[any]struct{}{}, servers: map[*http.Server]struct{}{}, httpServers: map[string][]*arrivals{}, onConn: map[string]func(net.Conn, json.RawMessage){}, calls: make(chan func(*machine)), deaf: make(chan struct{}), done: make(chan struct{}),
	}
	h.events = journal.NewLog(h.opt.Service, nil, quiet())
	h.control = noControl(t)
	if h.takeover, err = openTakeover(h, -1); err != nil {
		t.Fatal(err)
	}
	h.ctx, h.cancel = context.WithCancelCause(context.Background())
	go newMachine(h).run()
	return h
}

// noControl is a control socket that is none.
func noControl(t *testing.T) *control.Server {
	t.Helper()
	s, err := control.Listen("", control.Runtime{})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestArmExpires(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := bareHandoff(t, Options{})
		defer h.Close()
		h.Ready()
		ask := func(req control.Request) (resp control.Response) {
			h.do(func(m *machine) { resp = m.answer(req) })
			return resp
		}
		arm := control.Request{Op: control.OpArm, Arm: &control.Arm{TxID: "t1"}}
		if resp := ask(arm); resp.Code != "" || resp.Status.Armed == nil {
			t.Fatalf("arm: %+v", resp)
		}
		time.Sleep(armTimeout - time.Millisecond)
		if resp := ask(arm); resp.Code != "" {
			t.Errorf("the same transaction arms again: %+v", resp)
		}
		time.Sleep(armTimeout - time.Millisecond)
		if resp := ask(control.Request{Op: control.OpArm, Arm: &control.Arm{TxID: "t2"}}); resp.Code != control.CodeBusy {
			t.Errorf("another transaction: %+v", resp)
		}
		time.Sleep(2 * time.Millisecond)
		if resp := ask(control.Request{Op: control.OpStatus}); resp.Status.Armed != nil {
			t.Errorf("still armed: %+v", resp.Status.Armed)
		}
	})
}

// fakeConn is a connection that has nothing to say.
type fakeConn struct {
	net.Conn
	closed chan struct{}
}

func (f *fakeConn) Close() error { close(f.closed); return nil }

func TestDrainStages(t *testing.T) {
	for _, tt := range []struct {
		name  string
		state connState
		o     Options
		after time.Duration // when the drain ends
		want  control.Counts
	}{
		{"idle", connIdle, Options{IdleGrace: time.Second}, time.Second, control.Counts{Closed: 1}},
		{"idle beyond the deadline", connIdle, Options{IdleGrace: time.Minute, DrainTimeout: 2 * time.Second}, 2 * time.Second, control.Counts{Cut: 1}},
		{"active", connActive, Options{DrainTimeout: 3 * time.Second}, 3 * time.Second, control.Counts{Cut: 1}},
		{"stream", connStream, Options{DrainTimeout: 3 * time.Second, StreamTimeout: 9 * time.Second}, 9 * time.Second, control.Counts{Cut: 1}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				o, _ := tt.o.withDefaults(func(string) string { return "" })
				tr := newTracker()
				f, c := &fakeConn{closed: make(chan struct{})}, &conn{}
				tr.add(c, f, "")
				c.set(tt.state)
				began := time.Now()
				d := startDrain(t.Context(), tr, o, o.IdleGrace, nil, func(context.Context) {})
				if got := *d.counts.Load(); got.Open() != 1 {
					t.Errorf("counts at the beginning: %+v", got)
				}
				<-d.done
				<-f.closed
				if took := time.Since(began); took < tt.after || took > tt.after+2*drainTick {
					t.Errorf("took %v, want %v", took, tt.after)
				}
				if got := *d.counts.Load(); got != tt.want {
					t.Errorf("counts %+v, want %+v", got, tt.want)
				}
				c.ended() // its owner closes it too
				if _, ended, _ := tr.snapshot(); ended != 1 {
					t.Errorf("%d ended", ended)
				}
			})
		})
	}
}

// What is read restarts the grace: half a head is no idle connection.
func TestGraceRestarts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o, _ := Options{IdleGrace: time.Second}.withDefaults(func(string) string { return "" })
		tr := newTracker()
		c := &conn{}
		tr.add(c, &fakeConn{closed: make(chan struct{})}, "")
		c.set(connIdle)
		began := time.Now()
		d := startDrain(t.Context(), tr, o, o.IdleGrace, nil, func(context.Context) {})
		for range 4 {
			time.Sleep(900 * time.Millisecond)
			c.gave([]byte{0})
		}
		<-d.done
		if took := time.Since(began); took < 4*900*time.Millisecond+time.Second {
			t.Errorf("closed after %v", took)
		}
	})
}

func TestHurry(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o, _ := Options{IdleGrace: time.Minute, DrainTimeout: time.Hour}.withDefaults(func(string) string { return "" })
		tr := newTracker()
		c := &conn{}
		tr.add(c, &fakeConn{closed: make(chan struct{})}, "")
		c.set(connIdle)
		d := startDrain(t.Context(), tr, o, o.IdleGrace, nil, func(context.Context) {})
		time.Sleep(time.Second)
		began := time.Now()
		d.hurry(2 * time.Hour) // never longer
		d.hurry(500 * time.Millisecond)
		<-d.done
		if took := time.Since(began); took > drainTick {
			t.Errorf("took %v", took)
		}
	})
}

// Hooks and tasks that do not end are left behind at the deadline.
func TestDrainDoesNotWaitForEver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := bareHandoff(t, Options{DrainTimeout: 5 * time.Second})
		release := make(chan struct{})
		released := false
		h.OnDrain(func(ctx context.Context) { <-ctx.Done(); <-release })
		h.Go(func(context.Context) { <-release })
		h.OnRelease(func(context.Context) { released = true })
		h.Ready()
		began := time.Now()
		h.do(func(m *machine) { m.stop() })
		<-h.Draining()
		<-h.Done()
		if took := time.Since(began); took < 5*time.Second || took > 5*time.Second+2*drainTick {
			t.Errorf("took %v", took)
		}
		if !released {
			t.Error("not released")
		}
		close(release)
	})
}

func TestTasksAreWaitedFor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := bareHandoff(t, Options{})
		h.Go(func(ctx context.Context) { <-ctx.Done(); time.Sleep(3 * time.Second) })
		h.OnDrain(func(ctx context.Context) { time.Sleep(time.Second) })
		h.Ready()
		began := time.Now()
		h.do(func(m *machine) { m.stop() })
		<-h.Done()
		if took := time.Since(began); took < 3*time.Second || took > 3*time.Second+2*drainTick {
			t.Errorf("took %v", took)
		}
	})
}

// A pause and a resume, at any moment, lose no connection and end no Accept.
func TestGateLosesNoConnection(t *testing.T) {
	h := bareHandoff(t, Options{DrainTimeout: time.Second})
	defer h.Close()
	ln, err := h.Listen("x", "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	h.Ready()
	const n = 300
	accepted := make(chan error, n)
	go func() {
		for range n {
			c, err := ln.Accept()
			if err == nil {
				_, err = c.Write([]byte("x"))
				c.Close()
			}
			accepted <- err
		}
	}()
	stop, flipped := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(flipped)
		for {
			select {
			case <-stop:
				return
			default:
				h.gate.Pause()
				h.gate.Open()
			}
		}
	}()
	for range n {
		c, err := net.Dial("tcp", ln.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		c.SetReadDeadline(time.Now().Add(patience))
		if k, err := c.Read(make([]byte, 1)); k != 1 {
			t.Fatalf("lost: %v", err)
		}
		c.Close()
		if err := <-accepted; err != nil {
			t.Fatal(err)
		}
	}
	close(stop)
	<-flipped
}

// The program's own deadline and the gate's do not undo each other.
func TestPacketDeadlines(t *testing.T) {
	h := bareHandoff(t, Options{DrainTimeout: time.Second})
	defer h.Close()
	pc, err := h.ListenPacket("x", "udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	h.Ready()
	buf := make([]byte, 10)
	pc.SetReadDeadline(time.Now().Add(-time.Second))
	if _, _, err := pc.ReadFrom(buf); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("read after the deadline: %v", err)
	}
	pc.SetReadDeadline(time.Time{})
	h.gate.Pause()
	if _, err := pc.WriteTo([]byte("ping"), pc.LocalAddr()); err != nil {
		t.Errorf("write while paused: %v", err)
	}
	pc.SetDeadline(time.Now().Add(patience)) // must not let readers through
	read := make(chan error, 1)
	go func() {
		n, _, err := pc.ReadFrom(buf)
		if err == nil && string(buf[:n]) != "ping" {
			err = errors.New(string(buf[:n]))
		}
		read <- err
	}()
	select {
	case err := <-read:
		t.Errorf("read through a paused gate: %v", err)
	case <-time.After(50 * time.Millisecond):
	}
	h.gate.Open()
	if err := <-read; err != nil {
		t.Error(err)
	}
	pc.Close()
	if err := pc.Close(); !errors.Is(err, net.ErrClosed) {
		t.Errorf("closed twice: %v", err)
	}
	if _, _, err := pc.ReadFrom(buf); !errors.Is(err, net.ErrClosed) {
		t.Errorf("read after close: %v", err)
	}
}

// READY waits for the sockets that are served, not for those that were closed.
func TestReadyWaitsForSockets(t *testing.T) {
	h := bareHandoff(t, Options{DrainTimeout: time.Second})
	defer h.Close()
	a, err := h.Listen("a", "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	b, err := h.Listen("b", "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	h.serving.Store(true)
	phase := func() (p control.Phase) {
		h.do(func(m *machine) { p = m.phase })
		return p
	}
	go a.Accept()
	eventually(t, "a is served", func() bool {
		h.mu.Lock()
		defer h.mu.Unlock()
		return len(h.unserved) == 1
	})
	if p := phase(); p != control.Starting {
		t.Errorf("phase %s with a socket that nobody serves", p)
	}
	b.Close()
	if p := phase(); p != control.Idle {
		t.Errorf("phase %s, want %s", p, control.Idle)
	}
}
