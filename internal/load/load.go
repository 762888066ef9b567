// Package load puts a service under load with clients that never retry, and counts what those clients see.
//
// It answers one question: would a client have noticed the upgrade? Ordinary HTTP clients hide the answer, because
// they silently send an idempotent request again when a kept-alive connection turns out to be closed. These clients
// write each request once, on connections of their own: nothing of net/http's client is in between. The tests of zdt use
// it, and zdt prove, which lets its users ask the same question of their own services.
//
// There are clients for every state a connection can be in when an upgrade comes: see Client. Half of the requests of most
// of them are POSTs, whose body has to come back; the service has to serve GET with any body and POST with the body it
// was sent. What else a kind needs of the service stands in Config.
//
// What counts as what:
//
//   - Failed: a request that was written, in whole or in part, and did not get a complete, correct answer. A connection
//     that the server closed a moment before the request was written is such a failure; the client could not know.
//   - Refused: a connection that could not be opened.
//   - PoliteCloses: the server announced the end of the connection with a complete answer. No failure.
//   - IdleCloses: the server closed a connection while no request was under way, and the client saw that before it
//     wrote one. No failure, but luck.
//   - Reconnects: a client that keeps its connection opened another, for whatever reason.
//   - Cut: a stream (events, WebSocket, lines) that the server ended, in whatever way.
//   - Lost, Doubled, Reordered, Wrong: messages of streams, told by their numbers and by their bytes.
package load

import (
	"context"
	"math/rand/v2"
	"net"
	"sync"
	"time"
)

// Client is a kind of client.
type Client string

// The kinds of clients.
const (
	Kept      Client = "kept"      // keeps its connection; GET and POST in turn
	Idle      Client = "idle"      // the same, with so much time between that the connection is nearly always idle
	Fresh     Client = "fresh"     // opens a connection for each request
	Slow      Client = "slow"      // waits for answers that take their time
	Upload    Client = "upload"    // sends bodies in pieces, by Content-Length and chunked in turn, and compares the digest
	Pipelined Client = "pipelined" // sends several requests at once and wants the answers in their order
	HalfHead  Client = "half-head" // sends the head of a request in pieces
	Expect    Client = "expect"    // sends a body only when the server has asked for it (Expect: 100-continue)
	Events    Client = "events"    // reads server-sent events
	WebSocket Client = "websocket" // talks in a chat over a WebSocket
	Lines     Client = "lines"     // sends lines over TCP and wants each one back with its number
)

// Config says what load to make. Dial is required; the zero value of anything else stands for the default.
type Config struct {
	// Dial opens a connection to the service. The context has the deadline of Timeout.
	Dial func(ctx context.Context) (net.Conn, error)

	KeepAlive int           // clients that keep their connection; default 32, negative for none
	Fresh     int           // clients that open a connection for each request; default 4, negative for none
	Think     time.Duration // pause of a client between requests, on average; default 2 ms, negative for none
	Timeout   time.Duration // bound on a connect, on a request with its answer, and on the silence of a stream; default 10 s
	Get       string        // path of the GETs; default "/"
	Post      string        // path of the POSTs, which must answer with the body they got; default "/"
	Bucket    time.Duration // width of the buckets in which versions are counted; default 1 s
	Failures  int           // how many failures are kept in detail; default 20

	GetOnly bool // no client but those of uploads and expectations sends a POST
	// AnyStatus takes an answer of any status for a good one; Report.Statuses tells them apart.
	AnyStatus bool
	Host      string // the Host header; default "load"
	Agent     string // the User-Agent header; default none

	// Further clients, by kind; default none.
	Idle       int // each asks once in IdleThink, and they take turns
	Slow       int // GET SlowPath?for=SlowFor, which must take that long to answer
	Uploads    int // POST UploadPath, which must answer "<SHA-256 in hex> <length>\n"
	Pipelined  int
	HalfHeads  int
	Expect     int
	Events     int // GET EventsPath: events whose id, or else the number their data begins with, counts up by one
	WebSockets int // ChatPath: each message comes back to all as "<number> <message>", in one order for all
	Lines      int // not HTTP: each line comes back as "<number> <line>", where the number counts from 1 in each connection

	IdleThink  time.Duration // default 30 s
	SlowFor    time.Duration // default 200 ms
	SlowPath   string        // default "/slow"
	UploadSize int           // bytes; default 64 KiB
	UploadPath string        // default "/upload"
	EventsPath string        // default "/events"
	ChatPath   string        // default "/ws"
	Piece      time.Duration // pause between the pieces of what is sent in pieces; default 5 ms, negative for none
}

// Load is a running load. Its clients run until Stop.
type Load struct {
	cfg     Config
	rec     *recorder
	clients []*client
	room    uint32 // the first of its clients' numbers in a chat that others may use, too

	stop    chan struct{} // closed by the first Stop or Cancel
	dialing context.Context
	cancel  context.CancelFunc // of dialing; by Cancel
	once    sync.Once
	wg      sync.WaitGroup
}

// Start starts the clients and returns at once.
func Start(cfg Config) *Load {
	cfg = cfg.withDefaults()
	l := &Load{cfg: cfg, rec: newRecorder(cfg), stop: make(chan struct{}), room: rand.Uint32() &^ 0xffff}
	l.dialing, l.cancel = context.WithCancel(context.Background())
	for _, k := range []struct {
		kind Client
		n    int
	}{
		{Kept, cfg.KeepAlive}, {Fresh, cfg.Fresh}, {Idle, cfg.Idle}, {Slow, cfg.Slow}, {Upload, cfg.Uploads},
		{Pipelined, cfg.Pipelined}, {HalfHead, cfg.HalfHeads}, {Expect, cfg.Expect},
		{Events, cfg.Events}, {WebSocket, cfg.WebSockets}, {Lines, cfg.Lines},
	} {
		for i := range k.n {
			c := newClient(l, len(l.clients), k.kind)
			if k.kind == Idle { // one after the other: thousands at once would overflow the service's backlog
				c.first = min(cfg.IdleThink/time.Duration(k.n), 500*time.Microsecond) * time.Duration(i)
			}
			l.clients = append(l.clients, c)
		}
	}
	for _, c := range l.clients {
		l.wg.Go(c.run)
	}
	return l
}

// Stop lets requests under way finish, waits for all clients to end, and returns the final report. It may be called
// again, for the same report.
func (l *Load) Stop() Report { return l.end(false) }

// Cancel is Stop that waits for nothing: requests under way are given up, and not counted.
func (l *Load) Cancel() Report { return l.end(true) }

func (l *Load) end(now bool) Report {
	l.once.Do(func() {
		if now {
			l.rec.deafen()
			l.cancel()
		}
		close(l.stop)
		for _, c := range l.clients {
			c.interrupt(now)
		}
		l.wg.Wait()
		l.cancel()
		l.rec.end()
	})
	return l.rec.report()
}

// Report returns the report so far.
func (l *Load) Report() Report { return l.rec.report() }

// Window marks the time from now until end is called: the report counts what was under way within apart from the rest.
// One window may follow another, but not overlap it.
func (l *Load) Window() (end func()) { return l.rec.window() }

// Until waits until the report so far is what the caller waits for, such as answers of another version.
func (l *Load) Until(ctx context.Context, cond func(Report) bool) error {
	look := time.NewTicker(5 * time.Millisecond)
	defer look.Stop()
	for !cond(l.rec.report()) {
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-look.C:
		}
	}
	return nil
}

func (c Config) withDefaults() Config {
	count := func(n *int, def int) {
		switch {
		case *n == 0:
			*n = def
		case *n < 0:
			*n = 0
		}
	}
	duration := func(d *time.Duration, def time.Duration) {
		switch {
		case *d == 0:
			*d = def
		case *d < 0:
			*d = 0
		}
	}
	text := func(s *string, def string) {
		if *s == "" {
			*s = def
		}
	}
	count(&c.KeepAlive, 32)
	count(&c.Fresh, 4)
	count(&c.Failures, 20)
	count(&c.UploadSize, 64<<10)
	duration(&c.Think, 2*time.Millisecond)
	duration(&c.Timeout, 10*time.Second)
	duration(&c.Bucket, time.Second)
	duration(&c.IdleThink, 30*time.Second)
	duration(&c.SlowFor, 200*time.Millisecond)
	duration(&c.Piece, 5*time.Millisecond)
	text(&c.Get, "/")
	text(&c.Post, "/")
	text(&c.Host, "load")
	text(&c.SlowPath, "/slow")
	text(&c.UploadPath, "/upload")
	text(&c.EventsPath, "/events")
	text(&c.ChatPath, "/ws")
	return c
}
