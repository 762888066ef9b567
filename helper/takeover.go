//go:build linux

package helper

import (
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/zdt-dev/zdt/handoff/control"
	"github.com/zdt-dev/zdt/internal/netfd"
	"github.com/zdt-dev/zdt/internal/takeover"
	"github.com/zdt-dev/zdt/internal/wire"
)

// A helper in another container cannot be reached by SIGUSR2: a new one is started there,
// finds the helper that serves at a path that both share (Options.Takeover), and asks for
// its sockets. It starts its own program with them, as its first group, and says READY
// when that is ready. Then the one that was asked commits: its group drains, and it ends.
//
// It is the protocol of package handoff, of a program with which a helper may trade places
// as well. What it cannot do is move connections, and it says so by leaving out that capability.
//
//	one that is asked:  idle ─asked─▶ forked ─ready─▶ held ─commit─▶ draining ─▶ ended    takeover_guest.go
//	one that asks:      starting ─READY─▶ candidate ─commit─▶ idle                        takeover_host.go

// crossing is a keeper's part in takeovers. The keeper's goroutine owns it.
type crossing struct {
	server *takeover.Server // of the takeover socket; it does nothing without one
	guest  *guest           // a process that has asked for this service; nil: none
	host   *host            // the process that this one has asked for its service; nil: none, or it is gone
	// owner: this is the service, or shall be: what is found by a path goes with it.
	owner bool
	// shared: another process answers on this one's control socket too.
	shared bool
	given  int // how many of the keeper's sockets, the first ones, another process gave
}

// neighbour is a process at the other end of a link. Its end is the end of the link: it cannot be
// signalled nor waited for, and the number of its pid is for people.
type neighbour struct {
	link *wire.Link
	pid  int // 0 in another pid namespace
	stop chan struct{}
	over bool // released: what is on its way does not count any more
	wg   sync.WaitGroup
}

// hearNeighbour begins to listen to p: the keeper's goroutine handles what comes, and the end of it.
func (k *keeper) hearNeighbour(p *neighbour, heard func(wire.Message), gone func()) {
	p.stop = make(chan struct{})
	messages := make(chan wire.Message)
	post := func(f func()) bool {
		select {
		case k.calls <- func() {
			if !p.over {
				f()
			}
		}:
			return true
		case <-p.stop:
			return false
		}
	}
	p.wg.Go(func() { p.link.Pump(messages, p.stop) })
	p.wg.Go(func() {
		for m := range messages {
			if !post(func() { heard(m) }) {
				return
			}
		}
		post(gone)
	})
}

// release lets go of p. What was said before is heard by it, then the end.
func (p *neighbour) release() {
	if p == nil || p.over {
		return
	}
	p.over = true
	if p.stop != nil {
		close(p.stop)
	}
	p.link.Close()
	p.wg.Wait()
}

// join finds the service, or becomes it, and takes its sockets. They come before those that
// were inherited otherwise: the clients are there.
func (k *keeper) join() error {
	g := takeover.NoGift()
	if k.opt.Takeover != "" && k.opt.ReusePort && k.several() {
		// There are as many as workers, and in another container there may be more or fewer.
		return errors.New("the queues of single workers (SO_REUSEPORT) cannot be taken over")
	}
	if k.opt.Takeover != "" {
		s, err := takeover.Join(k.opt.Takeover, k.app.Command[0])
		if err != nil {
			return err
		}
		if s.Link != nil {
			k.crossing.host = &host{neighbour: neighbour{link: s.Link, pid: s.PID}, hello: s.Hello}
		}
		g = s.Gift
	}
	k.crossing.owner = k.crossing.host == nil
	if err := k.adopt(&g); err != nil {
		g.Close()
		return err
	}
	shares := k.crossing.host != nil && g.Shares(k.opt.ControlSocket)
	if err := k.serveControl(g.Control, shares); err != nil {
		g.Control = -1
		g.Close()
		return err
	}
	k.crossing.shared = shares
	return k.serveTakeovers(g.Takeover)
}

// adopt takes the sockets out of g. What was inherited from the manager of containers and is the very same
// socket is closed.
func (k *keeper) adopt(g *takeover.Gift) error {
	var adopted []Socket
	for i, name := range g.Names {
		network, address, err := netfd.Info(g.FDs[i])
		if err != nil {
			return fmt.Errorf("take over socket %q: %w", name, err)
		}
		adopted = append(adopted, Socket{Name: name, FD: g.FDs[i], Network: network, Address: address})
	}
	g.Names, g.FDs = nil, nil
	own := k.sockets
	k.sockets, k.crossing.given = adopted, len(adopted)
	for _, s := range own {
		if isAmong(adopted, s) {
			netfd.Close(s.FD)
			continue
		}
		k.sockets = append(k.sockets, s)
	}
	return nil
}

func isAmong(all []Socket, s Socket) bool {
	for _, other := range all {
		if takeover.SameSocket(other.FD, s.FD) {
			return true
		}
	}
	return false
}

// serveControl opens the control socket: fd, if it is to be shared with the process that gave it, or one of
// its own. It owns fd, also when it fails.
func (k *keeper) serveControl(fd int, shares bool) error {
	runtime := control.Runtime{Answer: k.answer, Watch: k.subscribe}
	var err error
	switch {
	case shares:
		k.server, err = control.Adopt(fd, k.opt.ControlSocket, runtime)
	case fd >= 0:
		netfd.Close(fd) // of another container, which goes on to answer there
		fallthrough
	default:
		k.server, err = control.Listen(k.opt.ControlSocket, runtime)
	}
	return err
}

// serveTakeovers answers on the takeover socket fd from now on, if this is the service. It owns fd, also when it
// fails; without one (fd ≤ 0) it binds it, if one is wanted.
func (k *keeper) serveTakeovers(fd int) (err error) {
	if fd <= 0 && k.opt.Takeover != "" {
		if fd, err = takeover.Listen(k.opt.Takeover); err != nil {
			return err
		}
	}
	if fd == 0 {
		fd = -1
	}
	k.crossing.server, err = takeover.Serve(fd, k.opt.Takeover, takeover.Runtime{
		Asked: func(l *wire.Link, ask wire.Message, pid int) (code, why string) {
			code, why = control.CodeNotReady, "the service ends"
			k.do(func() { code, why = k.asked(l, ask, pid) })
			return code, why
		},
		Log: k.events.Logger().With("service", k.opt.Service),
	})
	return err
}

// own makes this process the one that is found by its paths.
func (k *keeper) own() {
	k.crossing.owner = true
	k.crossing.server.Own()
	k.server.Own()
}

// announce begins to answer while the service starts: a status tells that, and so does a refusal. Where the
// process that serves has the same sockets, it is that which goes on to answer.
func (k *keeper) announce() {
	if k.crossing.owner {
		k.crossing.server.Own()
	}
	if k.crossing.owner || !k.crossing.shared {
		k.server.Own()
	}
}

// inTakeover says why no handoff can start because of a takeover; "" when none is in the way.
func (k *keeper) inTakeover() (code, why string) {
	switch {
	case k.phase == control.Candidate:
		return control.CodeNotReady, "this one is itself a candidate that is not committed yet"
	case k.phase == control.Draining:
		return control.CodeNotReady, "this one has handed over and drains"
	case k.crossing.host != nil && k.phase != control.Starting && !k.stopped:
		return control.CodeBusy, "the predecessor still drains"
	}
	return "", ""
}

// origin is where the socket with the index i came from.
func (k *keeper) origin(i int) string {
	switch {
	case i < k.crossing.given:
		return "predecessor"
	case i >= len(k.sockets)-k.bound:
		return "bound"
	}
	return "systemd"
}

// closeCrossing says the last words to other processes and lets go of them, and of the paths.
func (k *keeper) closeCrossing() {
	c := &k.crossing
	if g := c.guest; g != nil {
		if !g.committed.IsZero() {
			g.link.Send(wire.Message{Type: wire.Bye, Connections: &control.Counts{Cut: k.cut()}})
		}
		g.release()
		c.guest = nil
	}
	if c.host != nil {
		c.host.release()
		c.host = nil
	}
	if c.server != nil {
		c.server.Close(c.owner)
		c.server = nil
	}
	if k.server != nil {
		k.server.Close(c.owner || !c.shared)
		k.server = nil
	}
}

// declineTakeover tells the process that this one has asked why it could not take over.
func (k *keeper) declineTakeover(why error) {
	if h := k.crossing.host; h != nil {
		h.link.Send(wire.Message{Type: wire.Stop, Reason: why.Error()})
		h.release()
		k.crossing.host = nil
	}
}

// timer is a deadline that can be moved.
type timer struct {
	t     *time.Timer
	until time.Time
}

func (t *timer) set(d time.Duration) {
	t.clear()
	t.t, t.until = time.NewTimer(d), time.Now().Add(d)
}

func (t *timer) clear() {
	if t.t != nil {
		t.t.Stop()
	}
	t.t, t.until = nil, time.Time{}
}
