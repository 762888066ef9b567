package systest

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/zdt-dev/zdt/handoff/control"
	"github.com/zdt-dev/zdt/internal/guest"
	"github.com/zdt-dev/zdt/internal/load"
)

// This file brings an upgrade to a known phase and keeps it there while a scenario interferes.

// wait is the fault of a program that is READY when the scenario says so.
const wait = "wait"

// letGo makes programs with the fault wait go on, and waits for none any more until keepWaiting.
func (s *service) letGo()       { s.run("touch", "/srv/hello.go-on") }
func (s *service) keepWaiting() { s.run("rm", "-f", "/srv/hello.go-on") }

// kept is an upgrade that a scenario keeps in a phase.
type kept struct {
	*running
	file      string // of the guest, which it upgrades to
	incumbent int
	candidate int
	// letGo lets it go on to its end, which is wait's result.
	letGo func()
}

// keepIn starts an upgrade to version n and returns when it is in the phase, where it stays until letGo.
func (s *service) keepIn(phase control.Phase, n int) *kept {
	s.t.Helper()
	k := &kept{incumbent: s.mainPID()}
	switch phase {
	case control.Forked:
		s.keepWaiting()
		k.file = s.put(bad(n, wait))
		k.running = s.startUpgrade(k.file)
		k.letGo = s.letGo
	case control.Held:
		k.file = s.put(good(n))
		k.running = s.startUpgrade(k.file, "--bake=1h")
		k.letGo = func() { k.running.Signal(syscall.SIGUSR1) } // as zdt promote does
	case control.Draining:
		finish := s.hangingRequest()
		k.file = s.put(good(n))
		k.running = s.startUpgrade(k.file)
		k.letGo = func() { finish(version(n - 1)) }
		k.candidate = s.drainingSuccessor(k.incumbent)
		return k
	}
	s.await("the upgrade is "+string(phase), func() bool {
		r := s.runtime()
		if r == nil || r.Phase != phase {
			return false
		}
		k.candidate = r.Handoff.Candidate
		return true
	})
	return k
}

// phases are those that a scenario can keep an upgrade in.
func phases() []control.Phase { return []control.Phase{control.Forked, control.Held, control.Draining} }

// hangingRequest sends half of a POST: the generation that takes it has a request to finish until finish sends the
// other half and wants the answer, which was begun by the given version.
func (s *service) hangingRequest() (finish func(version string)) {
	s.t.Helper()
	end := s.halfRequest()
	return func(version string) {
		s.t.Helper()
		if answer, err := end(); err != nil || !strings.Contains(answer, "X-Version: "+version+"\r\n") {
			s.t.Errorf("the hanging request ends with %v and the answer %q, want one of %s", err, answer, version)
		}
	}
}

// halfRequest is hangingRequest for who wants to know how it ends.
func (s *service) halfRequest() (finish func() (string, error)) {
	s.t.Helper()
	conn, err := s.dial(s.t.Context())
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { conn.Close() })
	conn.SetDeadline(time.Now().Add(patience))
	// The server asks for the body when its handler reads it: proof that the request is under way.
	const goOn = "HTTP/1.1 100 Continue\r\n\r\n"
	asked := make([]byte, len(goOn))
	_, err = io.WriteString(conn, "POST / HTTP/1.1\r\nHost: hello\r\nConnection: close\r\nContent-Length: 10\r\nExpect: 100-continue\r\n\r\n")
	if err == nil {
		_, err = io.ReadFull(conn, asked)
	}
	if err == nil {
		_, err = io.WriteString(conn, "first")
	}
	if err != nil || string(asked) != goOn {
		s.t.Fatalf("begin a request: %v, answer %q", err, asked)
	}
	return func() (string, error) {
		defer conn.Close()
		conn.SetDeadline(time.Now().Add(patience))
		if _, err := io.WriteString(conn, "other"); err != nil {
			return "", err
		}
		answer, err := io.ReadAll(conn)
		if text := string(answer); err == nil && !(strings.HasPrefix(text, "HTTP/1.1 200 ") && strings.HasSuffix(text, "firstother")) {
			err = fmt.Errorf("it is cut")
		}
		return string(answer), err
	}
}

// must is Run with the exit code a scenario expects.
func (s *service) must(code int, args ...string) guest.Result {
	s.t.Helper()
	r, err := s.g.Run(s.t.Context(), args...)
	if err != nil {
		s.t.Fatalf("%v\n%s", err, r)
	}
	if r.Code != code {
		s.t.Errorf("want exit status %d:\n%s", code, r)
	}
	return r
}

// control sends one request to the control socket and returns where the answers come from.
func (s *service) control(req control.Request) (net.Conn, *json.Decoder) {
	s.t.Helper()
	conn, err := s.g.Dial(s.t.Context(), "unix", "/run/zdt/"+s.name+"/control.sock")
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { conn.Close() })
	if err := json.NewEncoder(conn).Encode(req); err != nil {
		s.t.Fatal(err)
	}
	return conn, json.NewDecoder(conn)
}

// runtime is what the runtime says of itself, or nil. To wait for a state this is cheaper than zdt status by a process.
func (s *service) runtime() *control.Status {
	conn, err := s.g.Dial(s.t.Context(), "unix", "/run/zdt/"+s.name+"/control.sock")
	if err != nil {
		return nil
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(time.Second))
	var resp control.Response
	if json.NewEncoder(conn).Encode(control.Request{Op: control.OpStatus}) != nil || json.NewDecoder(conn).Decode(&resp) != nil {
		return nil
	}
	return resp.Status
}

// tell sends one request to the control socket, which must be obeyed.
func (s *service) tell(req control.Request) control.Status {
	s.t.Helper()
	conn, answers := s.control(req)
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(patience))
	var resp control.Response
	if err := answers.Decode(&resp); err != nil || resp.Code != "" || resp.Status == nil {
		s.t.Fatalf("control socket: %v %+v", err, resp)
	}
	return *resp.Status
}

// footprint is what a service has open and running when it is settled.
type footprint struct {
	descriptors []string
	orphans     string
}

// footprint is taken without load, and of a generation that came about by a handoff, as the first one has more open.
func (s *service) footprint() footprint {
	s.t.Helper()
	s.settled()
	return footprint{s.descriptors(), s.run("find", "/run/zdt", "/run/systemd/system", "/var/lib/zdt/hello", "-maxdepth", "1", "-name", ".*", "-o", "-name", "*.d")}
}

// mustLeaveNothing waits until the service is as small as before.
func (s *service) mustLeaveNothing(before footprint) {
	s.t.Helper()
	var now []string
	defer func() {
		if s.t.Failed() {
			s.t.Logf("descriptors %q, before: %q", now, before.descriptors)
		}
	}()
	s.await("the descriptors of before", func() bool { now = s.descriptors(); return slices.Equal(now, before.descriptors) })
	if now := s.footprint(); now.orphans != before.orphans {
		s.t.Errorf("left behind: %q, before: %q", now.orphans, before.orphans)
	}
}

// eachPhase runs a scenario with an upgrade kept in each phase, in one guest after the other, under a light load that
// must not notice; afterwards the next upgrade works and nothing is left.
func eachPhase(t *testing.T, scenario func(t *testing.T, s *service, phase control.Phase, n int)) {
	eachPhaseWith(t, mustLoseNothing, scenario)
}

// eachPhaseWith is eachPhase with another verdict on what the clients saw.
func eachPhaseWith(t *testing.T, verdict func(*testing.T, load.Report), scenario func(t *testing.T, s *service, phase control.Phase, n int)) {
	guest.Each(t, func(t *testing.T, g *guest.Guest) {
		s := newService(t, g, options{})
		s.mustUpgrade(good(2)) // from here on every generation came about in the same way
		before := s.footprint()
		l := s.lightLoad()
		n := 2
		for _, phase := range phases() {
			t.Run(string(phase), func(t *testing.T) {
				s.t = t
				scenario(t, s, phase, n+1)
				n += 2
				s.mustUpgrade(good(n))
				s.mustRun(n)
			})
			s.t = t
		}
		verdict(t, l.Stop())
		s.mustLeaveNothing(before)
	})
}

// journalOf returns the unit's journal as text.
func (s *service) journalOf(matches ...string) string {
	return s.g.Journal(context.WithoutCancel(s.t.Context()), append([]string{"-u", s.unit}, matches...)...)
}

// reloadSaid returns what ExecReload= wrote: output of the unit under the
// program's name, and not under zdt's own as the events are. (Not _COMM=zdt:
// journald reads that field from /proc, where a command that has ended by then
// has none; the name and the unit belong to the stream systemd gave it.)
func (s *service) reloadSaid() string {
	return s.journalOf("SYSLOG_IDENTIFIER=" + s.name)
}

// pid is a process's number for a command line.
func pid(n int) string { return fmt.Sprint(n) }
