package systest

import (
	"encoding/json"
	"fmt"
	"os"
	"strings"
	"syscall"
	"testing"

	"github.com/zdt-dev/zdt/internal/guest"
	"github.com/zdt-dev/zdt/internal/load"
)

// box is a container that zdt run is the first process of: namespaces and a cgroup of its own, the capabilities
// and the seccomp filter of container engines. It has the network in common with the other ones, and a directory. The unit is its
// engine, which starts it again when it fails.
type box struct{ *service }

func newBox(s *service, name, confine, ready string) box {
	s.t.Helper()
	b := box{&service{t: s.t, g: s.g, name: "hello", unit: name + ".service", addr: s.addr}}
	b.run("mkdir", "-p", "/srv/"+name+"/run", "/srv/shared")
	b.write("/srv/"+name+"/start", fmt.Sprintf(`#!/bin/sh
mount --bind /srv/%[1]s/run /run/systemd && mount -t tmpfs none /run/dbus && hostname %[1]s || exit 9
unset NOTIFY_SOCKET INVOCATION_ID JOURNAL_STREAM SYSTEMD_EXEC_PID
export RUNTIME_DIRECTORY=/srv/%[1]s/run
exec %[2]s /usr/local/bin/zdt run --log json --service hello --takeover /srv/shared/takeover --listen %[3]s=http --ready %[4]s -- /srv/%[1]s/current/hello
`, name, confine, s.addr, ready))
	b.engine("on-failure")
	return b
}

// path is a file of the box.
func (b box) path(file string) string {
	return "/srv/" + strings.TrimSuffix(b.unit, ".service") + "/" + file
}

// engine says when the box is started again.
func (b box) engine(restart string) {
	b.t.Helper()
	unit := fmt.Sprintf("[Service]\nType=exec\nKillMode=mixed\nRestart=%s\nStandardError=append:%s\n"+
		"ExecStart=/usr/bin/unshare --pid --mount --uts --ipc --cgroup --fork --kill-child=SIGKILL --mount-proc %s\n",
		restart, b.path("events"), b.path("start"))
	if err := b.g.WriteFile("/etc/systemd/system/"+b.unit, []byte(unit), 0o644); err != nil {
		b.t.Fatal(err)
	}
	b.run("systemctl", "daemon-reload")
}

// start starts the box with a program.
func (b box) start(p program) {
	b.t.Helper()
	b.put(p)
	b.run("ln", "-sfn", "/srv/"+p.String(), b.path("current"))
	b.run("systemctl", "start", b.unit)
}

// awaitState waits until the unit is active, inactive or failed, and not started again by its engine.
func (b box) awaitState(state, result string) {
	b.t.Helper()
	b.await(b.unit+" to be "+state, func() bool { return b.show("ActiveState") == state })
	if got, restarts := b.show("Result"), b.show("NRestarts"); got != result || restarts != "0" {
		b.t.Errorf("%s: %s, started again %s times", b.unit, got, restarts)
	}
}

// story are the events that the box has told.
func (b box) story() string {
	b.t.Helper()
	text, err := os.ReadFile(b.g.Path(b.path("events")))
	if err != nil {
		b.t.Fatal(err)
	}
	var story []string
	for line := range strings.Lines(string(text)) {
		var e struct{ Event string }
		if json.Unmarshal([]byte(line), &e) == nil && e.Event != "" {
			story = append(story, e.Event)
		}
	}
	return strings.Join(story, " ")
}

// prove checks that the processes of two boxes are confined, and have in common what they should, and nothing else.
func prove(a, b box) {
	a.t.Helper()
	if kind := a.run("stat", "--file-system", "--format=%T", "/sys/fs/cgroup"); kind != "cgroup2fs" {
		a.t.Errorf("cgroups are %s", kind)
	}
	for _, name := range []string{"zdt", "hello"} {
		pa, pb := a.boxed()[name], b.boxed()[name]
		a.mustBeConfined(pa)
		b.mustBeConfined(pb)
		for _, ns := range []string{"mnt", "pid", "uts", "ipc", "cgroup", "net"} {
			la, err1 := os.Readlink(fmt.Sprintf("/proc/%d/ns/%s", pa, ns))
			lb, err2 := os.Readlink(fmt.Sprintf("/proc/%d/ns/%s", pb, ns))
			if err1 != nil || err2 != nil || (la == lb) != (ns == "net") {
				a.t.Errorf("%s: namespaces %s and %s, %v, %v", name, la, lb, err1, err2)
			}
		}
	}
}

// A service that zdt run keeps moves from container to container and back, and no client notices more than that its connection
// was closed politely. A container with a bad release changes nothing.
func TestHelperTakeoverBetweenContainers(t *testing.T) {
	t.Parallel()
	guest.Each(t, func(t *testing.T, g *guest.Guest) {
		s := &service{t: t, g: g, name: "hello", unit: "a.service", addr: "127.0.0.1:8080"}
		s.installZdt()
		confine := s.confined()
		a, b := newBox(s, "a", confine, "tcp:"+s.addr), newBox(s, "b", confine, "notify")
		a.start(good(1))
		s.await("an answer", func() bool { v, err := s.ask("/"); return err == nil && v == version(1) })
		l := s.lightLoad()
		if err := l.Until(t.Context(), func(r load.Report) bool { return r.Requests > 100 }); err != nil {
			t.Fatal(err)
		}

		// Both at once can be seen while the program of the new one starts.
		b.start(bad(2, "wait"))
		s.await("two containers", func() bool { return b.boxed()["hello"] != 0 })
		prove(a, b)
		if v := s.answers(); v != version(1) {
			t.Errorf("%s answers", v)
		}
		b.run("touch", "/srv/hello.go-on")
		s.await("the second container", func() bool { return s.answers() == version(2) })
		a.awaitState("inactive", "success")

		// The one that serves accepts what the other one sends to see whether its own program does.
		b.run("rm", "/srv/hello.go-on")
		a.start(bad(3, "wait"))
		before := l.Report().Versions[version(2)]
		if err := l.Until(t.Context(), func(r load.Report) bool { return r.Versions[version(2)] > before+300 }); err != nil {
			t.Errorf("the program of the second container does not answer any more: %v", err)
		}
		b.run("touch", "/srv/hello.go-on")
		s.await("the first container again", func() bool { return s.answers() == version(3) })
		b.awaitState("inactive", "success")

		b.engine("no")
		b.start(bad(4, crash))
		b.awaitState("failed", "exit-code")
		if v := s.answers(); v != version(3) {
			t.Errorf("%s answers", v)
		}
		r := l.Stop()
		t.Logf("clients: %s", r)
		mustFailNothing(t, r)

		// One that is the service already when it crashes: the first one drains, for as long as it has a request, and
		// starts its program again.
		conn, err := s.dial(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		const head = "POST / HTTP/1.1\r\nHost: hello\r\nContent-Length: 2\r\n\r\n"
		if err := exchange(conn, head+"ab", "ab"); err != nil { // accepted, beyond doubt
			t.Fatal(err)
		}
		if _, err := fmt.Fprint(conn, head+"c"); err != nil {
			t.Fatal(err)
		}
		b.start(bad(4, crashAfterReady))
		b.awaitState("failed", "exit-code")
		s.await("the failure to be told", func() bool { return strings.Count(a.story(), "abort") == 2 })
		s.await("the first container again", func() bool { v, err := s.ask("/"); return err == nil && v == version(3) })
		if err := exchange(conn, "d", "cd"); err != nil {
			t.Errorf("the request of before: %v", err)
		}
		a.awaitState("active", "success")

		s.await("the old program has ended", func() bool { return a.processes() == 3 })
		a.signalBox(syscall.SIGTERM)
		a.awaitState("inactive", "success")
		for _, want := range []string{"fork listen drain exit", "fork abort"} {
			if story := a.story(); !strings.Contains(story, want) {
				t.Errorf("the story is %s, without %s", story, want)
			}
		}
		if left := a.run("ls", "-A", "/srv/shared"); left != "" {
			t.Errorf("left: %s", left)
		}
	})
}
