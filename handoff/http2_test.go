package handoff

import (
	"bytes"
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httptrace"
	"sync"
	"testing"

	"github.com/zdt-dev/zdt/internal/wire"
)

// trackedListener tracks what it accepts.
type trackedListener struct {
	net.Listener
	h *Handoff
}

func (l trackedListener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return l.h.tracker.track(c, "http", nil), nil
}

// An HTTP/2 server reads in a goroutine of its own and tells of its state in
// another. Its connections do not move; they are told to go.
func TestHTTP2IsToldToGo(t *testing.T) {
	for _, encrypted := range []bool{true, false} {
		t.Run(fmt.Sprintf("encrypted %v", encrypted), func(t *testing.T) {
			h := bareHandoff(t, Options{DrainTimeout: patience})
			defer h.Close()
			h.tracker.movesHTTP = true
			ln, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			srv := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				body, _ := io.ReadAll(r.Body)
				fmt.Fprintf(w, "%s %d", r.Proto, len(body))
			}), Protocols: new(http.Protocols), ErrorLog: log.New(io.Discard, "", 0)}
			srv.Protocols.SetHTTP1(true)
			h.adopt(srv)
			transport := &http.Transport{Protocols: new(http.Protocols)}
			defer transport.CloseIdleConnections()
			url, served := "http://"+ln.Addr().String(), make(chan error, 1)
			if encrypted {
				mint := httptest.NewUnstartedServer(nil)
				mint.StartTLS()
				defer mint.Close()
				srv.TLSConfig = &tls.Config{Certificates: mint.TLS.Certificates, NextProtos: []string{"h2"}}
				srv.Protocols.SetHTTP2(true)
				transport.Protocols.SetHTTP2(true)
				transport.TLSClientConfig = &tls.Config{InsecureSkipVerify: true}
				url = "https://" + ln.Addr().String()
				go func() { served <- srv.ServeTLS(trackedListener{ln, h}, "", "") }()
			} else {
				srv.Protocols.SetUnencryptedHTTP2(true)
				transport.Protocols.SetUnencryptedHTTP2(true)
				go func() { served <- srv.Serve(trackedListener{ln, h}) }()
			}
			defer func() { srv.Close(); <-served }()

			client := &http.Client{Transport: transport, Timeout: patience}
			ask := func() (reused bool) {
				t.Helper()
				trace := &httptrace.ClientTrace{GotConn: func(i httptrace.GotConnInfo) { reused = i.Reused }}
				req, _ := http.NewRequestWithContext(httptrace.WithClientTrace(context.Background(), trace), "POST", url, bytes.NewReader(make([]byte, 100_000)))
				resp, err := client.Do(req)
				if err != nil {
					t.Error(err)
					return false
				}
				defer resp.Body.Close()
				if body, err := io.ReadAll(resp.Body); err != nil || string(body) != "HTTP/2.0 100000" {
					t.Errorf("%q, %v", body, err)
				}
				return reused
			}
			ask()
			var all sync.WaitGroup
			for range 20 { // at the same time, with idle moments between
				all.Go(func() {
					for range 5 {
						ask()
					}
				})
			}
			all.Wait()
			if !ask() {
				t.Error("connections are not reused: nothing is tested")
			}
			m := newMover(h.tracker, quiet(), []wire.Take{{Protocol: protocolHTTP1, Socket: "http"}}, func(_ uint64, load []*parked) error {
				for _, p := range load { // one that has not said anything yet may go
					if p.conn.rec.http2 || p.conn.news.Load() > 2 {
						t.Errorf("an HTTP/2 connection was sent: %+v", p.conn.rec)
					}
				}
				return io.ErrUnexpectedEOF
			})
			m.look()
			go m.run()
			defer m.halt()
			h.draining.Store(true)
			if !ask() {
				t.Error("a request of the drain did not find its connection")
			}
			if ask() {
				t.Error("the answer did not say goodbye")
			}
			h.draining.Store(false)
		})
	}
}
