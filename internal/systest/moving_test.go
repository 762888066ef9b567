package systest

import (
	"bytes"
	"os"
	"path"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/zdt-dev/zdt/handoff/control"
	"github.com/zdt-dev/zdt/internal/guest"
	"github.com/zdt-dev/zdt/internal/load"
	"github.com/zdt-dev/zdt/upgrade"
)

// example is one of examples/ with the clients that stay connected to it. The service is called hello whichever it is:
// that is the name the helpers of this package know.
type example struct {
	name   string
	socket string
	verify bool // ZDT_VERIFY_MOVES=yes: half of them, so that both ways are gone
	load   load.Config
}

// examples have a client for every state a connection can be in when it has to move. Hello's stream of events is left
// out: it is one long response of net/http, which ends with the drain. The one of chat is not.
func examples() []example {
	const none, think = -1, 10 * time.Millisecond
	return []example{
		{"hello", "http", true, load.Config{
			KeepAlive: 16, Fresh: 3, Slow: 3, Uploads: 2, Pipelined: 3, HalfHeads: 3, Expect: 2, Idle: 4,
			Think: think, IdleThink: 500 * time.Millisecond,
		}},
		{"chat", "http", false, load.Config{KeepAlive: none, Fresh: none, WebSockets: 6, Events: 6, Think: 2 * think}},
		{"line", "line", true, load.Config{KeepAlive: none, Fresh: none, Lines: 16, Think: think}},
	}
}

// connections are those that its clients keep.
func (e example) connections() int {
	n := 0
	for _, clients := range []int{e.load.KeepAlive, e.load.Slow, e.load.Uploads, e.load.Pipelined, e.load.HalfHeads, e.load.Expect,
		e.load.Idle, e.load.WebSockets, e.load.Events, e.load.Lines} {
		n += max(0, clients)
	}
	return n
}

// soak is how many upgrades in a row "make soak" asks for, else 0: then a scenario makes as many as it wants.
func soak(t *testing.T) int {
	t.Helper()
	text := os.Getenv("ZDT_SOAK")
	if text == "" {
		return 0
	}
	n, err := strconv.Atoi(text)
	if err != nil || n < 1 {
		t.Fatalf("ZDT_SOAK=%q is no number of upgrades", text)
	}
	return n
}

// eachExample runs a scenario with each example on each systemd.
func eachExample(t *testing.T, scenario func(t *testing.T, s *service, e example)) {
	for _, e := range examples() {
		t.Run(e.name, func(t *testing.T) {
			t.Parallel()
			guest.Each(t, func(t *testing.T, g *guest.Guest) {
				verify := "no"
				if e.verify {
					verify = "yes"
				}
				s := startService(t, g, e.socket, e.file(t, 1), "Environment=ZDT_VERIFY_MOVES="+verify)
				s.mustMove(s.putFile(e.file(t, 2), 2)) // from here on every generation came about in the same way
				scenario(t, s, e)
			})
		})
	}
}

// startService is newService for any program of the host and the name of its socket, with settings of its unit.
func startService(t *testing.T, g *guest.Guest, socket, file string, settings ...string) *service {
	t.Helper()
	s := &service{t: t, g: g, name: "hello", unit: "hello.service", addr: "127.0.0.1:8080"}
	s.installZdt()
	dropIn := "[Service]\n" + strings.Join(settings, "\n") + "\n"
	if err := g.WriteFile("/etc/systemd/system/hello.service.d/systest.conf", []byte(dropIn), 0o644); err != nil {
		t.Fatal(err)
	}
	s.run("zdt", "init", s.name, "--exec", s.putFile(file, 1), "--listen", s.addr+"="+socket, "--dynamic-user", "--start")
	return s
}

// file is the host's path of release n of the example.
func (e example) file(t *testing.T, n int) string {
	if e.name == "hello" {
		return good(n).file(t)
	}
	return releaseOf(t, e.name, "../../examples/"+e.name, n)
}

// releaseOf builds release n of a program that says no version, or says it where placeholder stands: what follows the
// last section of an ELF file makes it another file and no other program.
func releaseOf(t *testing.T, name, pkg string, n int) string {
	raw := build(t, name+"-raw", func(out string) error { return goBuild(out, pkg, false, "-X main.version="+placeholder) })
	return build(t, name+"-"+version(n), func(out string) error {
		data, err := os.ReadFile(raw)
		if err != nil {
			return err
		}
		data = bytes.ReplaceAll(data, []byte(placeholder), []byte(version(n)))
		return os.WriteFile(out, append(data, version(n)...), 0o755)
	})
}

// putFile copies a release into the guest.
func (s *service) putFile(file string, n int) string {
	s.t.Helper()
	name := path.Join("/srv", version(n), "hello")
	if err := s.g.Copy(file, name, 0o755); err != nil {
		s.t.Fatal(err)
	}
	return name
}

// mustMove upgrades to a file of the guest; nothing of what is connected may end with the old process.
func (s *service) mustMove(file string) result {
	s.t.Helper()
	r := s.upgradeFile(file)
	r.mustBe(upgrade.Upgraded, 0)
	if c := r.Connections; c == nil || c.Cut > 0 || c.Closed > 0 || len(r.Warnings) > 0 || r.Lost > 0 {
		s.t.Errorf("connections at the incumbent's end: %+v, %d lost; warnings %q", c, r.Lost, r.Warnings)
	}
	return r
}

// mustTake checks what the running generation says of the connections that came to it, verified or not, and returns how
// many those are.
func (s *service) mustTake(verified bool) int {
	s.t.Helper()
	var r *control.Status
	s.await("the runtime answers", func() bool { r = s.runtime(); return r != nil })
	m := r.Moves
	switch {
	case m == nil || m.Taken == 0:
		s.t.Errorf("generation %d: no connection came from another one", r.Generation)
		return 0
	case m.Refused > 0 || m.Differing > 0 || m.Unverified > 0 || verified && m.Verified != m.Taken:
		s.t.Errorf("generation %d: %+v", r.Generation, *m)
	}
	return m.Taken
}

// busy waits until the clients of a load have been answered n times more.
func (s *service) busy(l *load.Load, n int) {
	s.t.Helper()
	before := l.Report().Requests
	s.await("requests", func() bool { return l.Report().Requests >= before+n })
}

// Clients in every state that a connection can be in stay connected through upgrades: not a request fails, not a
// connection ends, not a message of a stream is lost, comes twice or in another order. And nothing piles up.
func TestConnectionsStay(t *testing.T) {
	t.Parallel()
	upgrades := max(10, soak(t))
	eachExample(t, func(t *testing.T, s *service, e example) {
		before := s.footprint()
		files := []string{s.putFile(e.file(t, 1), 1), s.putFile(e.file(t, 2), 2)}
		l := s.load(e.load)
		s.busy(l, 100)
		moved := 0
		for n := range upgrades {
			r := s.mustMove(files[n%2])
			if c := r.Connections; c != nil && c.Moved < e.connections() {
				t.Errorf("upgrade %d: %d connections moved, want all of %d", n+1, c.Moved, e.connections())
			}
			moved += s.mustTake(e.verify)
			if t.Failed() {
				break
			}
		}
		s.busy(l, 100)
		report := l.Stop()
		mustLoseNothing(t, report)
		t.Logf("%d upgrades, %d moves; %s", upgrades, moved, report)
		s.settled()
		s.mustLeaveNothing(before)
	})
}
