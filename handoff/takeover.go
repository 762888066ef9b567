package handoff

import (
	"errors"
	"fmt"
	"net"
	"os"
	"sync"
	"time"

	"github.com/zdt-dev/zdt/handoff/control"
	"github.com/zdt-dev/zdt/internal/gate"
	"github.com/zdt-dev/zdt/internal/netfd"
)

// A process in another container cannot be forked by the service: it is started
// by whoever runs containers, finds the service at a path that both share
// (Options.Takeover), and asks for its sockets. From then on it is a
// candidate like any other. What differs is at the edges:
//
//   - the sockets come over the link, and not by inheritance: takeover_gift.go,
//   - the incumbent has no process to signal or to wait for, only the link: takeover_invite.go,
//   - each side has a supervisor of its own, and perhaps a control socket: takeover_join.go.

// takeoverServer listens on the takeover socket. The socket is handed on like
// the control socket and accepts in whichever generation is the service.
//
// One goroutine accepts, one speaks to each process that asks, until its
// question is decided; close ends and joins them.
type takeoverServer struct {
	h        *Handoff
	path     string
	listener *net.UnixListener // nil: no takeover socket
	raw      int               // the copy for the successor, or -1
	gate     *gate.Gate

	mu     sync.Mutex
	links  map[*link]struct{} // of processes whose question is open
	closed bool
	wg     sync.WaitGroup
}

// openTakeover serves the takeover socket fd, or none (fd < 0). It owns fd,
// also when it fails.
func openTakeover(h *Handoff, fd int) (*takeoverServer, error) {
	s := &takeoverServer{h: h, path: h.opt.Takeover, raw: -1, gate: gate.New(gate.Paused), links: make(map[*link]struct{})}
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

// fd is the successor's copy, -1 when there is no takeover socket. It stays
// the server's.
func (s *takeoverServer) fd() int { return s.raw }

// own begins to answer: this generation is the service. Who asks shall see its
// credentials, which the kernel takes at listen(2).
func (s *takeoverServer) own() {
	if s.listener != nil {
		netfd.ListenAgain(s.listener)
	}
	s.gate.Open()
}

func (s *takeoverServer) accept() {
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
			s.meet(&link{conn: conn})
		}
	}
}

func (s *takeoverServer) meet(l *link) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		l.close()
		return
	}
	s.links[l] = struct{}{}
	l.conn.SetReadDeadline(time.Now().Add(helloTimeout)) // here, so that it cannot undo that of close
	s.wg.Add(1)
	go s.serve(l)
}

// serve hears what a process wants. It asks first: one that only looks whether
// somebody listens starts nothing.
func (s *takeoverServer) serve(l *link) {
	defer s.wg.Done()
	code, why := s.hear(l)
	s.mu.Lock()
	delete(s.links, l)
	s.mu.Unlock()
	if why == "" {
		return // the link is the candidate's
	}
	l.send(message{Type: msgRefused, Version: wireVersion, MinVersion: wireMinVersion, Code: code, Reason: why})
	l.close()
}

func (s *takeoverServer) hear(l *link) (code, why string) {
	peer, err := control.PeerCred(l.conn)
	if err == nil {
		err = trusted(peer.UID, os.Geteuid())
	}
	if err != nil {
		err = fmt.Errorf("the process that asks is not trusted: %w", err)
		s.h.events.Logger().Warn("refuse a takeover", "service", s.h.opt.Service, "error", err)
		return control.CodeDenied, err.Error()
	}
	ask, err := l.receive()
	ask.closeFiles()
	if err != nil {
		return control.CodeBadRequest, err.Error() // it is gone, or speaks something else
	}
	l.conn.SetReadDeadline(time.Time{})
	if ask.Type != msgTakeover {
		return control.CodeBadRequest, fmt.Sprintf("got %q in place of takeover", ask.Type)
	}
	code, why = control.CodeNotReady, "this generation is done"
	s.h.do(func(m *machine) { code, why = m.asked(l, ask, peer.PID) })
	return code, why
}

// close ends the server. remove unlinks the path: the service is over. The
// path goes first, so that a process that finds nobody does not have its own
// socket's file removed.
func (s *takeoverServer) close(remove bool) {
	s.gate.Close()
	s.mu.Lock()
	s.closed = true
	for l := range s.links {
		l.conn.SetReadDeadline(time.Unix(1, 0)) // it is told that this generation is done
	}
	s.mu.Unlock()
	if s.listener != nil {
		if remove {
			os.Remove(s.path)
		}
		s.listener.Close()
		netfd.Close(s.raw)
	}
	s.wg.Wait()
}

// overflowUID is what the kernel says of a user that has no number in the
// user namespace of whoever asks (/proc/sys/kernel/overflowuid).
const overflowUID = 65534

// trusted reports why a process of user uid may not have the service's
// sockets, or give them, seen from a process of user euid.
//
// Only uids are looked at. A pid means nothing here: SO_PEERCRED says 0 for a
// process in another pid namespace.
func trusted(uid uint32, euid int) error {
	switch {
	case uid == overflowUID:
		return fmt.Errorf("its user has no number here (uid %d): it runs in a user namespace with other mappings, or as nobody. Run both with the same mappings and as a user of the service's own", uid)
	case uid == 0, int(uid) == euid:
		return nil
	}
	return fmt.Errorf("it runs as uid %d, and only root and uid %d are: run both as the same user", uid, euid)
}
