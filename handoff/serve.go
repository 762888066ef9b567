package handoff

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"slices"
)

// Serve serves HTTP on ln until this generation is done: until a successor was
// committed, or the service was told to stop, and every request has been
// answered. It says READY (see Options.ManualReady) and returns nil when the
// drain ended; what had to be cut is in the exit event. A process that asked for the
// service and was sent away gets ErrUndone.
//
// ln comes from Listen, possibly wrapped (tls.NewListener). Serve takes srv
// over: it chains itself before srv.Handler, srv.ConnState, srv.ConnContext and
// srv.BaseContext, which still run.
//
// Where ln is the Listener itself, HTTP/1 connections move to the successor as
// they fall idle, and their clients notice nothing. srv.IdleTimeout goes on to run; a client that had sent
// half a request head gets srv.ReadHeaderTimeout anew. ConnState sees the end of such a
// connection in this process, and a new one in the other with its next request. All other
// connections (wrapped, HTTP/2) get "Connection: close" (GOAWAY) with their next
// response, so that clients come back to the successor without losing a request.
//
// srv.Shutdown and srv.Close end Serve as they end http.Server.Serve, with
// http.ErrServerClosed.
//
// One srv may serve several listeners, each with a Serve of its own.
func (h *Handoff) Serve(srv *http.Server, ln net.Listener) error {
	h.adopt(srv)
	h.serving.Store(true)
	leave := h.serveArrivals(srv, ln)
	err := srv.Serve(ln)
	select {
	case <-h.Draining():
		select {
		case <-h.Done(): // another Serve of the same srv has closed it, below
		default:
			if !errors.Is(err, net.ErrClosed) {
				leave()
				return fmt.Errorf("serve %s: %w", ln.Addr(), err)
			}
		}
		// The listener ends with the generation: everything is answered or cut.
		<-h.Done()
		leave()
		srv.Close()
		return h.undone
	default:
	}
	if errors.Is(err, net.ErrClosed) {
		// The program has closed the listener alone: connections stay, those that
		// have moved here as well.
		go func() {
			<-h.Done()
			leave()
		}()
	} else {
		leave()
	}
	return fmt.Errorf("serve %s: %w", ln.Addr(), err)
}

// serveArrivals lets srv serve the connections that other generations had
// accepted from the same socket. The returned function ends that.
//
// Only where ln is a Listener itself: what a program puts around its
// connections, TLS above all, has a state that does not travel.
func (h *Handoff) serveArrivals(srv *http.Server, ln net.Listener) (leave func()) {
	l, ok := ln.(*Listener)
	if !ok || !h.tracker.movesHTTP || srv.Protocols != nil && !srv.Protocols.HTTP1() {
		return func() {}
	}
	a, name := newArrivals(ln), l.Name()
	h.mu.Lock()
	h.httpServers[name] = append(h.httpServers[name], a) // several sockets may have one name
	h.mu.Unlock()
	h.tellTakes()
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		srv.Serve(a)
	}()
	return func() {
		h.mu.Lock()
		h.httpServers[name] = slices.DeleteFunc(h.httpServers[name], func(b *arrivals) bool { return a == b })
		h.mu.Unlock()
		h.tellTakes()
		a.Close()
		<-ended
		a.wg.Wait()
	}
}

// connKey finds the tracking of a request's connection in its context.
type connKey struct{}

// adopt chains this generation before srv's hooks, once: a second Serve must
// not write what the goroutines of the first one read.
func (h *Handoff) adopt(srv *http.Server) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if _, ok := h.servers[srv]; ok {
		return
	}
	h.servers[srv] = struct{}{}
	handler := srv.Handler
	if handler == nil {
		handler = http.DefaultServeMux
	}
	srv.Handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if h.draining.Load() && !willMove(r) {
			w.Header().Set("Connection", "close")
		}
		handler.ServeHTTP(w, r)
	})
	connState := srv.ConnState
	srv.ConnState = func(c net.Conn, s http.ConnState) {
		httpState(c, s)
		if connState != nil {
			connState(c, s)
		}
		if base, _ := baseConn(c); base != nil && s == http.StateIdle {
			base.resetDeadlines() // what the hook has set is not the server's
		}
	}
	connContext := srv.ConnContext
	srv.ConnContext = func(ctx context.Context, c net.Conn) context.Context {
		if base, bare := baseConn(c); bare {
			ctx = context.WithValue(ctx, connKey{}, base)
		}
		if connContext != nil {
			ctx = connContext(ctx, c)
		}
		return ctx
	}
	if baseContext := srv.BaseContext; baseContext != nil {
		srv.BaseContext = func(ln net.Listener) context.Context {
			if a, ok := ln.(*arrivals); ok {
				ln = a.origin // the program knows no other
			}
			return baseContext(ln)
		}
	}
}

// willMove reports whether the connection of a request moves after the
// response. It runs in the goroutine that reads the connection.
func willMove(r *http.Request) bool {
	c, _ := r.Context().Value(connKey{}).(*conn)
	if c == nil || c.rec.http2 || c.protocol == "" {
		return false
	}
	m := c.wish.Load()
	return m != nil && m != c.stays && m.mayTake(c.protocol, c.listener)
}

// ListenAndServe is the whole adoption for a program with one HTTP server:
// it opens a Handoff, listens on srv.Addr (default ":http") under the name
// "http" and serves until this generation is done.
func ListenAndServe(srv *http.Server) error {
	h, err := Open(Options{})
	if err != nil {
		return err
	}
	defer h.Close()
	addr := srv.Addr
	if addr == "" {
		addr = ":http"
	}
	ln, err := h.Listen("http", "tcp", addr)
	if err != nil {
		return err
	}
	return h.Serve(srv, ln)
}

// OnDrain registers f to run when this generation begins to drain: a successor
// serves new work, or the service stops. All hooks run at the same time, and
// the drain waits for them until its deadline, when ctx ends. A hook tells
// long-lived streams to say goodbye, or stops a consumer.
func (h *Handoff) OnDrain(f func(ctx context.Context)) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.onDrain = append(h.onDrain, f)
}

// OnRelease registers f to run after the last request of this generation:
// close the database, flush the log. The hooks run one by one, the last
// registered first; ctx ends after Options.ReleaseTimeout.
func (h *Handoff) OnRelease(f func(ctx context.Context)) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.onRelease = append(h.onRelease, f)
}

// release runs the OnRelease hooks. Tasks are not waited for any more.
func (h *Handoff) release() {
	h.tracker.tasks.close()
	h.mu.Lock()
	hooks := slices.Clone(h.onRelease)
	h.mu.Unlock()
	ctx, cancel := context.WithTimeout(context.Background(), h.opt.ReleaseTimeout)
	defer cancel()
	for _, hook := range slices.Backward(hooks) {
		hook(ctx)
	}
}
