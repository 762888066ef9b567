package systest

import (
	"encoding/json"
	"strings"
	"syscall"
	"testing"

	"github.com/zdt-dev/zdt/internal/guest"
)

// proof is what the scenarios need of zdt prove -o json.
type proof struct {
	t        *testing.T
	Schema   string `json:"schema"`
	Outcome  string `json:"outcome"`
	ExitCode int    `json:"exit_code"`
	Changed  bool   `json:"changed"`
	Cause    string `json:"cause"`
	Target   struct {
		Network string `json:"network"`
		Address string `json:"address"`
	} `json:"target"`
	proofCounts
	During   proofCounts `json:"during"`
	Rest     proofCounts `json:"rest"`
	Handoffs []struct {
		Outcome    string `json:"outcome"`
		Incumbent  int    `json:"incumbent"`
		Candidate  int    `json:"candidate"`
		Generation int    `json:"generation"`
		Finished   bool   `json:"finished"`
	} `json:"handoffs"`
	Warnings []string `json:"warnings"`

	exec guest.Result
}

type proofCounts struct {
	Requests    int         `json:"requests"`
	Failed      int         `json:"failed"`
	Refused     int         `json:"refused"`
	Reconnected int         `json:"reconnected"`
	Statuses    map[int]int `json:"statuses"`
}

// prove runs zdt prove, which must tell what it saw.
func (s *service) prove(code int, outcome string, flags ...string) proof {
	s.t.Helper()
	r := s.must(code, append([]string{"zdt", "prove", s.name, "-o", "json"}, flags...)...)
	p := proof{t: s.t, exec: r}
	if err := json.Unmarshal([]byte(r.Stdout), &p); err != nil {
		s.t.Fatalf("stdout is not one JSON document: %v\n%s", err, r)
	}
	if p.Schema != "zdt.prove/1" || p.Outcome != outcome || p.ExitCode != code {
		s.t.Fatalf("want outcome %s and exit code %d:\n%s", outcome, code, r)
	}
	return p
}

// mustLoseNothing checks that no client noticed anything, and that there was something to notice.
func (p proof) mustLoseNothing() {
	p.t.Helper()
	if p.Failed+p.Refused+p.Reconnected > 0 || p.During.Requests == 0 || p.Rest.Requests == 0 || p.Statuses[200] != p.Requests || len(p.Warnings) > 0 {
		p.t.Errorf("clients noticed:\n%s", p.exec)
	}
}

// zdt prove shows that clients notice nothing of a handoff, and changes nothing but the process.
func TestProve(t *testing.T) {
	t.Parallel()
	guest.Each(t, func(t *testing.T, g *guest.Guest) {
		s := newService(t, g, options{})
		before := s.settled()

		p := s.prove(0, "proved", "--handoffs", "3", "--duration", "2s")
		p.mustLoseNothing()
		if p.Target.Network != "tcp" || p.Target.Address != s.addr || !p.Changed || len(p.Handoffs) != 3 {
			t.Errorf("want 3 handoffs seen at %s:\n%s", s.addr, p.exec)
		}
		after := s.settled()
		last := p.Handoffs[len(p.Handoffs)-1]
		if after.Runtime.Generation != before.Runtime.Generation+3 || last.Candidate != after.Runtime.PID || last.Generation != after.Runtime.Generation || !last.Finished {
			t.Errorf("generation %d, pid %d after\n%s", after.Runtime.Generation, after.Runtime.PID, p.exec)
		}
		if after.Current.ID != before.Current.ID || after.Running.ID != before.Running.ID {
			t.Errorf("another release: %s", after.text)
		}
		t.Logf("%d requests during the handoffs, %d at other times", p.During.Requests, p.Rest.Requests)

		// As a person sees it.
		r := s.must(0, "zdt", "prove", s.name, "--duration", "1s")
		if !strings.Contains(r.Stdout, "nothing lost") || strings.ContainsRune(r.Stdout+r.Stderr, '\x1b') {
			t.Error(r)
		}
		t.Log(r)

		// After an upgrade it is the new release that is proved.
		s.mustUpgrade(good(2))
		s.settled()
		s.prove(0, "proved", "--duration", "500ms", "--clients", "4").mustLoseNothing()
		s.mustRun(2)
	})
}

// zdt prove tells handoffs that were undone, and does not begin where it would prove nothing.
func TestProveRefuses(t *testing.T) {
	t.Parallel()
	guest.Each(t, func(t *testing.T, g *guest.Guest) {
		s := newService(t, g, options{})
		before := s.settled()
		s.must(10, "zdt", "prove", s.name, "--url", "http://127.0.0.1:1/")
		s.must(10, "zdt", "prove", "nosuch")
		s.must(64, "zdt", "prove", s.name, "--clients", "0")
		if got := s.settled().Runtime; got.Attempts != 0 || got.PID != before.Runtime.PID {
			t.Errorf("a refused proof was a handoff: %+v", got)
		}

		// An error status is an answer.
		p := s.prove(0, "proved", "--path", "/slow?for=nonsense", "--duration", "500ms")
		if p.Statuses[400] != p.Requests || p.Failed > 0 || len(p.Warnings) != 1 {
			t.Error(p.exec)
		}

		// Ctrl-C ends it in the middle, and the service does not care.
		proc, err := g.Spawn(t.Context(), guest.Command{Args: []string{"zdt", "prove", s.name, "--duration", "1h", "-o", "json"}})
		if err != nil {
			t.Fatal(err)
		}
		s.await("clients", func() bool { r := s.runtime(); return r != nil && r.Connections.Open() > 8 })
		if r := s.must(75, "zdt", "upgrade", s.name, "--binary", s.put(good(2))); !strings.Contains(r.Stderr, "somebody else works on hello") {
			t.Error(r)
		}
		if err := proc.Signal(syscall.SIGINT); err != nil {
			t.Fatal(err)
		}
		if r, err := proc.Wait(); err != nil || r.Code != 130 || !strings.Contains(r.Stdout, `"outcome": "interrupted"`) {
			t.Errorf("%v\n%s", err, r)
		}

		// A program that cannot start any more: undone, and nobody noticed.
		release := "/var/lib/zdt/hello/releases/" + before.Current.ID
		s.run("mv", release+"/hello", release+"/away")
		if p := s.prove(11, "undone", "--duration", "500ms"); p.Failed+p.Refused+p.Reconnected > 0 || p.Changed {
			t.Error(p.exec)
		}
		s.run("mv", release+"/away", release+"/hello")
		s.mustUpgrade(good(2))
		s.mustRun(2)
	})
}

// A service on a unix socket is asked there.
func TestProveUnixSocket(t *testing.T) {
	t.Parallel()
	const socket = "/run/hello.sock"
	guest.Each(t, func(t *testing.T, g *guest.Guest) {
		s := &service{t: t, g: g, name: "hello", unit: "hello.service", addr: socket}
		s.installZdt()
		s.run("zdt", "init", s.name, "--exec", s.put(good(1)), "--listen", socket+"=http", "--start", "--dynamic-user", "--", "-listen", socket)
		p := s.prove(0, "proved", "--duration", "500ms")
		p.mustLoseNothing()
		if p.Target.Network != "unix" || p.Target.Address != socket {
			t.Error(p.exec)
		}
		s.prove(0, "proved", "--duration", "500ms", "--url", "unix:"+socket, "--path", "/x").mustLoseNothing()

		// Where the service's user could not go itself, root goes only when it is told to.
		s.run("chmod", "600", socket)
		if r := s.must(10, "zdt", "prove", s.name); !strings.Contains(r.Stderr, "not open to the service's own user") {
			t.Error(r)
		}
		s.prove(0, "proved", "--duration", "500ms", "--url", "unix:"+socket).mustLoseNothing()
	})
}
