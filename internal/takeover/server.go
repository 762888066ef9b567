package takeover

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"sync"
	"time"

	"github.com/zdt-dev/zdt/handoff/control"
	"github.com/zdt-dev/zdt/internal/gate"
	"github.com/zdt-dev/zdt/internal/netfd"
	"github.com/zdt-dev/zdt/internal/wire"
)

// Runtime is the process that a server answers for.
type Runtime struct {
	// Asked decides about a process that asks. With why == "" the link is Asked's, and the
	// process a candidate; otherwise it is refused with one of package control's codes, or
	// wire.CodeVersion. pid is for people, and 0 where it cannot be seen. Called in any goroutine.
	Asked func(l *wire.Link, ask wire.Message, pid int) (code, why string)
	// Log gets who is turned away for not being trusted.
	Log *slog.Logger
}

// Server listens on the takeover socket. The socket is handed on like
// the control socket and accepts in whichever generation is the service.
//
// One goroutine accepts, one speaks to each process that asks, until its
// question is decided; Close and Leave end and join them.
type Server struct {
	runtime  Runtime
	path     string
	listener *net.UnixListener // nil: no takeover socket
	raw      int               // the copy for the successor, or -1
	gate     *gate.Gate

	mu      sync.Mutex
	links   map[*wire.Link]struct{} // of processes whose question is open
	closed  bool
	leaving bool
	wg      sync.WaitGroup
}

// Serve serves the takeover socket fd, or none (fd < 0). It owns fd, also when it
// fails. Nobody is heard before Own or Open.
func Serve(fd int, path string, r Runtime) (*Server, error) {
	s := &Server{runtime: r, path: path, raw: -1, gate: gate.New(gate.Paused), links: make(map[*wire.Link]struct{})}
	if fd < 0 {
		return s, nil
	}
	netfd.Claim(fd)
	ln, err := netfd.From(fd, net.FileListener)
	if err != nil {
		netfd.Close(fd)
		return nil, fmt.Errorf("inherited takeover socket: %w", err)
	}
	u, ok := ln.(*net.UnixListener)
	if !ok {
		ln.Close()
		netfd.Close(fd)
		return nil, errors.New("inherited takeover socket: not a unix socket")
	}
	s.listener, s.raw = u, fd
	netfd.KeepFile(s.listener)
	s.gate.Add(s.listener)
	s.wg.Add(1)
	go s.accept()
	return s, nil
}

// FD is the successor's copy, -1 when there is no takeover socket. It stays
// the server's.
func (s *Server) FD() int { return s.raw }

// Open begins to answer.
func (s *Server) Open() { s.gate.Open() }

// Own begins to answer for a process that has become the service. Who asks shall see
// its credentials, which the kernel takes at listen(2).
func (s *Server) Own() {
	if s.listener != nil {
		netfd.ListenAgain(s.listener)
	}
	s.gate.Open()
}

// Pause leaves who comes from now on to another process that has the socket.
func (s *Server) Pause() { s.gate.Pause() }

func (s *Server) accept() {
	defer s.wg.Done()
	for {
		if s.gate.Pass(nil) != nil {
			return
		}
		conn, err := s.listener.AcceptUnix()
		switch {
		case errors.Is(err, os.ErrDeadlineExceeded): // the gate closed while we waited
		case errors.Is(err, net.ErrClosed):
			return
		case err != nil:
			time.Sleep(10 * time.Millisecond) // out of descriptors: try again without spinning
		default:
			s.meet(&wire.Link{Conn: conn})
		}
	}
}

func (s *Server) meet(l *wire.Link) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		l.Close()
		return
	}
	s.links[l] = struct{}{}
	l.Conn.SetReadDeadline(time.Now().Add(helloTimeout)) // here, so that it cannot undo that of stop
	s.wg.Add(1)
	go s.serve(l)
}

// serve hears what a process wants. It asks first: one that only looks whether
// somebody listens starts nothing.
func (s *Server) serve(l *wire.Link) {
	defer s.wg.Done()
	code, why := s.hear(l)
	s.mu.Lock()
	delete(s.links, l)
	leaving := s.leaving
	s.mu.Unlock()
	if why == "" {
		return // the link is the candidate's
	}
	if !leaving {
		l.Send(wire.Message{Type: wire.Refused, Version: wire.Version, MinVersion: wire.MinVersion, Code: code, Reason: why})
	}
	l.Close()
}

func (s *Server) hear(l *wire.Link) (code, why string) {
	peer, err := control.PeerCred(l.Conn)
	if err == nil {
		err = trusted(peer.UID, os.Geteuid())
	}
	if err != nil {
		err = fmt.Errorf("the process that asks is not trusted: %w", err)
		s.runtime.Log.Warn("refuse a takeover", "error", err)
		return control.CodeDenied, err.Error()
	}
	ask, err := l.Receive()
	ask.CloseFiles()
	if err != nil {
		return control.CodeBadRequest, err.Error() // it is gone, or speaks something else
	}
	l.Conn.SetReadDeadline(time.Time{})
	if ask.Type != wire.Takeover {
		return control.CodeBadRequest, fmt.Sprintf("got %q in place of takeover", ask.Type)
	}
	return s.runtime.Asked(l, ask, peer.PID)
}

// Close ends the server. Who has not been heard is told so. remove unlinks the path: the
// service is over. The path goes first, so that a process that finds nobody does not have
// its own socket's file removed.
func (s *Server) Close(remove bool) {
	s.stop(false)
	if s.listener != nil {
		if remove {
			os.Remove(s.path)
		}
		s.listener.Close()
		netfd.Close(s.raw)
	}
	s.wg.Wait()
}

// Leave ends the server but for its socket, which is the caller's now: Serve takes it,
// here or in the program that is executed in this one's place. Who has not been
// heard is let go without a word, and asks again.
func (s *Server) Leave() {
	s.stop(true)
	if s.listener != nil {
		s.listener.Close()
	}
	s.wg.Wait()
}

func (s *Server) stop(leaving bool) {
	s.gate.Close()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed, s.leaving = true, leaving
	for l := range s.links {
		l.Conn.SetReadDeadline(time.Unix(1, 0))
	}
}
