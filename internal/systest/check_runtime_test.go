package systest

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/zdt-dev/zdt/handoffcheck"
	"github.com/zdt-dev/zdt/internal/guest"
	"github.com/zdt-dev/zdt/upgrade"
)

// finds ends the test unless zdt check finds these IDs alone.
func (s *service) finds(code int, want ...string) []handoffcheck.Finding {
	s.t.Helper()
	found := s.check(code)
	var ids []string
	for _, f := range found {
		ids = append(ids, f.ID)
	}
	if strings.Join(ids, " ") != strings.Join(want, " ") {
		s.t.Fatalf("want %v, found: %+v", want, found)
	}
	return found
}

// dropIn puts lines into a drop-in of the service, or removes it where there are none, and restarts it.
func (s *service) dropIn(name, text string) {
	s.t.Helper()
	path := "/etc/systemd/system/" + s.unit + ".d/" + name + ".conf"
	if text == "" {
		s.run("rm", path)
	} else {
		s.writeUnit(path, text)
	}
	s.run("systemctl", "daemon-reload")
	s.run("systemctl", "restart", s.unit)
}

// A service in which nobody takes the request for a handoff is found, and an upgrade of it is refused: because its program has no
// runtime, because that is not in the main process, or because the unit has no directory for the runtime's socket. A directory of the program's own is no obstacle. Nor is
// one upgraded that systemd starts from elsewhere.
func TestCheckRuntime(t *testing.T) {
	t.Parallel()
	g := guest.Boot(t, guest.Trixie)
	s := newService(t, g, options{})

	s.dropIn("a-defect", "[Service]\nRuntimeDirectory=\nRuntimeDirectory=hello\n")
	found := s.finds(10, "ZDT033")
	if found[0].DropIn == "" {
		t.Errorf("no drop-in: %+v", found)
	}
	r := s.upgrade(good(2), "--accept-risk", "ZDT033")
	r.mustBe(upgrade.Refused, 10)
	t.Log(found[0].Seen, "\n", r.Cause)
	s.dropIn("b-mended", found[0].DropIn)
	s.finds(0)
	s.mustUpgrade(good(2))
	s.run("systemctl", "reload", s.unit)
	s.settled()
	s.run("rm", "/etc/systemd/system/hello.service.d/b-mended.conf")

	// The unit starts a file that no upgrade replaces.
	s.dropIn("a-defect", "[Service]\nExecStart=\nExecStart="+s.put(good(1))+"\n")
	t.Log(s.finds(10, "ZDT037"))
	s.upgrade(good(3), "--accept-risk", "ZDT037").mustBe(upgrade.Refused, 10)
	s.writeUnit("/etc/systemd/system/hello.service.d/a-defect.conf", "[Service]\nExecStart=\nExecStart=/var/lib/zdt/hello/current/hello\n")
	s.run("systemctl", "daemon-reload")
	s.finds(0)
	s.upgrade(good(3)).mustBe(upgrade.Upgraded, 0)
	s.dropIn("a-defect", "")

	// A script that starts the program, and waits for it. Only with NotifyAccess=all it comes up at all.
	wrap := func(last string) string {
		return s.write("/srv/wrap/run", "#!/bin/sh\n"+last+"\n")
	}
	program := s.put(good(1)) + " -listen 127.0.0.1:8083"
	s.name, s.unit = "wrapped", "wrapped.service"
	s.run("zdt", "init", s.name, "--exec", wrap(program+"; exit $?"), "--service-user", guest.User)
	s.dropIn("a-loose", "[Service]\nNotifyAccess=all\n")
	t.Log(s.finds(10, "ZDT033", "ZDT080")[0])
	s.upgradeFile(wrap("exec "+program), "--accept-risk", "ZDT033").mustBe(upgrade.Refused, 10)
	s.run("systemctl", "stop", s.unit)
	s.upgradeFile("/srv/wrap/run").mustBe(upgrade.Upgraded, 0)
	s.finds(0, "ZDT020", "ZDT080")
	s.upgradeFile(wrap("exec "+program+" # once more")).mustBe(upgrade.Upgraded, 0)

	// A foreign program that tells systemd it is ready, which is all that systemd wants to know.
	script := s.write("/srv/foreign", "#!/bin/sh\nsystemd-notify --ready\nexec sleep 1000\n")
	s.name, s.unit = "other", "other.service"
	init := []string{"zdt", "init", s.name, "--exec", script, "--listen", "127.0.0.1:8081=http", "--service-user", guest.User}
	s.run(init...)
	s.dropIn("a-loose", "[Service]\nNotifyAccess=all\n")
	found = s.finds(10, "ZDT033", "ZDT080")
	t.Log(found[0].Seen, found[0].Fix)
	r = s.upgradeFile(script, "--accept-risk", "ZDT033")
	r.mustBe(upgrade.Refused, 10)
	t.Log(r.Cause, r.Hint)
	s.run("rm", "/etc/systemd/system/other.service.d/a-loose.conf")
	s.run(append(init, "--runtime", "helper", "--ready", "alive:100ms")...)
	s.run("systemctl", "restart", s.unit)
	s.finds(0)
	s.write(script, "#!/bin/sh\nsystemd-notify --ready\nexec sleep 2000\n")
	s.upgradeFile(script).mustBe(upgrade.Upgraded, 0)
}

// Of a service that zdt has never had a hand in, nothing is found that zdt adopt writes: only that it is not zdt's, and what stays.
func TestCheckUnmanaged(t *testing.T) {
	t.Parallel()
	g := guest.Boot(t, guest.Trixie)
	s := &service{t: t, g: g, name: "hello", unit: "hello.service", addr: "127.0.0.1:8080"}
	s.installZdt()
	s.writeUnit("/etc/systemd/system/hello.service", "[Service]\nExecStart="+s.put(good(1))+" -listen "+s.addr+"\n")
	s.run("systemctl", "daemon-reload")
	s.finds(0, "ZDT034")
	s.run("systemctl", "start", s.unit)
	s.finds(0, "ZDT034")
	if r := s.upgrade(good(2)); r.exec.Code != 10 || r.Changed {
		t.Errorf("an upgrade of it is not refused: %s", r.exec)
	}
	s.dropIn("filter", "[Service]\nSystemCallFilter=~pidfd_send_signal socketpair\n")
	found := s.finds(10, "ZDT021", "ZDT034")
	t.Log(found[0].Seen, found[1].Seen, found[1].Fix)
}

// A socket unit whose address was edited has no socket any more from the next daemon-reload on, and says nothing of it: zdt check
// does. Upgrades work still; after a crash nobody listens where clients come. Nor does the first address bring the socket back.
func TestCheckLostSocket(t *testing.T) {
	t.Parallel()
	g := guest.Boot(t, guest.Trixie)
	s := newService(t, g, options{init: []string{"--service-user", guest.User}, args: []string{"-listen", "127.0.0.1:8089"}})
	s.finds(0)
	const edit = "/etc/systemd/system/hello.socket.d/edit.conf"
	s.writeUnit(edit, "[Socket]\nListenStream=\nListenStream=127.0.0.1:8082\n")
	s.run("systemctl", "daemon-reload")
	t.Log(s.finds(0, "ZDT036")[0].Seen)
	s.run("rm", edit)
	s.run("systemctl", "daemon-reload")
	t.Log(s.finds(0, "ZDT036")[0].Seen)
	if state := strings.TrimSpace(s.run("systemctl", "show", "--value", "--property=SubState", "hello.socket")); state != "running" {
		t.Errorf("the socket unit is %s: this was about one that says nothing", state)
	}
	s.mustUpgrade(good(2))
	s.finds(0, "ZDT036")
	pid := s.mainPID()
	s.kill(pid)
	s.await("systemd has started the program again", func() bool {
		st := s.status()
		return st.State == "serving" && st.Unit.MainPID != pid && st.Runtime != nil
	})
	if v, err := s.ask("/"); err == nil {
		t.Errorf("after the crash %s answers: nothing was lost", v)
	}
	s.finds(0, "ZDT036")
	s.run("systemctl", "restart", "hello.socket", s.unit)
	s.finds(0)
	s.mustUpgrade(good(3))
	pid = s.mainPID()
	s.kill(pid)
	s.await("it is started again", func() bool { return s.mainPID() != pid && s.status().State == "serving" })
	if v := s.answers(); v != version(3) {
		t.Errorf("after a crash %s answers", v)
	}
}

// Another unit that gets the socket makes it blocking. The old program cannot let go of it then, and an upgrade waits for it in vain.
// When that unit no longer does so, all is well after the next client.
func TestCheckBlockingSocket(t *testing.T) {
	t.Parallel()
	g := guest.Boot(t, guest.Trixie)
	s := newService(t, g, options{init: []string{"--service-user", guest.User, "--drain-timeout", "1s"}})
	const other = "/etc/systemd/system/other.service"
	share := func(lines string) {
		s.writeUnit(other, "[Service]\nType=oneshot\nSockets=hello.socket\nExecStart=/bin/true\n"+lines)
		s.run("systemctl", "daemon-reload")
		s.run("systemctl", "start", "other.service")
	}
	share("")
	found := s.finds(0, "ZDT039")
	t.Log(found[0].Seen, found[0].Fix)
	s.answers() // now it waits in accept
	begin := time.Now()
	s.upgrade(good(2)).mustBe(upgrade.Upgraded, 0)
	took := time.Since(begin)
	alone := func() { // the old program waits for a client still
		s.await("one generation", func() bool {
			s.ask("/")
			r := s.status().Runtime
			return r != nil && r.Predecessor == nil && s.processes() == 1
		})
	}
	alone()
	share("")
	s.finds(0, "ZDT039")
	s.answers()
	share("NonBlocking=yes\n")
	s.finds(0)
	s.answers()
	begin = time.Now()
	s.mustUpgrade(good(3))
	if d := time.Since(begin); took < time.Second || d > took {
		t.Errorf("with a blocking socket an upgrade took %s, without one %s", took, d)
	}
}

// While an old generation drains the next upgrade waits for it, and a reload is refused.
func TestCheckDraining(t *testing.T) {
	t.Parallel()
	g := guest.Boot(t, guest.Trixie)
	s := newService(t, g, options{})
	finish := s.hangingRequest()
	s.run("systemctl", "reload", s.unit)
	t.Log(s.finds(0, "ZDT035")[0])
	if r, err := g.Run(t.Context(), "systemctl", "reload", s.unit); err != nil || r.Code == 0 {
		t.Errorf("a reload is not refused: %v %s", err, r)
	}
	s.finds(0, "ZDT035")
	up := s.startUpgrade(s.put(good(2)))
	s.await("zdt has the lock", func() bool { return strings.Contains(s.status().text, `"busy"`) })
	select {
	case <-up.Done():
		t.Error("the upgrade did not wait")
	default:
	}
	finish(version(1))
	up.wait().mustBe(upgrade.Upgraded, 0)
	s.settled()
	s.finds(0)
}

// What the kernel has made of Backlog= decides how many clients a restart keeps waiting; more of them try in vain. A release that
// somebody has deleted is nothing that could be gone back to: upgrades are refused, and a restart fails.
func TestCheckQueueAndRelease(t *testing.T) {
	t.Parallel()
	g := guest.Boot(t, guest.Trixie)
	s := newService(t, g, options{init: []string{"--service-user", guest.User}})
	waiting := func() (n int) { // while nobody accepts
		s.run("systemctl", "stop", s.unit)
		s.writeUnit("/etc/systemd/system/hello.service.d/pause.conf", "[Service]\nExecStartPre=/bin/sh -c 'until test -e /srv/go-on; do sleep 0.05; done'\n")
		s.run("systemctl", "daemon-reload")
		s.run("rm", "-f", "/srv/go-on")
		s.run("systemctl", "start", "--no-block", s.unit)
		for range 12 {
			ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
			if conn, err := s.dial(ctx); err == nil {
				n++
				defer conn.Close()
			}
			cancel()
		}
		s.write("/srv/go-on", "")
		s.run("rm", "/etc/systemd/system/hello.service.d/pause.conf")
		s.run("systemctl", "daemon-reload")
		s.await("it serves again", func() bool { return s.show("ActiveState") == "active" })
		return n
	}
	set := func(n string) {
		s.run("sh", "-c", "echo "+n+" >/proc/sys/net/core/somaxconn")
		s.run("systemctl", "restart", "hello.socket", s.unit)
	}
	set("5")
	found := s.finds(0, "ZDT038")
	t.Log(found[0].Seen, found[0].Fix)
	if n := waiting(); n < 5 || n > 7 {
		t.Errorf("%d clients could wait", n)
	}
	s.run("sh", "-c", "echo 4096 >/proc/sys/net/core/somaxconn")
	t.Log(s.finds(0, "ZDT038")[0].Fix) // the socket is as it was
	set("4096")
	s.finds(0)
	if n := waiting(); n != 12 {
		t.Errorf("%d clients could wait", n)
	}
	s.mustUpgrade(good(2))

	s.run("mkdir", "/srv/saved")
	s.run("cp", fmt.Sprintf("/proc/%d/exe", s.mainPID()), "/srv/saved/hello")
	s.run("sh", "-c", "rm -r /var/lib/zdt/hello/releases/*")
	found = s.finds(10, "ZDT040")
	t.Log(found[0].Seen, found[0].Fix)
	s.upgrade(good(3), "--accept-risk", "ZDT040").mustBe(upgrade.Refused, 10)
	if r, err := g.Run(t.Context(), "systemctl", "restart", s.unit); err != nil || r.Code == 0 {
		t.Errorf("a restart does not fail: %v %s", err, r)
	}
	s.run("rm", "/var/lib/zdt/hello/current")
	s.run("zdt", "init", s.name, "--exec", "/srv/saved/hello", "--listen", s.addr+"=http", "--service-user", guest.User)
	s.run("systemctl", "reset-failed", s.unit, "hello.socket")
	s.run("systemctl", "restart", "hello.socket", s.unit)
	s.await("it serves again", func() bool { return s.show("ActiveState") == "active" })
	s.finds(0)
	s.mustUpgrade(good(3))
}
