package systest

import (
	"bufio"
	"context"
	"crypto/tls"
	"io"
	"net"
	"net/http"
	"testing"
	"time"

	"github.com/zdt-dev/zdt/handoff"
	"github.com/zdt-dev/zdt/internal/guest"
	"github.com/zdt-dev/zdt/internal/load"
	"github.com/zdt-dev/zdt/upgrade"
)

// dialTLS connects to the service and speaks what is wanted over TLS: h2, or http/1.1.
func (s *service) dialTLS(ctx context.Context, speaks string) (net.Conn, error) {
	conn, err := s.dial(ctx)
	if err != nil {
		return nil, err
	}
	c := tls.Client(conn, &tls.Config{InsecureSkipVerify: true, ServerName: "hello", NextProtos: []string{speaks}})
	if err := c.HandshakeContext(ctx); err != nil {
		conn.Close()
		return nil, err
	}
	return c, nil
}

// What cannot move is told goodbye: through ten upgrades in a row no request fails over TLS, HTTP/1.1 or HTTP/2, and no
// connection has to be opened anew but once an upgrade, after an answer that announced it. Connections on which nothing
// comes are closed when their grace is over, and no earlier.
func TestWhatCannotMoveClosesPolitely(t *testing.T) {
	t.Parallel()
	upgrades := max(10, soak(t)/4)
	guest.Each(t, func(t *testing.T, g *guest.Guest) {
		file := func(n int) string { return releaseOf(t, "secure", "./testdata/secure", n) }
		s := startService(t, g, "https", file(1))
		files := []string{s.putFile(file(1), 1), s.putFile(file(2), 2)}
		s.mustMove(files[1])
		before := s.footprint()

		const kept, slow, idle, http2 = 8, 2, 3, 6
		over := func(speaks string) func(context.Context) (net.Conn, error) {
			return func(ctx context.Context) (net.Conn, error) { return s.dialTLS(ctx, speaks) }
		}
		l := load.Start(load.Config{
			Dial: over("http/1.1"), KeepAlive: kept, Fresh: 2, Slow: slow, Idle: idle,
			Think: 10 * time.Millisecond, IdleThink: 300 * time.Millisecond,
		})
		t.Cleanup(func() { l.Stop() })
		l2 := startHTTP2Load(http2, over("h2"))
		t.Cleanup(func() { l2.end() })
		s.busy(l, 50)
		for n := range upgrades {
			r := s.mustMove(files[n%2])
			if c := r.Connections; c != nil && (c.Moved > 0 || c.Drained == 0) {
				t.Errorf("upgrade %d: %+v, want connections that drained", n+1, *c)
			}
			if t.Failed() {
				break
			}
		}
		at := l2.requests()
		s.busy(l, 50)
		s.await("requests over HTTP/2", func() bool { return l2.requests() > at+50 })

		report := l.Stop()
		mustFailNothing(t, report)
		if most := (kept + slow + idle) * upgrades; report.PoliteCloses == 0 || report.PoliteCloses > most || report.Reconnects > report.PoliteCloses || report.IdleCloses > 0 {
			t.Errorf("want a reconnect after each polite close, and %d at most: %s", most, report)
		}
		report2 := l2.end()
		if report2.Failed+report2.Refused+report2.IdleCloses > 0 || report2.PoliteCloses == 0 || report2.PoliteCloses > http2*upgrades || report2.Reconnects > report2.PoliteCloses {
			t.Errorf("want a reconnect after each polite close, and %d at most: %+v", http2*upgrades, report2)
		}
		if len(report2.Versions) != 2 {
			t.Errorf("answers over HTTP/2 by version: %v", report2.Versions)
		}
		t.Logf("%d upgrades; HTTP/1.1: %s; HTTP/2: %+v", upgrades, report, report2)
		s.settled()
		s.mustLeaveNothing(before)
		s.graceOfIdle(files[upgrades%2], version(1+(upgrades+1)%2), over)
	})
}

// graceOfIdle upgrades while nothing comes on some connections.
func (s *service) graceOfIdle(file, old string, over func(speaks string) func(context.Context) (net.Conn, error)) {
	s.t.Helper()
	dial := func(speaks string) net.Conn {
		conn, err := over(speaks)(s.t.Context())
		if err != nil {
			s.t.Fatal(err)
		}
		s.t.Cleanup(func() { conn.Close() })
		return conn
	}
	kept := func() keptAlive { c := dial("http/1.1"); return keptAlive{c, bufio.NewReader(c)} }
	silent, late := kept(), kept()
	h2, err := newHTTP2Conn(dial("h2"))
	if err == nil {
		_, err = h2.ask(nil)
	}
	for _, c := range []keptAlive{silent, late} {
		if err == nil {
			_, err = c.ask()
		}
	}
	if err != nil {
		s.t.Fatal(err)
	}
	// When each of the silent ones ends.
	type end struct {
		at  time.Time
		err error
	}
	ends := make(chan end, 2)
	go func() {
		silent.SetDeadline(time.Now().Add(patience))
		_, err := silent.r.ReadByte()
		ends <- end{time.Now(), err}
	}()
	go func() {
		var err error
		for limit := time.Now().Add(patience); err == nil; {
			err = h2.listen(limit)
		}
		ends <- end{time.Now(), err}
	}()

	was := s.mainPID()
	up := s.startUpgrade(file)
	s.await("the incumbent drains", func() bool { r := s.runtime(); return r != nil && r.PID != was && r.Predecessor != nil })
	// A request that comes within the grace.
	late.SetDeadline(time.Now().Add(patience))
	io.WriteString(late, "GET / HTTP/1.1\r\nHost: hello\r\n\r\n")
	if resp, err := http.ReadResponse(late.r, nil); err != nil || resp.StatusCode != http.StatusOK || resp.Header.Get("X-Version") != old || !resp.Close {
		s.t.Errorf("a request within the grace is answered %v (%v), want a last answer of %s", resp, err, old)
	}
	r := up.wait()
	r.mustBe(upgrade.Upgraded, 0)
	if c := r.Connections; c == nil || c.Closed != 2 || c.Cut > 0 {
		s.t.Errorf("connections at the incumbent's end: %+v, want 2 closed", c)
	}
	var ready time.Time // the grace begins a little later, and the event that tells of it later still
	for _, line := range r.Story {
		if line.Event == "listen" {
			ready = line.At
		}
	}
	for range 2 {
		e := <-ends
		if ready.IsZero() || e.at.Sub(ready) < handoff.DefaultIdleGrace {
			s.t.Errorf("a silent connection ends %s after the candidate was ready (%v), want %s or more", e.at.Sub(ready), e.err, handoff.DefaultIdleGrace)
		}
	}
}
