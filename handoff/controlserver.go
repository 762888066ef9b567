package handoff

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/zdt-dev/zdt/handoff/control"
	"github.com/zdt-dev/zdt/internal/netfd"
	"github.com/zdt-dev/zdt/journal"
)

// controlServer answers the control socket. The socket is handed over like
// the listening ones: it is bound once, by the first generation, and accepts in
// whichever generation is the service.
//
// One goroutine accepts, one serves each connection; close ends and joins them.
type controlServer struct {
	h        *Handoff
	path     string
	listener *net.UnixListener // nil: no control socket
	raw      int               // the copy for the successor, or -1
	gate     *gate

	mu     sync.Mutex
	conns  map[net.Conn]bool // true: a watcher
	closed bool
	wg     sync.WaitGroup
}

// openControl takes the inherited control socket over (fd ≥ 0) or binds it.
func openControl(h *Handoff, fd int) (*controlServer, error) {
	c := &controlServer{h: h, path: h.opt.ControlSocket, raw: -1, gate: newGate(gatePaused), conns: make(map[net.Conn]bool)}
	var err error
	switch {
	case fd >= 0:
		netfd.Claim(fd)
		ln, lerr := netfd.From(fd, net.FileListener)
		if lerr != nil {
			return nil, fmt.Errorf("inherited control socket: %w", lerr)
		}
		u, ok := ln.(*net.UnixListener)
		if !ok {
			ln.Close()
			return nil, errors.New("inherited control socket: not a unix socket")
		}
		c.listener, c.raw = u, fd
	case c.path == "":
		return c, nil
	default:
		if c.listener, err = bindControl(c.path); err != nil {
			return nil, fmt.Errorf("control socket %s: %w", c.path, err)
		}
		if c.raw, err = netfd.Dup(c.listener); err != nil {
			c.listener.Close()
			return nil, fmt.Errorf("control socket %s: %w", c.path, err)
		}
	}
	netfd.KeepFile(c.listener)
	c.gate.add(c.listener)
	c.wg.Add(1)
	go c.accept()
	return c, nil
}

// bindControl binds the control socket of a service that nobody runs yet.
func bindControl(path string) (*net.UnixListener, error) {
	if probe, err := net.Dial("unix", path); err == nil {
		probe.Close()
		return nil, errors.New("another process listens on it: is the service running twice?")
	}
	return netfd.ListenPrivate("unix", path)
}

// fd is the successor's copy, -1 when there is no control socket. It stays the
// server's.
func (c *controlServer) fd() int { return c.raw }

// own begins to answer after a commit. Calling listen(2) again makes this
// process the one that SO_PEERCRED shows to clients.
func (c *controlServer) own() {
	if c.listener != nil {
		netfd.ListenAgain(c.listener)
	}
	c.gate.open()
}

func (c *controlServer) accept() {
	defer c.wg.Done()
	for {
		if c.gate.pass(nil) != nil {
			return
		}
		conn, err := c.listener.AcceptUnix()
		if errors.Is(err, os.ErrDeadlineExceeded) {
			continue
		}
		if err != nil {
			if errors.Is(err, net.ErrClosed) {
				return
			}
			time.Sleep(10 * time.Millisecond) // out of descriptors: try again without spinning
			continue
		}
		c.mu.Lock()
		if c.closed {
			c.mu.Unlock()
			conn.Close()
			return
		}
		c.conns[conn] = false
		c.wg.Add(1)
		c.mu.Unlock()
		go c.serve(conn)
	}
}

func (c *controlServer) serve(conn *net.UnixConn) {
	defer c.wg.Done()
	defer func() {
		c.mu.Lock()
		delete(c.conns, conn)
		c.mu.Unlock()
		conn.Close()
	}()
	peer, err := control.PeerCred(conn)
	if err != nil || peer.UID != 0 && int(peer.UID) != os.Geteuid() {
		c.reply(conn, control.Response{Code: control.CodeDenied, Error: "only root and the service's own user may ask"})
		return
	}
	r := bufio.NewReader(conn)
	for {
		line, err := control.ReadLine(r)
		if err != nil {
			return
		}
		var req control.Request
		if err := json.Unmarshal(line, &req); err != nil {
			c.reply(conn, control.Response{Code: control.CodeBadRequest, Error: err.Error()})
			return
		}
		if req.Op == control.OpWatch {
			c.watch(conn)
			return
		}
		resp := control.Response{Code: control.CodeNotReady, Error: "this generation is done"}
		c.h.do(func(m *machine) { resp = m.answer(req) })
		if c.reply(conn, resp) != nil {
			return
		}
	}
}

func (c *controlServer) reply(conn net.Conn, resp control.Response) error {
	line, err := json.Marshal(resp)
	if err != nil {
		return err
	}
	conn.SetWriteDeadline(time.Now().Add(writeTimeout))
	_, err = conn.Write(append(line, '\n'))
	return err
}

// watch sends statuses until the last one or until the client is gone.
func (c *controlServer) watch(conn net.Conn) {
	updates := make(chan control.Status, 1)
	c.mu.Lock()
	c.conns[conn] = true
	c.mu.Unlock()
	if !c.h.do(func(m *machine) { m.watchers[updates] = struct{}{} }) {
		return
	}
	defer c.h.do(func(m *machine) { delete(m.watchers, updates) })
	gone := make(chan struct{})
	c.wg.Add(1)
	go func() { // ends when the connection is closed by either side
		defer c.wg.Done()
		defer close(gone)
		conn.Read(make([]byte, 1))
	}()
	for {
		select {
		case s := <-updates:
			if c.reply(conn, control.Response{Status: &s}) != nil || s.Phase == control.Exited {
				conn.Close()
				return
			}
		case <-gone:
			return
		}
	}
}

// close ends the server. Watchers have their last status in their channel and
// end after writing it. remove unlinks the path: the service is over.
func (c *controlServer) close(remove bool) {
	c.gate.close()
	c.mu.Lock()
	c.closed = true
	for conn, watcher := range c.conns {
		if !watcher {
			conn.SetReadDeadline(time.Unix(1, 0)) // no more requests; an answer still goes out
		}
	}
	c.mu.Unlock()
	if c.listener != nil {
		if remove {
			os.Remove(c.path)
		}
		c.listener.Close()
		netfd.Close(c.raw)
	}
	c.wg.Wait()
}

// answer carries a request out, on the deciding goroutine.
func (m *machine) answer(req control.Request) control.Response {
	code, text := m.carryOut(req)
	s := m.status()
	return control.Response{Code: code, Error: text, Status: &s}
}

func (m *machine) carryOut(req control.Request) (code, text string) {
	switch req.Op {
	case control.OpStatus:
		return "", ""
	case control.OpArm:
		return m.arm(req)
	case control.OpDisarm:
		if m.armed != nil && m.armed.TxID == req.TxID {
			m.disarm()
		}
		return "", ""
	case control.OpCommit:
		if code, text := m.decidable(req); code != "" {
			return code, text
		}
		if m.phase != control.Held {
			return control.CodeNotHeld, "the candidate is not READY"
		}
		if err := m.commit(); err != nil {
			return control.CodeFailed, err.Error()
		}
		return "", ""
	case control.OpAbort:
		if code, text := m.decidable(req); code != "" {
			return code, text
		}
		reason := req.Reason
		if reason == "" {
			reason = "asked over the control socket"
		}
		if m.undecided() {
			m.undo(journal.ReasonRequested, reason)
		}
		return "", ""
	case control.OpReclaim:
		if m.phase != control.Idle {
			return control.CodeNotReady, "this generation is not the service"
		}
		if err := m.reclaim(); err != nil {
			return control.CodeFailed, err.Error()
		}
		return "", ""
	}
	return control.CodeBadRequest, fmt.Sprintf("unknown operation %q", req.Op)
}

// decidable reports why req may not decide about the handoff in progress.
func (m *machine) decidable(req control.Request) (code, text string) {
	if m.attempt == nil || m.attempt.committed {
		return control.CodeNotHeld, "no handoff is waiting for a decision"
	}
	if req.TxID != "" && req.TxID != m.attempt.arm.TxID {
		return control.CodeTxID, fmt.Sprintf("the handoff in progress belongs to transaction %q", m.attempt.arm.TxID)
	}
	return "", ""
}

func (m *machine) arm(req control.Request) (code, text string) {
	a := req.Arm
	switch {
	case a == nil || a.TxID == "":
		return control.CodeBadRequest, "arm without a txid"
	case a.Exe != "" && !filepath.IsAbs(a.Exe):
		return control.CodeBadRequest, fmt.Sprintf("arm: %q is not an absolute path", a.Exe)
	case a.HoldFor < 0 || a.ReadyTimeout < 0:
		return control.CodeBadRequest, "arm: negative duration"
	}
	if code, why := m.refuse(); why != "" {
		return code, why
	}
	if m.armed != nil && m.armed.TxID != a.TxID {
		return control.CodeBusy, fmt.Sprintf("armed for transaction %q", m.armed.TxID)
	}
	m.disarm()
	m.armed, m.armTimer = a, time.NewTimer(armTimeout)
	return "", ""
}

func (m *machine) disarm() {
	if m.armTimer != nil {
		m.armTimer.Stop()
	}
	m.armed, m.armTimer = nil, nil
}
