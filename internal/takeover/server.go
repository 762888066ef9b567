package takeover

import (
	"fmt"
	"log/slog"
	"net"
	"os"
	"sync"
	"time"

	"github.com/zdt-dev/zdt/handoff/control"
	"github.com/zdt-dev/zdt/internal/inherited"
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
	*inherited.Socket // nil: no takeover socket

	runtime Runtime
	path    string

	mu      sync.Mutex
	links   map[*wire.Link]struct{} // of processes whose question is open
	closed  bool
	leaving bool
	wg      sync.WaitGroup
}

// Serve serves the takeover socket fd, or none (fd < 0). It owns fd, also when it
// fails. Nobody is heard before Own or Open.
func Serve(fd int, path string, r Runtime) (*Server, error) {
	s := &Server{runtime: r, path: path, links: make(map[*wire.Link]struct{})}
	if fd < 0 {
		return s, nil
	}
	var err error
	if s.Socket, err = inherited.Adopt(fd); err != nil {
		return nil, fmt.Errorf("inherited takeover socket: %w", err)
	}
	s.wg.Go(func() { s.Socket.Serve(s.meet) })
	return s, nil
}

func (s *Server) meet(conn *net.UnixConn) {
	l := &wire.Link{Conn: conn}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		l.Close()
		return
	}
	s.links[l] = struct{}{}
	conn.SetReadDeadline(time.Now().Add(helloTimeout)) // here, so that it cannot undo that of stop
	s.wg.Go(func() { s.answer(l) })
}

// answer hears what a process wants. It asks first: one that only looks whether
// somebody listens starts nothing.
func (s *Server) answer(l *wire.Link) {
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
// service is over.
func (s *Server) Close(remove bool) {
	s.stop(false)
	path := ""
	if remove {
		path = s.path
	}
	s.Socket.Close(path)
	s.wg.Wait()
}

// Leave ends the server but for its socket, which is the caller's now: Serve takes it,
// here or in the program that is executed in this one's place. Who has not been
// heard is let go without a word, and asks again.
func (s *Server) Leave() {
	s.stop(true)
	s.Socket.Leave()
	s.wg.Wait()
}

func (s *Server) stop(leaving bool) {
	s.Refuse()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed, s.leaving = true, leaving
	for l := range s.links {
		l.Conn.SetReadDeadline(time.Unix(1, 0))
	}
}
