package handoff

import (
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/zdt-dev/zdt/handoff/control"
	"github.com/zdt-dev/zdt/internal/netfd"
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

// errEnded: the process at the takeover socket ended before it had given anything.
var errEnded = errors.New("the process that listened ended while it was asked; start this one again")

// joinTries is how often a process that finds the service ending looks again.
const joinTries = 3

// join asks the process at the takeover socket for its sockets. When nobody is
// there this process is the first generation, and listens there itself.
func (h *Handoff) join() (gift, error) {
	for try := 1; ; try++ {
		g, err := h.tryJoin()
		if err == nil || !errors.Is(err, errEnded) || try == joinTries {
			if err != nil {
				err = fmt.Errorf("take the service over through %s: %w", h.opt.Takeover, err)
			}
			return g, err
		}
	}
}

func (h *Handoff) tryJoin() (gift, error) {
	g := emptyGift()
	conn, fd, err := findService(h.opt.Takeover)
	if err != nil {
		return g, err
	}
	if conn == nil {
		g.takeover = fd
		return g, nil
	}
	p := &predecessor{link: &link{conn: conn}, messages: make(chan message), stop: make(chan struct{}), asked: true}
	if err := p.ask(&g, h.program.exe); err != nil {
		p.goodbye(err)
		g.close()
		return g, err
	}
	h.predecessor = p
	return g, nil
}

// ask asks for the service and collects it.
func (p *predecessor) ask(g *gift, exe string) error {
	peer, err := control.PeerCred(p.link.conn)
	if err == nil {
		err = trusted(peer.UID, os.Geteuid())
	}
	if err != nil {
		return fmt.Errorf("the process that listens is not trusted: %w", err)
	}
	p.pid = peer.PID
	// One who refuses without having listened is gone already. What he said is there.
	err = p.link.send(message{Type: msgTakeover, Version: wireVersion, MinVersion: wireMinVersion, Exe: exe})
	if err != nil && !brokenPipe(err) && !connectionReset(err) {
		return err
	}
	reset := connectionReset(err)
	for {
		p.link.conn.SetReadDeadline(time.Now().Add(helloTimeout))
		m, err := p.link.receive()
		if !reset && connectionReset(err) {
			reset = true // Linux reports that before the packets that came (see pump)
			continue
		}
		if err != nil {
			return ending(err)
		}
		switch m.Type {
		case msgRefused:
			return refusedBecause(m)
		case msgSockets:
			if err := g.add(m); err != nil {
				return err
			}
		case msgHello:
			p.link.conn.SetReadDeadline(time.Time{})
			if err := g.complete(); err != nil {
				return err
			}
			return p.told(m)
		}
	}
}

// ending tells the end of the other process from other failures.
func ending(err error) error {
	switch {
	case errors.Is(err, io.EOF), connectionReset(err), brokenPipe(err):
		return errEnded
	case errors.Is(err, os.ErrDeadlineExceeded):
		return fmt.Errorf("the process that listens did not answer within %s: is it stopped, or too old to give its sockets away?", helloTimeout)
	}
	return err
}

// refusedBecause says what a refusal means for whoever started this process.
func refusedBecause(m message) error {
	why := fmt.Errorf("the process that listens refused (%s): %s", m.Code, m.Reason)
	switch m.Code {
	case control.CodeBusy, control.CodeNotReady:
		return fmt.Errorf("%w; start this one again when that is over", why)
	case codeVersion:
		return fmt.Errorf("%w; go by way of a release that speaks a version of both", why)
	}
	return why
}

// told notes what the incumbent says of this generation.
func (p *predecessor) told(m message) error {
	if _, err := chooseVersion(m.Version, m.MinVersion); err != nil {
		return err
	}
	if m.Generation < 2 {
		return errors.New("hello without a generation")
	}
	p.hello, p.takes = m, m.Takes
	return nil
}

// follow answers the incumbent's hello, once everything has worked out, and
// begins to listen to it.
func (p *predecessor) follow(sharesControl bool, taker func(*link, message)) error {
	version, err := chooseVersion(p.hello.Version, p.hello.MinVersion)
	if err != nil {
		return err
	}
	if err := p.link.send(message{Type: msgHello, Version: version, MinVersion: wireMinVersion, Capabilities: capabilities(), SharesControl: sharesControl}); err != nil {
		return fmt.Errorf("greet predecessor: %w", ending(err))
	}
	p.link.taker = taker
	go p.link.pump(p.messages, p.stop)
	return nil
}

// goodbye lets go of an incumbent whose service this process could not take
// over, and tells it why. One that was told by its fork sees the exit status.
func (p *predecessor) goodbye(why error) {
	if p.asked && why != nil {
		p.link.send(message{Type: msgStop, Reason: why.Error()})
	}
	p.release()
}

// inherited notes what else a fork has left here.
func (g *gift) inherited(hello message) {
	if hello.ControlFD > 0 {
		g.control = hello.ControlFD
	}
	if hello.TakeoverFD > 0 {
		g.takeover = hello.TakeoverFD
	}
}

// unpack puts what this generation was given to use, and opens the sockets by
// which it is found: the takeover socket and the control socket. It owns the
// gift's descriptors, also when it fails; what it has opened then is abandon's.
func (h *Handoff) unpack(g gift) error {
	p := h.predecessor
	asked := p != nil && p.asked
	shares := asked && g.shares(h.opt.ControlSocket)
	if asked && !shares && g.control >= 0 {
		netfd.Close(g.control) // of another container, which goes on to answer there
		g.control = -1
	}
	names, fds := g.names, g.fds
	g.names, g.fds = nil, nil
	if err := h.sockets.adopt(names, fds); err != nil {
		g.close()
		return err
	}
	var err error
	if g.takeover < 0 && h.opt.Takeover != "" {
		if g.takeover, err = listenForTakeovers(h.opt.Takeover); err != nil {
			g.close()
			return err
		}
	}
	if h.takeover, err = openTakeover(h, g.takeover); err != nil {
		g.takeover = -1
		g.close()
		return err
	}
	if h.control, err = openControl(h, g.control); err != nil {
		return err
	}
	h.ownControl = asked && !shares
	if asked {
		return p.follow(shares, h.receive)
	}
	return nil
}

// listenForTakeovers binds the takeover socket of a generation that was forked
// by one without: a release that did not want takeovers, or did not know them.
func listenForTakeovers(path string) (fd int, err error) {
	conn, fd, err := findService(path)
	if conn != nil {
		conn.Close()
		err = errors.New("another process listens there: is the service running twice?")
	}
	if err != nil {
		return -1, fmt.Errorf("takeover socket %s: %w", path, err)
	}
	return fd, nil
}
