package handoff

import (
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/zdt-dev/zdt/internal/netfd"
	"github.com/zdt-dev/zdt/internal/wire"
)

// predecessor is the generation that started this process, or that this
// process has asked for its service, seen from the candidate.
type predecessor struct {
	link     *wire.Link
	messages chan wire.Message // closed when the predecessor is gone
	stop     chan struct{}
	asked    bool // it did not start this process: see Options.Takeover
	pid      int  // 0 in another pid namespace
	hello    wire.Message
	takes    []wire.Take // what it would take back
}

// helloTimeout bounds the greeting. The predecessor writes its half right
// after the fork, before this program can have started.
const helloTimeout = 10 * time.Second

// meetPredecessor takes fd over and exchanges greetings.
// taker gets the connections it moves here.
func meetPredecessor(fd int, taker func(*wire.Link, wire.Message)) (*predecessor, error) {
	netfd.Claim(fd)
	l, err := wire.NewLink(fd)
	if err != nil {
		return nil, fmt.Errorf("descriptor %d of %s: %w", fd, envPredecessor, err)
	}
	p := &predecessor{link: l, messages: make(chan wire.Message), stop: make(chan struct{}), pid: os.Getppid()}
	if err := p.greet(); err != nil {
		l.Close()
		return nil, fmt.Errorf("greet predecessor: %w", err)
	}
	l.Taker = taker
	go l.Pump(p.messages, p.stop)
	return p, nil
}

func (p *predecessor) greet() error {
	p.link.Conn.SetReadDeadline(time.Now().Add(helloTimeout))
	m, err := p.link.Receive()
	if err != nil {
		return err
	}
	p.link.Conn.SetReadDeadline(time.Time{})
	if m.Type != wire.Hello {
		return fmt.Errorf("got %q in place of hello", m.Type)
	}
	version, err := wire.ChooseVersion(m.Version, m.MinVersion)
	if err != nil {
		p.link.Send(wire.Message{Type: wire.Hello, Version: wire.Version, MinVersion: wire.MinVersion})
		return err
	}
	// What LISTEN_PID is for: a program that merely inherited the environment
	// and the descriptors, from a shell script in between, is not meant.
	if m.PID != os.Getpid() {
		return fmt.Errorf("the descriptors were meant for pid %d, this is %d: does a script start the program? It has to exec it", m.PID, os.Getpid())
	}
	if m.Generation < 2 {
		return errors.New("hello without a generation")
	}
	p.hello, p.takes = m, m.Takes
	return p.link.Send(wire.Message{Type: wire.Hello, Version: version, MinVersion: wire.MinVersion, Capabilities: capabilities()})
}

func (p *predecessor) release() {
	close(p.stop)
	p.link.Close()
}
