package main

import (
	"context"
	"net"
	"net/http/httptest"
	"sync"
	"testing"
	"time"

	"github.com/zdt-dev/zdt/internal/load"
)

// hello understands every kind of HTTP client that upgrades are tested with, and ends its streams with the drain.
func TestClients(t *testing.T) {
	draining := make(chan struct{})
	s := httptest.NewServer(mux(draining))
	defer s.Close()
	drain := sync.OnceFunc(func() { close(draining) })
	defer drain()
	l := load.Start(load.Config{
		Dial: func(ctx context.Context) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "tcp", s.Listener.Addr().String())
		},
		KeepAlive: 1, Fresh: 1, Slow: 1, Uploads: 2, Pipelined: 1, HalfHeads: 1, Expect: 1, Events: 2,
		SlowFor: 20 * time.Millisecond, Piece: time.Millisecond, EventsPath: "/events?every=1ms",
	})
	defer l.Stop()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	err := l.Until(ctx, func(r load.Report) bool {
		for _, kind := range []load.Client{load.Kept, load.Fresh, load.Slow, load.Upload, load.Pipelined, load.HalfHead, load.Expect} {
			if r.Clients[kind].Requests < 4 {
				return false
			}
		}
		return r.Messages >= 20
	})
	if r := l.Report(); err != nil || r.Losses() > 0 || r.Reconnects > 0 || len(r.Versions) != 1 {
		t.Errorf("%v: %s", err, r)
	}
	drain()
	if err := l.Until(ctx, func(r load.Report) bool { return r.Clients[load.Events].Reconnects >= 4 }); err != nil {
		t.Error("a stream does not end with the drain")
	}
	if r := l.Stop(); r.Cut == 0 || r.Failed+r.Refused+r.Lost+r.Doubled+r.Reordered+r.Wrong > 0 {
		t.Error(r)
	}
}
