//go:build linux

package journal

import (
	"encoding/json"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/zdt-dev/zdt/internal/guest"
)

// order is what an actor is told to do, in this order.
type order struct {
	Print string // to its standard output
	Raw   []byte // to journald, as it is
	Event *Event // to journald; PID 0 becomes the actor's own
	Exit  bool   // end at once, without an answer
}

type answer struct {
	PID     int // the actor's own
	Err     string
	Took    time.Duration // of Write
	Dropped uint64
}

// actor is a process of a guest that does what it is told over the socket at
// path.
func actor(path string) int {
	ln, err := net.Listen("unix", path)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	os.Chmod(path, 0o666)
	w := NewWriter("")
	for {
		conn, err := ln.Accept()
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		for dec, enc := json.NewDecoder(conn), json.NewEncoder(conn); ; {
			var o order
			if err := dec.Decode(&o); err != nil {
				break
			}
			enc.Encode(act(w, o))
		}
		conn.Close()
	}
}

func act(w *Writer, o order) answer {
	a := answer{PID: os.Getpid()}
	var err error
	if o.Print != "" {
		fmt.Println(o.Print)
	}
	if o.Raw != nil {
		var conn net.Conn
		if conn, err = net.Dial("unixgram", DefaultSocket); err == nil {
			_, err = conn.Write(o.Raw)
			conn.Close()
		}
	}
	if o.Event != nil {
		if o.Event.PID == 0 {
			o.Event.PID = os.Getpid()
		}
		begin := time.Now()
		err = w.Write(*o.Event)
		a.Took = time.Since(begin)
	}
	if o.Exit {
		os.Exit(0)
	}
	if err != nil {
		a.Err = err.Error()
	}
	a.Dropped = w.Dropped()
	return a
}

// handle is the test's end of an actor.
type handle struct {
	t    *testing.T
	conn net.Conn
	PID  int // in the guest
}

const actorPath = "/usr/local/bin/actor"

// installActor puts the test binary into the guest.
func installActor(t *testing.T, g *guest.Guest) {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	if err := g.Copy(exe, actorPath, 0o755); err != nil {
		t.Fatal(err)
	}
}

// startActor starts an actor as the unit NAME.service with these properties.
func startActor(t *testing.T, g *guest.Guest, name string, properties ...string) *handle {
	t.Helper()
	path := filepath.Join("/run", name, "actor.sock")
	args := []string{"systemd-run", "--quiet", "--unit=" + name + ".service", "--property=RuntimeDirectory=" + name}
	for _, p := range properties {
		args = append(args, "--property="+p)
	}
	g.MustRun(t, append(args, actorPath, "actor", path)...)
	return dialActor(t, g, path)
}

func dialActor(t *testing.T, g *guest.Guest, path string) *handle {
	t.Helper()
	h := &handle{t: t}
	waitFor(t, "an actor at "+path, func() (err error) {
		h.conn, err = g.Dial(t.Context(), "unix", path)
		return err
	})
	t.Cleanup(func() { h.conn.Close() })
	h.PID = h.do(order{}).PID
	return h
}

func (h *handle) do(o order) answer {
	h.t.Helper()
	if err := json.NewEncoder(h.conn).Encode(o); err != nil {
		h.t.Fatal(err)
	}
	var a answer
	if err := json.NewDecoder(h.conn).Decode(&a); err != nil && !(o.Exit && err == io.EOF) {
		h.t.Fatal(err)
	}
	return a
}

// write writes an event, which must succeed.
func (h *handle) write(e Event) {
	h.t.Helper()
	if a := h.do(order{Event: &e}); a.Err != "" {
		h.t.Fatalf("write %s: %s", e.Kind, a.Err)
	}
}

// waitFor tries until it works.
func waitFor(t *testing.T, what string, try func() error) {
	t.Helper()
	var err error
	for deadline := time.Now().Add(30 * time.Second); time.Now().Before(deadline); time.Sleep(5 * time.Millisecond) {
		if err = try(); err == nil {
			return
		}
	}
	t.Fatalf("wait for %s: %v", what, err)
}
