package handoff

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/zdt-dev/zdt/handoff/control"
	"github.com/zdt-dev/zdt/internal/gate"
	"github.com/zdt-dev/zdt/internal/sdnotify"
	"github.com/zdt-dev/zdt/internal/takeover"
	"github.com/zdt-dev/zdt/journal"
)

// Handoff is one generation of a service: the sockets it holds, the signals it
// obeys, and the goroutine that decides. A process has one.
type Handoff struct {
	opt        Options
	started    time.Time
	program    program
	generation int
	origin     string // where inherited sockets came from
	helper     int    // zdt run, which started this process and starts the next one; 0: nobody does

	sockets     sockets
	gate        *gate.Gate // of the listeners
	tracker     *tracker
	notifier    sdnotify.Notifier
	events      *journal.Log
	predecessor *predecessor // nil for the first generation
	control     *control.Server
	takeover    *takeover.Server
	ownControl  bool  // the control socket is this process's, though it is not the first generation
	undone      error // why a process that asked for the service was sent away; valid after done

	serving  atomic.Bool // Serve was called
	draining atomic.Bool // responses say Connection: close, where the connection cannot move
	taking   atomic.Bool // connections of another generation are taken

	mu        sync.Mutex
	onDrain   []func(context.Context)
	onRelease []func(context.Context)
	unserved  map[any]struct{} // sockets opened and not yet served
	servers   map[*http.Server]struct{}
	// What connections of another generation can go on with: servers by the
	// name of their socket, and handlers by protocol.
	httpServers map[string][]*arrivals
	onConn      map[string]func(net.Conn, json.RawMessage)
	moves       control.Moves // those that came here

	calls  chan func(*machine)
	ctx    context.Context // ends when the drain begins
	cancel context.CancelCauseFunc
	deaf   chan struct{} // closed when the deciding goroutine takes no more calls
	done   chan struct{} // closed when it has ended
}

// program is how this process was started, and so how the next one is.
type program struct {
	exe, path, dir string // running file; path a bare SIGUSR2 executes; working directory
	argv, env      []string
}

// Open finds out how this process was started — by systemd with sockets, by a
// predecessor, or by hand — and begins to obey signals:
//
//	SIGUSR2           start a handoff; not under zdt run, which does that
//	SIGUSR1           abort one that is not committed
//	SIGTERM, SIGINT   stop gracefully, a candidate too
//	SIGQUIT           stop at once, a predecessor that still drains too
//
// It takes over every inherited descriptor and removes the variables that
// describe them from the environment. Call it once, early in main. The error
// names the variable or descriptor that is wrong; nothing is open then.
func Open(o Options) (*Handoff, error) {
	o, err := o.withDefaults(os.Getenv)
	if err != nil {
		return nil, err
	}
	in, err := parseInheritance(os.Getenv, os.Getpid())
	if err != nil {
		return nil, fmt.Errorf("inherited sockets: %w", err)
	}
	forgetInheritance()
	h := &Handoff{
		opt: o, started: time.Now(), generation: max(1, o.generation), origin: fromSystemd,
		gate: gate.New(gate.Paused), tracker: newTracker(),
		notifier: sdnotify.Notifier{Socket: os.Getenv("NOTIFY_SOCKET")}, events: journal.NewLog(o.Service, journal.NewWriter(journal.DefaultSocket), o.Logger),
		unserved: make(map[any]struct{}), servers: make(map[*http.Server]struct{}),
		httpServers: make(map[string][]*arrivals), onConn: make(map[string]func(net.Conn, json.RawMessage)),
		calls: make(chan func(*machine)), deaf: make(chan struct{}), done: make(chan struct{}),
	}
	if o.generation > 0 {
		h.events.Mute()
	}
	if underHelper(os.Getenv, os.Getpid()) {
		h.helper = os.Getppid()
	}
	h.ctx, h.cancel = context.WithCancelCause(context.Background())
	if err := probeServer(); err != nil {
		h.events.Logger().Warn("HTTP connections will be closed politely in place of moved: please report this with the version of Go", "error", err)
	} else {
		h.tracker.movesHTTP = true
	}
	if err := h.inherit(in); err != nil {
		h.abandon(err)
		return nil, err
	}
	if h.predecessor == nil {
		h.takeover.Open() // who asks is told that it starts
	}
	if h.predecessor == nil || h.ownControl {
		h.control.Open() // a status tells that it starts
	}
	m := newMachine(h)
	m.watch()
	go m.run()
	return h, nil
}

// inherit takes over everything this process was given. Descriptors that it
// has taken when it fails are abandon's.
func (h *Handoff) inherit(in inheritance) error {
	if in.predecessor >= 0 {
		h.origin = fromPredecessor
	}
	// All of it is taken first, so that nothing stays open when the rest fails.
	errSockets := h.sockets.inherit(in.names, h.origin)
	var err error
	if h.program, err = thisProgram(h.opt); err != nil {
		return err
	}
	g := takeover.NoGift()
	switch {
	case in.predecessor >= 0:
		if h.predecessor, err = meetPredecessor(in.predecessor, h.receive); err != nil {
			return err
		}
		inherited(&g, h.predecessor.hello)
	case h.opt.Takeover != "" && errSockets == nil:
		if g, err = h.join(); err != nil {
			return err
		}
	}
	if p := h.predecessor; p != nil {
		h.generation = p.hello.Generation
	}
	if errSockets != nil {
		g.Close()
		return errSockets
	}
	return h.unpack(g)
}

// abandon releases what an Open that failed with why had taken.
func (h *Handoff) abandon(why error) {
	h.sockets.close()
	if h.takeover != nil {
		h.takeover.Close(h.predecessor == nil)
	}
	if h.control != nil {
		h.control.Close(h.ownControl)
	}
	if h.predecessor != nil {
		h.predecessor.goodbye(why)
	}
	h.events.Close()
	h.cancel(nil)
}

func thisProgram(o Options) (program, error) {
	p := program{path: o.Exe, argv: slices.Clone(os.Args), env: os.Environ()}
	var err error
	if p.exe, err = os.Executable(); err != nil {
		return p, fmt.Errorf("find the running program: %w", err)
	}
	if p.dir, err = os.Getwd(); err != nil {
		return p, fmt.Errorf("find the working directory: %w", err)
	}
	if p.path == "" {
		if p.path, err = startPath(os.Args[0]); err != nil {
			return p, fmt.Errorf("find the path of the program: %w", err)
		}
	}
	return p, nil
}

// Listen returns the listener called name: the inherited socket of that name
// (FileDescriptorName= of the socket unit), else one bound to address. network
// is tcp, tcp4, tcp6, unix or unixpacket. An inherited socket keeps its own address.
//
// Accept waits until READY was said. The caller owns the Listener; the socket
// under it goes to the successor all the same.
func (h *Handoff) Listen(name, network, address string) (*Listener, error) {
	if err := h.sentAway(); err != nil {
		return nil, err
	}
	inner, sock, err := h.sockets.listen(name, network, address)
	if err != nil {
		return nil, err
	}
	l := &Listener{h: h, inner: inner, socket: sock, stop: make(chan struct{})}
	h.gate.Add(inner.(gate.Socket))
	h.opened(l)
	return l, nil
}

// ListenPacket is Listen for datagram sockets: udp, udp4, udp6 and unixgram.
func (h *Handoff) ListenPacket(name, network, address string) (*PacketConn, error) {
	if err := h.sentAway(); err != nil {
		return nil, err
	}
	inner, sock, err := h.sockets.listenPacket(name, network, address)
	if err != nil {
		return nil, err
	}
	p := &PacketConn{h: h, inner: inner, socket: sock, read: &readSide{inner: inner}, stop: make(chan struct{})}
	h.gate.Add(p.read)
	h.opened(p)
	return p, nil
}

// Ready says that this generation can serve: to the predecessor, which stops
// accepting, or to systemd. Accept begins to return connections. Calling it
// again does nothing, nor does calling it when the service stops already: a
// program that is told to stop while it starts ends well.
func (h *Handoff) Ready() error {
	var err error
	h.do(func(m *machine) { err = m.ready() })
	return err
}

// Generation counts handoffs since the service started: 1, 2, 3 …
func (h *Handoff) Generation() int { return h.generation }

// Inherited reports whether sockets came from systemd or a predecessor.
func (h *Handoff) Inherited() bool { return len(h.sockets.inheritedNames()) > 0 }

// Why Context ended (context.Cause).
var (
	ErrHandedOver = errors.New("another generation serves")
	ErrStopping   = errors.New("the service stops")
)

// Context ends when the drain begins, with the cause ErrHandedOver or
// ErrStopping. It stays ended if this generation has to take the service back because its
// successor died.
func (h *Handoff) Context() context.Context { return h.ctx }

// Draining is closed when the drain begins.
func (h *Handoff) Draining() <-chan struct{} { return h.ctx.Done() }

// Done is closed when this generation is done and the process should exit.
func (h *Handoff) Done() <-chan struct{} { return h.done }

// Close stops at once what is still going on, as SIGQUIT does, and waits for
// Done. After Done it does nothing.
func (h *Handoff) Close() error {
	h.do(func(m *machine) { m.quit() })
	<-h.done
	return nil
}

// do runs f on the deciding goroutine and waits for it. It reports false, with
// f not run, when that goroutine has ended.
func (h *Handoff) do(f func(*machine)) bool {
	ran := make(chan struct{})
	select {
	case h.calls <- func(m *machine) { defer close(ran); f(m) }:
		<-ran
		return true
	case <-h.deaf:
		return false
	}
}

// opened, served and closed follow the sockets that must be served before
// READY can be said by itself.
func (h *Handoff) opened(s any) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.unserved[s] = struct{}{}
}

func (h *Handoff) served(s any) {
	h.mu.Lock()
	delete(h.unserved, s)
	all := len(h.unserved) == 0
	h.mu.Unlock()
	if all && h.serving.Load() && !h.opt.ManualReady {
		if err := h.Ready(); err != nil {
			h.events.Logger().Error("say READY", "error", err)
		}
	}
}

func (h *Handoff) closed(s any) {
	h.served(s) // a socket that nobody serves any more is not waited for
	switch s := s.(type) {
	case *Listener:
		h.sockets.drop(s.socket)
	case *PacketConn:
		h.sockets.drop(s.socket)
	}
}

var _ net.Listener = (*Listener)(nil)
var _ net.PacketConn = (*PacketConn)(nil)
var _ syscall.Conn = (*PacketConn)(nil)
