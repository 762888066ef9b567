package control

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"sync"
	"time"

	"github.com/zdt-dev/zdt/internal/inherited"
	"github.com/zdt-dev/zdt/internal/netfd"
)

// What clients may cost. A client is a descriptor and a goroutine of the runtime, and
// in zdt run the service's user, whose program may be hostile, can be one.
const (
	// writeTimeout bounds an answer: a client that does not read must not keep a
	// runtime from ending.
	writeTimeout = time.Second
	// requestTimeout is for the rest of a request whose first byte has come.
	requestTimeout = 10 * time.Second
	// idleTimeout is how long a client may be silent when no handoff is under way. zdt
	// upgrade keeps its connection while it copies a release. A handoff that is held is decided
	// over a connection that may have been silent for as long as it was held, up to a week.
	idleTimeout = time.Hour
	// maxClients is for root's, and once more for those of the service's user: they
	// cannot keep root out.
	maxClients = 64
)

// Runtime is what a Server asks of the runtime it speaks for. The functions are
// called on the goroutines of the connections, several at once; a runtime runs
// them on the goroutine that decides. None is called after Close has returned.
type Runtime struct {
	// Answer carries a request out, any but OpWatch. It is called once the
	// request was read whole, and answers also when the runtime has ended.
	Answer func(Request) Response
	// Watch adds updates, which has room for one status, to the runtime's Watchers: it gets the
	// status now and at every change. stop takes it out again. ok is false, and
	// stop nil, when the runtime has ended and there will be no status any more.
	Watch func(updates chan Status) (stop func(), ok bool)
}

// Server answers on a control socket. It reads the requests of root and the
// process's own user, and denies those of anybody else. The socket is handed over like
// the listening ones: it is bound once, by the first generation, and accepts in
// whichever generation is the service.
//
// A new Server does not accept before Open or Own: who connects waits. One
// goroutine accepts, one serves each connection; Close ends and joins them. The
// methods may be called from any goroutine, but none after Close.
type Server struct {
	runtime Runtime
	path    string
	socket  *inherited.Socket

	idle, request time.Duration // idleTimeout, requestTimeout

	mu      sync.Mutex
	conns   map[net.Conn]bool // true: a watcher
	clients map[bool]int      // of those, that were let in; true: root's
	closed  bool
	wg      sync.WaitGroup
}

// Listen binds the control socket at path, for this user alone (mode 0600),
// and replaces one that nobody listens on. It is an error when somebody does.
// With an empty path the Server has no socket and does nothing.
func Listen(path string, r Runtime) (*Server, error) {
	s := newServer(path, r)
	if path == "" {
		return s, nil
	}
	listener, err := bind(path)
	if err == nil {
		s.socket, err = inherited.Bound(listener)
	}
	if err != nil {
		return nil, fmt.Errorf("control socket %s: %w", path, err)
	}
	s.start()
	return s, nil
}

// Adopt goes on with an inherited control socket, which is found at path. The
// Server owns fd, also when Adopt fails.
func Adopt(fd int, path string, r Runtime) (*Server, error) {
	s := newServer(path, r)
	var err error
	if s.socket, err = inherited.Adopt(fd); err != nil {
		return nil, fmt.Errorf("inherited control socket: %w", err)
	}
	s.start()
	return s, nil
}

func newServer(path string, r Runtime) *Server {
	return &Server{
		runtime: r, path: path, idle: idleTimeout, request: requestTimeout,
		conns: make(map[net.Conn]bool), clients: make(map[bool]int),
	}
}

func (s *Server) start() { s.wg.Go(func() { s.socket.Serve(s.meet) }) }

// bind binds the control socket of a service that nobody runs yet.
func bind(path string) (*net.UnixListener, error) {
	if probe, err := net.Dial("unix", path); err == nil {
		probe.Close()
		return nil, errors.New("another process listens on it: is the service running twice?")
	}
	return netfd.ListenPrivate("unix", path)
}

// FD is the copy of the socket that a successor inherits, -1 when there is no
// control socket. It stays the Server's, is closed by Close, and has FD_CLOEXEC.
func (s *Server) FD() int { return s.socket.FD() }

// Open begins to answer.
func (s *Server) Open() { s.socket.Open() }

// Own begins to answer as the service: this process becomes the one that
// SO_PEERCRED shows to clients that connect from now on.
func (s *Server) Own() { s.socket.Own() }

// Pause stops accepting: clients that connect wait for this process or another one
// that has the socket. Those that are connected go on.
func (s *Server) Pause() { s.socket.Pause() }

func (s *Server) meet(conn *net.UnixConn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		conn.Close()
		return
	}
	s.conns[conn] = false
	s.wg.Go(func() { s.serve(conn) })
}

func (s *Server) serve(conn *net.UnixConn) {
	defer func() {
		s.mu.Lock()
		delete(s.conns, conn)
		s.mu.Unlock()
		conn.Close()
	}()
	peer, err := PeerCred(conn)
	if err != nil || peer.UID != 0 && int(peer.UID) != os.Geteuid() {
		reply(conn, Response{Code: CodeDenied, Error: "only root and the service's own user may ask"})
		return
	}
	root := peer.UID == 0
	if !s.admit(root) {
		reply(conn, Response{Code: CodeBusy, Error: fmt.Sprintf("%d clients are connected already: try again when one of them has gone", maxClients)})
		return
	}
	defer s.leave(root)
	r := bufio.NewReader(conn)
	for {
		if !s.await(conn, r) {
			return
		}
		line, err := ReadLine(r)
		if err != nil {
			return
		}
		var req Request
		if err := json.Unmarshal(line, &req); err != nil {
			reply(conn, Response{Code: CodeBadRequest, Error: err.Error()})
			return
		}
		if req.Op == OpWatch {
			s.watch(conn)
			return
		}
		if reply(conn, s.runtime.Answer(req)) != nil {
			return
		}
	}
}

func (s *Server) admit(root bool) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.clients[root] == maxClients {
		return false
	}
	s.clients[root]++
	return true
}

func (s *Server) leave(root bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.clients[root]--
}

// await waits for the first byte of a request, and gives the rest of it its time.
// It reports false when the connection is over.
func (s *Server) await(conn net.Conn, r *bufio.Reader) bool {
	for {
		s.bound(conn, s.idle)
		_, err := r.Peek(1)
		switch {
		case err == nil:
			s.bound(conn, s.request)
			return true
		case !errors.Is(err, os.ErrDeadlineExceeded) || s.isClosed() || s.atRest():
			return false
		}
	}
}

// bound is a read deadline in d from now, 0 for none. That of Close is for good.
func (s *Server) bound(conn net.Conn, d time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.closed:
	case d == 0:
		conn.SetReadDeadline(time.Time{})
	default:
		conn.SetReadDeadline(time.Now().Add(d))
	}
}

func (s *Server) isClosed() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.closed
}

// atRest reports whether no handoff is prepared, under way or just done, so that no client
// can be waiting for the moment to decide about one.
func (s *Server) atRest() bool {
	st := s.runtime.Answer(Request{Op: OpStatus}).Status
	return st == nil || st.Armed == nil && st.Handoff == nil && st.Predecessor == nil
}

func reply(conn net.Conn, resp Response) error {
	line, err := json.Marshal(resp)
	if err != nil {
		return err
	}
	conn.SetWriteDeadline(time.Now().Add(writeTimeout))
	_, err = conn.Write(append(line, '\n'))
	return err
}

// watch sends statuses until the last one or until the client is gone.
func (s *Server) watch(conn net.Conn) {
	updates := make(chan Status, 1)
	s.mu.Lock()
	s.conns[conn] = true
	s.mu.Unlock()
	s.bound(conn, 0) // who watches has nothing more to say
	stop, ok := s.runtime.Watch(updates)
	if !ok {
		return
	}
	defer stop()
	gone := make(chan struct{})
	s.wg.Go(func() { // ends when the connection is closed by either side
		defer close(gone)
		conn.Read(make([]byte, 1))
	})
	for {
		select {
		case st := <-updates:
			if reply(conn, Response{Status: &st}) != nil || st.Phase == Exited {
				conn.Close()
				return
			}
		case <-gone:
			return
		}
	}
}

// Close ends the server and waits for it: requests that were read are answered.
// Before, the runtime has given its Watchers the last status, the one
// whose Phase is Exited, which they end with, and takes no more of them. remove unlinks the path:
// the service is over.
func (s *Server) Close(remove bool) {
	s.hearNoMore(false)
	path := ""
	if remove {
		path = s.path
	}
	s.socket.Close(path)
	s.wg.Wait()
}

// Leave ends the server and keeps its socket, whose descriptor FD stays open: for Adopt, by
// this process or by another program that is executed in it. Clients that connect
// meanwhile wait. Requests that were read are answered, watchers are hung up on.
func (s *Server) Leave() {
	s.hearNoMore(true)
	s.socket.Leave()
	s.wg.Wait()
}

// hearNoMore takes no client and no request any more.
func (s *Server) hearNoMore(hangUp bool) {
	s.socket.Refuse()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed = true
	for conn, watcher := range s.conns {
		switch {
		case !watcher:
			conn.SetReadDeadline(time.Unix(1, 0)) // an answer still goes out
		case hangUp:
			conn.Close()
		}
	}
}

// Watchers are the channels of the clients that watch a runtime. They have no
// lock: the goroutine that decides owns them.
type Watchers map[chan Status]struct{}

// Publish gives every watcher a status and does not wait for any. A watcher
// that is slow gets the latest and misses those between.
func (w Watchers) Publish(s Status) {
	for updates := range w {
		select {
		case <-updates:
		default:
		}
		updates <- s
	}
}
