package systest

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/zdt-dev/zdt/handoff/control"
	"github.com/zdt-dev/zdt/internal/guest"
	"github.com/zdt-dev/zdt/journal"
	"github.com/zdt-dev/zdt/upgrade"
)

// keptAlive is a client that keeps its connection, idle between two requests.
type keptAlive struct {
	net.Conn
	r *bufio.Reader
}

// ask sends a request and returns the version that answers.
func (k keptAlive) ask() (string, error) {
	k.SetDeadline(time.Now().Add(patience))
	if _, err := fmt.Fprint(k, "GET / HTTP/1.1\r\nHost: hello\r\n\r\n"); err != nil {
		return "", err
	}
	resp, err := http.ReadResponse(k.r, nil)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK || resp.Close {
		return "", fmt.Errorf("%s, closes: %t", resp.Status, resp.Close)
	}
	_, err = io.Copy(io.Discard, resp.Body)
	return resp.Header.Get("X-Version"), err
}

// keptAlive connects n clients, each of which has had one answer.
func (s *service) keptAlive(n int) []keptAlive {
	s.t.Helper()
	var all []keptAlive
	for range n {
		conn, err := s.dial(s.t.Context())
		if err != nil {
			s.t.Fatal(err)
		}
		s.t.Cleanup(func() { conn.Close() })
		k := keptAlive{conn, bufio.NewReader(conn)}
		if _, err := k.ask(); err != nil {
			s.t.Fatal(err)
		}
		all = append(all, k)
	}
	s.await("they are idle", func() bool { r := s.runtime(); return r != nil && r.Connections.Idle == n })
	return all
}

// mustSay waits until systemctl status shows this text.
func (s *service) mustSay(text string) {
	s.t.Helper()
	said := ""
	defer func() {
		if s.t.Failed() {
			s.t.Logf("the last status text is %q", said)
		}
	}()
	s.await(fmt.Sprintf("StatusText is %q", text), func() bool { said = s.show("StatusText"); return said == text })
}

// An operator sees where the connections are, while the drain goes on and when it is over: in systemctl status, though
// systemd does not listen to the process that drains; in zdt status; in the events; and in the verdict, also without a
// journal. The clients, meanwhile, stay connected.
func TestConnectionsAreSeen(t *testing.T) {
	t.Parallel()
	const idle = 5
	guest.Each(t, func(t *testing.T, g *guest.Guest) {
		s := newService(t, g, options{})
		s.mustSay("generation 1: serving")
		clients := s.keptAlive(idle)
		for n := 2; n <= 3; n++ {
			k := s.keepIn(control.Draining, n)
			s.mustSay(fmt.Sprintf("generation %d: serving; generation %d drains: 1 active, %d moved", n, n-1, idle))
			text := s.run("zdt", "status", s.name)
			for _, want := range []string{
				fmt.Sprintf("   draining  pid %d, generation %d: 1 connection (active) left\n", k.incumbent, n-1),
				fmt.Sprintf("     so far  %d moved\n", idle),
				fmt.Sprintf("      moves  %d connections taken over\n", idle),
			} {
				if !strings.Contains(text, want) {
					t.Errorf("zdt status says\n%swithout\n%s", text, want)
				}
			}
			if n == 3 {
				s.run(journald("stop")...)
			}
			k.letGo()
			r := k.wait()
			r.mustBe(upgrade.Upgraded, 0)
			if c := r.Connections; c == nil || *c != (control.Counts{Moved: idle, Drained: 1}) {
				t.Errorf("connections at the incumbent's end: %+v", c)
			}
			s.mustSay(fmt.Sprintf("generation %d: serving", n))
			if n == 3 {
				s.run(journald("start")...)
				continue
			}
			said := r.Story[len(r.Story)-1].Text
			if want := fmt.Sprintf(": %d connections moved, 1 drained, 0 cut", idle); !strings.HasSuffix(said, want) {
				t.Errorf("the exit event says %q, want %q at its end", said, want)
			}
			log := s.journalOf("-o", "export", fmt.Sprintf("%s=%d", journal.FieldPID, k.incumbent), "MESSAGE_ID="+journal.Exit.ID())
			for _, want := range []string{fmt.Sprintf("ZDT_CONNS_MOVED=%d\n", idle), "ZDT_CONNS_DRAINED=1\n", "ZDT_CONNS_CLOSED=0\n", "ZDT_CONNS_CUT=0\n"} {
				if !strings.Contains(log, want) {
					t.Errorf("the exit event is without %q:\n%s", want, log)
				}
			}
		}

		// The bare handoff tells the same.
		if said, want := s.run("zdt", "handoff", s.name), fmt.Sprintf(" · %d connections moved, 0 cut\n", idle); !strings.HasSuffix(said+"\n", want) {
			t.Errorf("zdt handoff says %q, want %q at its end", said, want)
		}
		for _, c := range clients {
			if v, err := c.ask(); v != version(3) || err != nil {
				t.Errorf("a client that stayed connected gets %q, %v", v, err)
			}
		}
		s.mustRun(3)
	})
}

// When the new process dies in the drain, so do the connections that had moved to it: the one that takes the service
// back says so, and so does the verdict.
func TestMovedConnectionsAreLost(t *testing.T) {
	t.Parallel()
	const idle = 3
	guest.Each(t, func(t *testing.T, g *guest.Guest) {
		s := newService(t, g, options{})
		s.mustUpgrade(good(2))
		s.settled()
		s.keptAlive(idle)
		k := s.keepIn(control.Draining, 3)
		s.mustSay(fmt.Sprintf("generation 3: serving; generation 2 drains: 1 active, %d moved", idle))
		s.kill(k.candidate)
		r := k.wait()
		r.mustBe(upgrade.RolledBack, 11)
		want := fmt.Sprintf("the %d connections that had moved to it are lost", idle)
		if r.Lost != idle || !strings.Contains(r.Cause, want) || !strings.Contains(strings.Join(r.Warnings, "\n"), "had moved to the new process") {
			t.Errorf("lost %d, cause %q, warnings %q", r.Lost, r.Cause, r.Warnings)
		}
		if log := s.journalOf("-o", "export", "MESSAGE_ID="+journal.Abort.ID()); !strings.Contains(log, fmt.Sprintf("ZDT_CONNS_LOST=%d\n", idle)) || !strings.Contains(log, want) {
			t.Errorf("the journal does not say what was lost:\n%s", log)
		}
		s.mustSay("generation 2: serving")
		k.letGo()
		s.mustRun(2)
	})
}
