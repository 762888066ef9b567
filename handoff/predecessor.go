package handoff

import (
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/zdt-dev/zdt/internal/netfd"
)

// predecessor is the generation that started this process, or that this
// process has asked for its service, seen from the candidate.
type predecessor struct {
	link     *link
	messages chan message // closed when the predecessor is gone
	stop     chan struct{}
	asked    bool // it did not start this process: see Options.Takeover
	pid      int  // 0 in another pid namespace
	hello    message
	takes    []take // what it would take back
}

// helloTimeout bounds the greeting. The predecessor writes its half right
// after the fork, before this program can have started.
const helloTimeout = 10 * time.Second

// meetPredecessor takes fd over and exchanges greetings.
// taker gets the connections it moves here.
func meetPredecessor(fd int, taker func(*link, message)) (*predecessor, error) {
	netfd.Claim(fd)
	l, err := newLink(fd)
	if err != nil {
		return nil, fmt.Errorf("descriptor %d of %s: %w", fd, envPredecessor, err)
	}
	p := &predecessor{link: l, messages: make(chan message), stop: make(chan struct{}), pid: os.Getppid()}
	if err := p.greet(); err != nil {
		l.close()
		return nil, fmt.Errorf("greet predecessor: %w", err)
	}
	l.taker = taker
	go l.pump(p.messages, p.stop)
	return p, nil
}

func (p *predecessor) greet() error {
	p.link.conn.SetReadDeadline(time.Now().Add(helloTimeout))
	m, err := p.link.receive()
	if err != nil {
		return err
	}
	p.link.conn.SetReadDeadline(time.Time{})
	if m.Type != msgHello {
		return fmt.Errorf("got %q in place of hello", m.Type)
	}
	version, err := chooseVersion(m.Version, m.MinVersion)
	if err != nil {
		p.link.send(message{Type: msgHello, Version: wireVersion, MinVersion: wireMinVersion})
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
	return p.link.send(message{Type: msgHello, Version: version, MinVersion: wireMinVersion, Capabilities: capabilities()})
}

func (p *predecessor) release() {
	close(p.stop)
	p.link.close()
}
