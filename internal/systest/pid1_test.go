package systest

import (
	"encoding/json"
	"fmt"
	"os"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/zdt-dev/zdt/internal/guest"
	"github.com/zdt-dev/zdt/internal/load"
)

// zdt run as the first process of a container: a pid namespace of its own without systemd, journald and
// D-Bus, with the capabilities and the seccomp filter of container engines. It reaps what the program leaves behind, SIGUSR2 hands over, its story is JSON on stderr, and SIGTERM ends it.
func TestHelperAsPID1(t *testing.T) {
	t.Parallel()
	guest.Each(t, func(t *testing.T, g *guest.Guest) {
		s := &service{t: t, g: g, name: "hello", unit: "box.service", addr: "127.0.0.1:8080"}
		s.installZdt()
		s.put(good(1))
		s.put(good(2))
		s.run("mkdir", "-p", "/srv/box", "/srv/rt")
		s.run("ln", "-s", "/srv/"+good(1).String(), "/srv/box/current")
		// The unit is what starts a container here; nothing of systemd is visible within. The program has a child that leaves
		// it and ends, as a daemon would.
		s.write("/srv/box/start", `#!/bin/sh
mount --bind /srv/rt /run/systemd && mount -t tmpfs none /run/dbus || exit 9
unset NOTIFY_SOCKET INVOCATION_ID JOURNAL_STREAM SYSTEMD_EXEC_PID
export RUNTIME_DIRECTORY=/srv/rt
exec `+s.confined()+` /usr/local/bin/zdt run --log json --service box --listen 127.0.0.1:8080=http -- /bin/sh -c 'setsid sh -c "true &"; exec /srv/box/current/hello'
`)
		if err := g.WriteFile("/etc/systemd/system/box.service", []byte("[Service]\nType=exec\nKillMode=mixed\n"+
			"ExecStart=/usr/bin/unshare --pid --fork --mount --kill-child=SIGKILL --mount-proc /srv/box/start\nStandardError=file:/srv/box/events\n"), 0o644); err != nil {
			t.Fatal(err)
		}
		s.run("systemctl", "daemon-reload")
		s.run("systemctl", "start", "box")
		s.await("an answer", func() bool { v, err := s.ask("/"); return err == nil && v == version(1) })
		s.await("zdt and the program, and nothing that was left behind", func() bool { return len(s.boxed()) == 2 && s.processes() == 3 })

		for _, pid := range s.boxed() {
			s.mustBeConfined(pid)
		}

		l := s.lightLoad()
		if err := l.Until(t.Context(), func(r load.Report) bool { return r.Requests > 100 }); err != nil {
			t.Fatal(err)
		}
		s.run("ln", "-sfn", "/srv/"+good(2).String(), "/srv/box/current")
		s.signalBox(syscall.SIGUSR2)
		s.await("the next generation", func() bool { return s.answers() == version(2) && s.processes() == 3 })
		mustFailNothing(t, l.Stop())
		s.await("the end of the first one is told", func() bool {
			text, err := os.ReadFile(g.Path("/srv/box/events"))
			return err == nil && strings.Contains(string(text), `"event":"exit"`)
		})

		s.signalBox(syscall.SIGTERM)
		s.await("the end", func() bool { return s.show("ActiveState") != "active" })
		if result := s.show("Result"); result != "success" {
			t.Errorf("it ended: %s", result)
		}
		text, err := os.ReadFile(g.Path("/srv/box/events"))
		if err != nil {
			t.Fatal(err)
		}
		var story []string
		for line := range strings.Lines(string(text)) {
			var e struct{ Event string }
			if json.Unmarshal([]byte(line), &e) == nil && e.Event != "" {
				story = append(story, e.Event)
			}
		}
		if want := []string{"fork", "listen", "drain", "exit", "drain", "exit"}; !slices.Equal(story, want) {
			t.Errorf("the story is %v, want %v\n%s", story, want, text)
		}
	})
}

// boxed are the processes in the pid namespace that the unit has opened, by name: all but unshare. The pids are the host's.
func (s *service) boxed() map[string]int {
	s.t.Helper()
	found := map[string]int{}
	for _, pid := range s.hostPIDs() {
		name, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid))
		if text := strings.TrimSpace(string(name)); err == nil && text != "unshare" {
			found[text] = pid
		}
	}
	return found
}

// signalBox signals zdt run.
func (s *service) signalBox(sig syscall.Signal) {
	s.t.Helper()
	pid, ok := s.boxed()["zdt"]
	if !ok {
		s.t.Fatal("no zdt in the box")
	}
	if err := syscall.Kill(pid, sig); err != nil {
		s.t.Fatal(err)
	}
}
