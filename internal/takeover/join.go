// Package takeover is how a process gets the sockets of a service that has not
// started it. It finds the service at a path that both share (the takeover socket),
// asks, and is given them; from then on it is a candidate like any other, on a link
// of package wire. docs/protocol.md, section 8, describes it.
package takeover

import (
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/zdt-dev/zdt/handoff/control"
	"github.com/zdt-dev/zdt/internal/wire"
)

// helloTimeout bounds every wait for a word of somebody who may never say it.
const helloTimeout = 10 * time.Second

// Service is what a process that has asked for it knows of a service.
type Service struct {
	// Link leads to the process that serves; nil: nobody does, and the one who asked is the first.
	Link *wire.Link
	PID  int // of that process, 0 in another pid namespace
	// Hello says who the one who asked is; see Greet.
	Hello wire.Message
	// Gift is what it was given, and its own. Of one who is the first it is the takeover
	// socket alone, which it has bound.
	Gift Gift
}

// errEnded: the process at the takeover socket ended before it had given anything.
var errEnded = errors.New("the process that listened ended while it was asked; start this one again")

// joinTries is how often a process that finds the service ending looks again.
const joinTries = 3

// Join asks the process at path for its service. exe is what this process runs, for
// people. When nobody is there this process is the first generation, and listens there
// itself. The error says what to do.
func Join(path, exe string) (Service, error) {
	for try := 1; ; try++ {
		s, err := tryJoin(path, exe)
		if err == nil || !errors.Is(err, errEnded) || try == joinTries {
			if err != nil {
				err = fmt.Errorf("take the service over through %s: %w", path, err)
			}
			return s, err
		}
	}
}

func tryJoin(path, exe string) (Service, error) {
	s := Service{Gift: NoGift()}
	conn, fd, err := find(path)
	if err != nil {
		return s, err
	}
	if conn == nil {
		s.Gift.Takeover = fd
		return s, nil
	}
	s.Link = &wire.Link{Conn: conn}
	if err := s.ask(exe); err != nil {
		s.Decline(err)
		return s, err
	}
	return s, nil
}

// Decline gives back what this process could not take over, and tells the other one why.
func (s *Service) Decline(why error) {
	s.Link.Send(wire.Message{Type: wire.Stop, Reason: why.Error()})
	s.Link.Close()
	s.Gift.Close()
}

// ask asks for the service and collects it.
func (s *Service) ask(exe string) error {
	l := s.Link
	peer, err := control.PeerCred(l.Conn)
	if err == nil {
		err = trusted(peer.UID, os.Geteuid())
	}
	if err != nil {
		return fmt.Errorf("the process that listens is not trusted: %w", err)
	}
	s.PID = peer.PID
	// One who refuses without having listened is gone already. What he said is there.
	err = l.Send(wire.Message{Type: wire.Takeover, Version: wire.Version, MinVersion: wire.MinVersion, Exe: exe})
	if err != nil && !wire.BrokenPipe(err) && !wire.ConnectionReset(err) {
		return err
	}
	reset := wire.ConnectionReset(err)
	for {
		l.Conn.SetReadDeadline(time.Now().Add(helloTimeout))
		m, err := l.Receive()
		if !reset && wire.ConnectionReset(err) {
			reset = true // Linux reports that before the packets that came (see wire.Link.Pump)
			continue
		}
		if err != nil {
			return ending(err)
		}
		switch m.Type {
		case wire.Refused:
			return refusedBecause(m)
		case wire.Sockets:
			if err := s.Gift.add(m); err != nil {
				return err
			}
		case wire.Hello:
			l.Conn.SetReadDeadline(time.Time{})
			if err := s.Gift.complete(); err != nil {
				return err
			}
			return s.greeted(m)
		}
	}
}

// greeted notes what the other process says of this one.
func (s *Service) greeted(m wire.Message) error {
	if _, err := wire.ChooseVersion(m.Version, m.MinVersion); err != nil {
		return err
	}
	if m.Generation < 2 {
		return errors.New("hello without a generation")
	}
	s.Hello = m
	return nil
}

// Greet answers the hello of the process at the other end of l, once everything has worked
// out. Type and versions of the answer are filled in.
func Greet(l *wire.Link, hello, answer wire.Message) error {
	version, err := wire.ChooseVersion(hello.Version, hello.MinVersion)
	if err != nil {
		return err
	}
	answer.Type, answer.Version, answer.MinVersion = wire.Hello, version, wire.MinVersion
	if err := l.Send(answer); err != nil {
		return fmt.Errorf("greet predecessor: %w", ending(err))
	}
	return nil
}

// ending tells the end of the other process from other failures.
func ending(err error) error {
	switch {
	case errors.Is(err, io.EOF), wire.ConnectionReset(err), wire.BrokenPipe(err):
		return errEnded
	case errors.Is(err, os.ErrDeadlineExceeded):
		return fmt.Errorf("the process that listens did not answer within %s: is it stopped, or too old to give its sockets away?", helloTimeout)
	}
	return err
}

// refusedBecause says what a refusal means for whoever started this process.
func refusedBecause(m wire.Message) error {
	why := fmt.Errorf("the process that listens refused (%s): %s", m.Code, m.Reason)
	switch m.Code {
	case control.CodeBusy, control.CodeNotReady:
		return fmt.Errorf("%w; start this one again when that is over", why)
	case wire.CodeVersion:
		return fmt.Errorf("%w; go by way of a release that speaks a version of both", why)
	}
	return why
}

// Listen binds the takeover socket at path for a process that is the service already.
func Listen(path string) (fd int, err error) {
	conn, fd, err := find(path)
	if conn != nil {
		conn.Close()
		err = errors.New("another process listens there: is the service running twice?")
	}
	if err != nil {
		return -1, fmt.Errorf("takeover socket %s: %w", path, err)
	}
	return fd, nil
}
