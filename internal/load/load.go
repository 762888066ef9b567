// Package load puts an HTTP/1.1 service under load with clients that never retry, and counts what those clients see.
//
// It answers one question: would a client have noticed the upgrade? Ordinary HTTP clients hide the answer, because
// they silently send an idempotent request again when a kept-alive connection turns out to be closed. These clients
// write each request once. Half of the requests are POSTs, whose body has to come back; the service has to serve GET
// with any body and POST with the body it was sent.
//
// What counts as what:
//
//   - Failed: a request that was written, in whole or in part, and did not get a complete, correct answer. A connection
//     that the server closed a moment before the request was written is such a failure; the client could not know.
//   - Refused: a connection that could not be opened.
//   - PoliteCloses: the server announced the end of the connection with a complete answer. No failure.
//   - IdleCloses: the server closed a connection while no request was under way, and the client saw that before it
//     wrote one. No failure, but luck.
package load

import (
	"context"
	"net"
	"sync"
	"time"
)

// Config says what load to make. Dial is required; the zero value of anything else stands for the default.
type Config struct {
	// Dial opens a connection to the service. The context has the deadline of Timeout.
	Dial func(ctx context.Context) (net.Conn, error)

	KeepAlive int           // clients that keep their connection; default 32, negative for none
	Fresh     int           // clients that open a connection for each request; default 4, negative for none
	Think     time.Duration // pause of a client between requests; default 2 ms, negative for none
	Timeout   time.Duration // bound on a connect, and on a request with its answer; default 10 s
	Get       string        // path of the GETs; default "/"
	Post      string        // path of the POSTs, which must answer with the body they got; default "/"
	Bucket    time.Duration // width of the buckets in which versions are counted; default 1 s
	Failures  int           // how many failures are kept in detail; default 20
}

// Load is a running load. Its clients run until Stop.
type Load struct {
	cfg  Config
	rec  *recorder
	stop chan struct{}
	once sync.Once
	wg   sync.WaitGroup
}

// Start starts the clients and returns at once.
func Start(cfg Config) *Load {
	cfg = cfg.withDefaults()
	l := &Load{cfg: cfg, rec: newRecorder(cfg), stop: make(chan struct{})}
	for i := range cfg.KeepAlive {
		l.wg.Go(func() { l.newClient(i, true).run() })
	}
	for i := range cfg.Fresh {
		l.wg.Go(func() { l.newClient(cfg.KeepAlive+i, false).run() })
	}
	return l
}

// Stop lets requests under way finish, waits for all clients to end, and returns the final report. It may be called
// again, for the same report.
func (l *Load) Stop() Report {
	l.once.Do(func() {
		close(l.stop)
		l.wg.Wait()
		l.rec.end()
	})
	return l.rec.report()
}

// Report returns the report so far.
func (l *Load) Report() Report { return l.rec.report() }

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
	path := func(s *string) {
		if *s == "" {
			*s = "/"
		}
	}
	count(&c.KeepAlive, 32)
	count(&c.Fresh, 4)
	count(&c.Failures, 20)
	duration(&c.Think, 2*time.Millisecond)
	duration(&c.Timeout, 10*time.Second)
	duration(&c.Bucket, time.Second)
	path(&c.Get)
	path(&c.Post)
	return c
}
