//go:build linux

package helper

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strconv"
	"time"

	"github.com/zdt-dev/zdt/internal/sockowner"
)

// witness is what a Readiness is judged by: one generation, and what can be learned of it.
type witness struct {
	Generation int
	Band       band            // its leader is not reaped while wait runs, or Ended is closed before
	Ready      <-chan struct{} // closed when it has said READY=1
	Ended      <-chan struct{} // closed when its leader has ended
	Dropped    func() string   // which message that came to its mailbox did not count; may be nil

	// Alone: no other generation runs. Then an answer counts too when it cannot be seen whose it is.
	Alone bool

	// Run runs the command of exec: with Env and two variables more.
	Run func(ctx context.Context, argv, env []string) (Exit, []byte, error)
	Env []string
}

const (
	// probeTimeout bounds one try: with less than this, a program that takes long for its first answer would never be
	// ready; with more, one that has lost the connection would take long.
	probeTimeout = 10 * time.Second
	// probePause is between two tries at first. It grows to probePauseMost.
	probePause     = 10 * time.Millisecond
	probePauseMost = 250 * time.Millisecond
	// execPause and execPauseMost are the same for commands, which cost more.
	execPause     = 100 * time.Millisecond
	execPauseMost = time.Second
	// otherTries is how many connections in a row, without a pause, may come to another generation. Of two that wait
	// at one socket, each gets about every other one.
	otherTries = 4
	// answerLimit bounds what is read of an answer, in bytes; bodyLimit what is shown of it.
	answerLimit = 64 << 10
	bodyLimit   = 200
)

var (
	errEnded = errors.New("the program ended")
	errOther = errors.New("a process of another generation accepted the connection, its answer does not count")
)

// wait returns nil as soon as the generation is ready. Its error says how ctx or the program ended, and what the last
// answer was.
func (r Readiness) wait(ctx context.Context, w witness) error {
	ctx, cancel := context.WithCancelCause(ctx)
	watched := make(chan struct{})
	go func() {
		defer close(watched)
		select {
		case <-w.Ended:
			cancel(errEnded)
		case <-ctx.Done():
		}
	}()
	defer func() {
		cancel(nil)
		<-watched
	}()

	r = r.of(w.Band.Leader, w.Generation)
	var last error
	switch r.kind {
	case "":
		select {
		case <-w.Ready:
			return nil
		case <-ctx.Done():
		}
		last = errors.New("it has not said READY=1")
		if w.Dropped != nil && w.Dropped() != "" {
			last = fmt.Errorf("it has not said READY=1, and %s did not count (which processes may say so is --notify-access)", w.Dropped())
		}
	case "alive":
		timer := time.NewTimer(r.alive)
		defer timer.Stop()
		select {
		case <-timer.C:
			return nil
		case <-ctx.Done():
		}
		last = fmt.Errorf("%v are not over", r.alive)
	case "exec":
		last = poll(ctx, execPause, execPauseMost, func(ctx context.Context) error { return r.execute(ctx, w) })
	default:
		last = poll(ctx, probePause, probePauseMost, func(ctx context.Context) error {
			ctx, cancel := context.WithTimeout(ctx, probeTimeout)
			defer cancel()
			return r.connect(ctx, w)
		})
	}
	if last == nil {
		return nil
	}
	return fmt.Errorf("wait until the program is ready (%v): %w; last: %w", r, context.Cause(ctx), last)
}

// poll tries until a try succeeds, or ctx ends: then it returns why the last
// whole try did not.
func poll(ctx context.Context, pause, most time.Duration, try func(context.Context) error) error {
	var last error
	for others := 0; ; {
		err := try(ctx)
		if err == nil {
			return nil
		}
		if over(ctx) {
			<-ctx.Done() // any moment now
			// What ended with ctx says the least, unless the program had the connection and did not answer.
			var op *net.OpError
			connecting := errors.As(err, &op) && op.Op == "dial"
			if last == nil || errors.Is(err, os.ErrDeadlineExceeded) && !connecting {
				last = err
			}
			return last
		}
		last = err
		if errors.Is(err, errOther) {
			if others++; others%otherTries != 0 {
				continue
			}
		}
		timer := time.NewTimer(pause)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return last
		}
		pause = min(pause*3/2, most)
	}
}

// over reports whether the time of ctx is over. A connection, which has the same deadline, may know so a moment before ctx
// does.
func over(ctx context.Context) bool {
	deadline, found := ctx.Deadline()
	return ctx.Err() != nil || found && !time.Now().Before(deadline)
}

// connect is one try over a connection of its own.
//
// While two generations share a listening socket, either may get it. Which one did is known before
// anything is asked: this process waits, the connection still silent, until the kernel says that
// somebody accepted it, and looks for the accepted socket among the descriptors of this generation. So the other one sees
// a connection that is closed without a request, and no request of ours is in its log. (Where the socket has
// TCP_DEFER_ACCEPT it sees the first lines of one: without, nobody could accept.)
func (r Readiness) connect(ctx context.Context, w witness) error {
	var d net.Dialer
	conn, err := d.DialContext(ctx, r.network, r.address)
	if err != nil {
		return err
	}
	defer conn.Close()
	if deadline, found := ctx.Deadline(); found {
		conn.SetDeadline(deadline)
	}
	defer context.AfterFunc(ctx, func() { conn.SetDeadline(time.Unix(1, 0)) })()
	if r.uri == "" {
		return awaitAccept(ctx, conn, w, nil)
	}

	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+r.host+r.uri, nil)
	if err != nil {
		return err
	}
	req.Header.Set("User-Agent", "zdt-probe")
	req.Close = true
	var head bytes.Buffer
	if err := req.Write(&head); err != nil {
		return err
	}
	nudge := func() error {
		_, err := conn.Write(head.Next(head.Len() - 2)) // not the empty line: no request yet
		return err
	}
	over := conn
	if r.kind == "https" {
		nudge = nil
		over = tls.Client(conn, &tls.Config{
			ServerName: hostOf(r.host),
			// Whose answer it is the kernel says, and a name is not what it is about.
			InsecureSkipVerify: true,
		})
	}
	if err := awaitAccept(ctx, conn, w, nudge); err != nil {
		return err
	}
	if _, err := over.Write(head.Bytes()); err != nil {
		return fmt.Errorf("ask: %w", err)
	}
	return readAnswer(over, req)
}

func hostOf(address string) string {
	if host, _, err := net.SplitHostPort(address); err == nil {
		return host
	}
	return address
}

// readAnswer reads what the program answers. It may be hostile: the answer is bounded in size, and its
// time by the connection's deadline.
func readAnswer(conn io.Reader, req *http.Request) error {
	in := bufio.NewReader(io.LimitReader(conn, answerLimit))
	for {
		resp, err := http.ReadResponse(in, req)
		if err != nil {
			return fmt.Errorf("read the answer: %w", err)
		}
		switch {
		case resp.StatusCode < 200:
			continue // 100 Continue, 103 Early Hints
		case resp.StatusCode < 400:
			return nil
		}
		body, _ := io.ReadAll(io.LimitReader(resp.Body, 4*bodyLimit))
		return fmt.Errorf("it answered %s: %q", cleanText(resp.Status, bodyLimit), cleanText(string(body), bodyLimit))
	}
}

// execute is one run of the command.
func (r Readiness) execute(ctx context.Context, w witness) error {
	env := append(append([]string(nil), w.Env...), "ZDT_APP_PID="+strconv.Itoa(w.Band.Leader), "ZDT_GENERATION="+strconv.Itoa(w.Generation))
	exit, out, err := w.Run(ctx, r.argv, env)
	if err != nil {
		return err
	}
	if exit == (Exit{Code: cldExited}) {
		return nil
	}
	return fmt.Errorf("%s %v: %q", r.argv[0], exit, cleanText(string(out), bodyLimit))
}

// awaitAccept waits until a process of the generation has accepted the
// connection. nudge is called once when nobody can before something was sent; it may be nil.
func awaitAccept(ctx context.Context, conn net.Conn, w witness, nudge func() error) error {
	whose, err := w.Band.owners().Await(ctx, conn, nudge)
	switch {
	case whose == sockowner.Mine, whose == sockowner.Unknown && w.Alone:
		return nil
	case whose == sockowner.Unknown:
		return fmt.Errorf("it cannot be seen which generation accepted the connection: %w (use notify or exec:, or an address with {generation})", err)
	case whose == sockowner.Other:
		return errOther
	case ctx.Err() == nil:
		return err
	case whose == sockowner.Deferred:
		return fmt.Errorf("nobody is shown the connection before a request, for TCP_DEFER_ACCEPT (use http:// or exec:): %w", ctx.Err())
	}
	return fmt.Errorf("nobody accepted the connection: %w", ctx.Err())
}
