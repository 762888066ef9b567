package health

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/zdt-dev/zdt/internal/sockowner"
)

const (
	// otherTries is how many connections in a row, without a pause, may come to another process. Of two that wait at
	// one socket, each gets about every other one.
	otherTries = 4
	// otherPause is the pause after that; it grows to otherPauseMost.
	otherPause     = 10 * time.Millisecond
	otherPauseMost = 100 * time.Millisecond
)

// connect is one try. It ends with the first connection that the candidate accepts, or with one of which that cannot be
// told, or that nobody accepts.
func (p Prober) connect(ctx context.Context, g Gate, c Candidate) answer {
	others := 0
	for pause := otherPause; ; {
		began := time.Now()
		a, whose := p.once(ctx, g, c)
		a.text += " after " + round(time.Since(began)).String()
		a.by.Others = others
		switch whose {
		case sockowner.Mine:
			a.by.Candidate = 1
		case sockowner.Unknown:
			a.by.Unknown = 1
		case sockowner.Other:
			others++
			if others%otherTries == 0 {
				timer := time.NewTimer(pause)
				select {
				case <-timer.C:
				case <-ctx.Done():
				}
				timer.Stop()
				pause = min(pause*3/2, otherPauseMost)
			}
			if !over(ctx) {
				continue
			}
		}
		if others > 0 && whose != sockowner.Mine && whose != sockowner.Unknown && over(ctx) {
			a.text = fmt.Sprintf("none of %s came to the candidate, another process accepted them; if that is a proxy in front of the service, say from=anyone", connections(others))
			a.by.Others = others
		}
		return a
	}
}

// over reports whether the time is over. A connection, which has a deadline of its own, may know so a moment before the
// context does.
func over(ctx context.Context) bool {
	deadline, found := ctx.Deadline()
	return ctx.Err() != nil || found && !time.Now().Before(deadline)
}

func connections(n int) string {
	if n == 1 {
		return "1 connection"
	}
	return strconv.Itoa(n) + " connections"
}

// once is one connection.
//
// Who accepted it is known before anything is asked: this process waits, the connection still silent, until the kernel
// says that somebody did, and whether that is the candidate. So the incumbent sees a connection that is closed without a
// request, and no request of a gate is in its log. (Where the socket has TCP_DEFER_ACCEPT it sees the first lines
// of one: without, nobody could accept.)
func (p Prober) once(ctx context.Context, g Gate, c Candidate) (answer, sockowner.Owner) {
	dial := p.Dial
	if dial == nil {
		dial = new(net.Dialer).DialContext
	}
	conn, err := dial(ctx, g.network, g.address)
	if err != nil {
		if elsewhere(g, c) {
			err = fmt.Errorf("%w (process %d is in a network namespace of its own, where a gate cannot reach it: PrivateNetwork= or the like; use unix:, http+unix:, journal: or exec:)", err, c.PID)
		}
		return answer{text: err.Error()}, sockowner.None
	}
	defer conn.Close()
	if deadline, found := ctx.Deadline(); found {
		conn.SetDeadline(deadline)
	}
	defer context.AfterFunc(ctx, func() { conn.SetDeadline(time.Unix(1, 0)) })()

	ask, over := request{}, conn
	var nudge func() error
	if g.uri != "" {
		if ask, err = g.request(ctx); err != nil {
			return answer{text: err.Error()}, sockowner.None
		}
		if g.kind == kindHTTPS {
			over = tls.Client(conn, &tls.Config{ServerName: hostOf(g.host), InsecureSkipVerify: !g.verify})
		} else {
			nudge = func() error { return ask.begin(conn) }
		}
	}
	whose, a := p.accepted(ctx, g, c, conn, nudge)
	if !a.ok || g.uri == "" {
		return a, whose
	}
	text, err := ask.finish(over, g)
	if err != nil {
		a.ok, text = false, explain(err)
	}
	a.text = text
	return a, whose
}

// accepted waits until the connection is accepted. The answer is ok when it may go on.
func (p Prober) accepted(ctx context.Context, g Gate, c Candidate, conn net.Conn, nudge func() error) (sockowner.Owner, answer) {
	await := p.Whose
	if await == nil {
		await = func(ctx context.Context, conn net.Conn, pid int, nudge func() error) (sockowner.Owner, error) {
			return sockowner.Family(pid).Await(ctx, conn, nudge)
		}
	}
	whose, err := await(ctx, conn, c.PID, nudge)
	switch {
	case whose == sockowner.Mine:
		return whose, answer{ok: true, text: "the connection was accepted"}
	case whose == sockowner.Other && g.anyone:
		return sockowner.Unknown, answer{ok: true, text: "the connection was accepted", blind: "from=anyone"}
	case whose == sockowner.Unknown:
		return whose, answer{ok: true, text: "a connection was made", blind: err.Error()}
	case whose == sockowner.Other:
		return whose, answer{text: "another process accepted the connection"}
	case !over(ctx):
		return whose, answer{text: err.Error()}
	case whose == sockowner.Deferred:
		return whose, answer{text: "nobody is shown the connection before a request, for TCP_DEFER_ACCEPT (use http://)"}
	}
	return whose, answer{text: "nobody accepted the connection"}
}

// elsewhere reports whether the candidate is known to be in another network namespace than this process, and the gate
// asks for what belongs to one.
func elsewhere(g Gate, c Candidate) bool {
	if g.network == "unix" && !strings.HasPrefix(g.address, "@") {
		return false
	}
	here, err := os.Readlink("/proc/self/ns/net")
	there, theirErr := os.Readlink("/proc/" + strconv.Itoa(c.PID) + "/ns/net")
	return err == nil && theirErr == nil && here != there
}

func hostOf(address string) string {
	if host, _, err := net.SplitHostPort(address); err == nil {
		return host
	}
	return strings.Trim(address, "[]")
}

// explain says in words what became of a connection that was accepted.
func explain(err error) string {
	var verify *tls.CertificateVerificationError
	switch {
	case errors.As(err, &verify):
		return err.Error() + " (verify=no does not look at it)"
	case errors.Is(err, os.ErrDeadlineExceeded):
		return "no answer"
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return "the connection was closed without an answer"
	}
	return err.Error()
}
