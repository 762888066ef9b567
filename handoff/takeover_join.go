package handoff

import (
	"errors"

	"github.com/zdt-dev/zdt/internal/netfd"
	"github.com/zdt-dev/zdt/internal/takeover"
	"github.com/zdt-dev/zdt/internal/wire"
)

// ErrUndone is what Serve and Listen say in a process that had asked for the service
// (Options.Takeover) and was sent away before the commit: the other process serves
// on. Its main function should end with a status other than 0, so that
// whoever runs containers hears of it.
var ErrUndone = errors.New("the takeover was undone")

// sentAway returns ErrUndone once this generation has given back what it was
// given: what it would open now would not be the service's.
func (h *Handoff) sentAway() error {
	select {
	case <-h.deaf:
		return h.undone
	default:
		return nil
	}
}

// join asks the process at the takeover socket for its sockets. When nobody is
// there this process is the first generation, and listens there itself.
func (h *Handoff) join() (takeover.Gift, error) {
	s, err := takeover.Join(h.opt.Takeover, h.program.exe)
	if err == nil && s.Link != nil {
		h.predecessor = &predecessor{
			link: s.Link, messages: make(chan wire.Message), stop: make(chan struct{}),
			asked: true, pid: s.PID, hello: s.Hello, takes: s.Hello.Takes,
		}
	}
	return s.Gift, err
}

// follow answers the incumbent's hello, once everything has worked out, and
// begins to listen to it.
func (p *predecessor) follow(sharesControl bool, taker func(*wire.Link, wire.Message)) error {
	if err := takeover.Greet(p.link, p.hello, wire.Message{Capabilities: capabilities(), SharesControl: sharesControl}); err != nil {
		return err
	}
	p.link.Taker = taker
	go p.link.Pump(p.messages, p.stop)
	return nil
}

// goodbye lets go of an incumbent whose service this process could not take
// over, and tells it why. One that was told by its fork sees the exit status.
func (p *predecessor) goodbye(why error) {
	if p.asked && why != nil {
		p.link.Send(wire.Message{Type: wire.Stop, Reason: why.Error()})
	}
	p.release()
}

// inherited notes what else a fork has left here.
func inherited(g *takeover.Gift, hello wire.Message) {
	if hello.ControlFD > 0 {
		g.Control = hello.ControlFD
	}
	if hello.TakeoverFD > 0 {
		g.Takeover = hello.TakeoverFD
	}
}

// unpack puts what this generation was given to use, and opens the sockets by
// which it is found: the takeover socket and the control socket. It owns the
// gift's descriptors, also when it fails; what it has opened then is abandon's.
func (h *Handoff) unpack(g takeover.Gift) error {
	p := h.predecessor
	asked := p != nil && p.asked
	shares := asked && g.Shares(h.opt.ControlSocket)
	if asked && !shares && g.Control >= 0 {
		netfd.Close(g.Control) // of another container, which goes on to answer there
		g.Control = -1
	}
	names, fds := g.Names, g.FDs
	g.Names, g.FDs = nil, nil
	if err := h.sockets.adopt(names, fds); err != nil {
		g.Close()
		return err
	}
	var err error
	if g.Takeover < 0 && h.opt.Takeover != "" { // forked by a release that did not want takeovers, or did not know them
		if g.Takeover, err = takeover.Listen(h.opt.Takeover); err != nil {
			g.Close()
			return err
		}
	}
	if h.takeover, err = openTakeover(h, g.Takeover); err != nil {
		g.Takeover = -1
		g.Close()
		return err
	}
	if h.control, err = openControl(h, g.Control); err != nil {
		return err
	}
	h.ownControl = asked && !shares
	if asked {
		return p.follow(shares, h.receive)
	}
	return nil
}
