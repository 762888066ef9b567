package systest

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"net"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/zdt-dev/zdt/internal/guest"
	"github.com/zdt-dev/zdt/internal/load"
	"github.com/zdt-dev/zdt/upgrade"
)

// Upgrades, failed ones, reloads and stops work in the strictest sandbox that zdt init writes, for each kind of user, and
// the new process is in the very same sandbox as the old one.
func TestSandbox(t *testing.T) {
	users := []struct {
		name string
		init []string
		uid  string // the one the service has to have; "": a dynamic one
	}{
		{"dynamic user", []string{"--dynamic-user"}, ""},
		{"account", []string{"--service-user", guest.User}, fmt.Sprint(guest.UserUID)},
		{"root", []string{"--description", "as root"}, "0"},
	}
	guest.Each(t, func(t *testing.T, g *guest.Guest) {
		s := &service{t: t, g: g}
		s.installZdt()
		for i, u := range users {
			t.Run(u.name, func(t *testing.T) {
				name := fmt.Sprintf("hello%d", i)
				s := &service{t: t, g: g, name: name, unit: name + ".service", addr: fmt.Sprintf("127.0.0.1:%d", 8080+i)}
				s.run(append([]string{"zdt", "init", s.name, "--exec", s.put(good(1)), "--listen", s.addr + "=http", "--start"}, u.init...)...)
				first := s.sandbox()
				if got := s.show("ProtectSystem") + s.show("NoNewPrivileges") + first["NoNewPrivs"] + first["Seccomp"] + first["CapBnd"]; got != "strictyes120000000000000000" {
					t.Errorf("this is no sandbox: %s, %v", got, first)
				}
				if uid := first["Uid"]; uid != u.uid && u.uid != "" || u.uid == "" && len(uid) != 5 {
					t.Errorf("the service runs as %s", uid)
				}
				l := s.lightLoad()
				s.mustUpgrade(good(2))
				s.upgrade(bad(3, crash)).mustBe(upgrade.RolledBack, 11)
				s.upgrade(bad(3, crashAfterReady)).mustBe(upgrade.RolledBack, 11)
				s.must(0, "systemctl", "reload", s.unit)
				s.mustUpgrade(good(4))
				mustLoseNothing(t, l.Stop())
				s.mustRun(4)
				if last := s.sandbox(); !maps.Equal(first, last) {
					t.Errorf("the sandbox was %v and is %v", first, last)
				}
				s.must(0, "systemctl", "stop", s.unit, s.name+".socket")
				s.mustNotKill()
			})
		}
	})
}

// sandbox is what the kernel says of the main process: its user, its rights and its namespace.
func (s *service) sandbox() map[string]string {
	s.t.Helper()
	proc := s.g.Path("/proc/" + s.show("MainPID"))
	text, err := os.ReadFile(proc + "/status")
	if err != nil {
		s.t.Fatal(err)
	}
	sandbox := make(map[string]string)
	for line := range strings.Lines(string(text)) {
		key, value, _ := strings.Cut(line, ":")
		if slices.Contains([]string{"Uid", "Gid", "Groups", "NoNewPrivs", "Seccomp", "Seccomp_filters", "CapEff", "CapBnd", "CapAmb", "Umask"}, key) {
			sandbox[key], _, _ = strings.Cut(strings.TrimSpace(value), "\t")
		}
	}
	if sandbox["mnt"], err = os.Readlink(proc + "/ns/mnt"); err != nil {
		s.t.Fatal(err)
	}
	return sandbox
}

// A user upgrades a service of their own manager without root: init, an upgrade under load, bad candidates, a reload and
// a stop, with all files below their home and their runtime directory.
func TestUserManager(t *testing.T) {
	guest.Each(t, func(t *testing.T, g *guest.Guest) {
		s := &service{t: t, g: g, name: "hello", unit: "hello.service", addr: "127.0.0.1:8080"}
		s.installZdt()
		// Users can read what their services log only where the journal is kept.
		if err := g.WriteFile("/etc/systemd/journald.conf.d/persistent.conf", []byte("[Journal]\nStorage=persistent\n"), 0o644); err != nil {
			t.Fatal(err)
		}
		s.run("systemctl", "restart", "systemd-journald.service")
		s.run("journalctl", "--flush")
		s.run("loginctl", "enable-linger", guest.User)
		if err := g.WaitUnit(t.Context(), fmt.Sprintf("user@%d.service", guest.UserUID), "active"); err != nil {
			t.Fatal(err)
		}
		u := userService{s}
		u.must(0, "zdt", "--user", "init", "hello", "--exec", s.put(good(1)), "--listen", s.addr+"=http", "--start")
		u.must(0, "sh", "-c", `zdt --user check hello | tee /dev/stderr | grep -q "nothing stands in the way"`)
		first := u.mainPID()
		l := s.load(load.Config{KeepAlive: 4, Fresh: 1, Think: 5 * time.Millisecond})

		r := u.upgrade(good(2))
		r.mustBe(upgrade.Upgraded, 0)
		if r.Incumbent != first || r.Candidate != u.mainPID() || s.answers() != version(2) {
			t.Errorf("pid %d → %d, the main process is %d, %s answers", r.Incumbent, r.Candidate, u.mainPID(), s.answers())
		}
		for _, fault := range []string{crash, crashAfterReady} {
			r = u.upgrade(bad(3, fault))
			r.mustBe(upgrade.RolledBack, 11)
			if len(r.CandidateLog) == 0 {
				t.Errorf("%s: the candidate's last words are missing", r.exec)
			}
		}
		u.must(0, "systemctl", "--user", "reload", "hello")
		u.upgrade(good(4)).mustBe(upgrade.Upgraded, 0)
		if got := s.answers(); got != version(4) {
			t.Errorf("%s answers, want %s", got, version(4))
		}
		txid := u.detach(good(5), "1s")
		u.must(0, "zdt", "--user", "wait", "hello", txid)
		if got := s.answers(); got != version(5) {
			t.Errorf("%s answers after a detached upgrade, want %s", got, version(5))
		}
		u.must(0, "systemctl", "--user", "is-enabled", "zdt-reconcile.service")
		txid = u.detach(good(6), "1h")
		// --detach returns before the service is touched; who dies then has changed nothing.
		s.await("the bake", func() bool {
			return strings.Contains(u.exec("zdt", "--user", "status", "hello", "-o", "json").Stdout, `"phase": "held"`)
		})
		u.must(0, "systemctl", "--user", "kill", "--signal=KILL", "zdt-hello-"+txid+".service")
		u.must(0, "systemctl", "--user", "start", "zdt-reconcile.service")
		u.must(13, "zdt", "--user", "wait", "hello", txid)
		if _, err := os.Lstat(g.Path("/home/" + guest.User + "/.local/state/zdt/hello/txn.json")); err == nil {
			t.Error("the upgrade is still open")
		}
		mustLoseNothing(t, l.Stop())
		u.must(0, "zdt", "--user", "status", "hello")
		u.must(4, "zdt", "status", "hello") // the system manager knows nothing of it

		finish := u.hangingRequest()
		stop, err := g.Spawn(t.Context(), guest.Command{UID: guest.UserUID, Args: []string{"systemctl", "--user", "stop", "hello.service", "hello.socket"}})
		if err != nil {
			t.Fatal(err)
		}
		s.await("the user manager stops the service", func() bool { return u.show("ActiveState") == "deactivating" })
		finish()
		if r, err := stop.Wait(); err != nil || r.Code != 0 || u.show("Result") != "success" {
			t.Errorf("%v %s: result %s", err, r, u.show("Result"))
		}
		for _, path := range []string{"/etc/systemd/system/hello.service", "/var/lib/zdt/hello", "/run/zdt/hello"} {
			if _, err := os.Lstat(g.Path(path)); err == nil {
				t.Errorf("%s exists", path)
			}
		}
	})
}

// userService is a service of the user manager.
type userService struct{ *service }

func (u userService) exec(args ...string) guest.Result {
	u.t.Helper()
	r, err := u.g.Exec(u.t.Context(), guest.Command{Args: args, UID: guest.UserUID})
	if err != nil {
		u.t.Fatalf("%v\n%s", err, r)
	}
	return r
}

func (u userService) must(code int, args ...string) {
	u.t.Helper()
	if r := u.exec(args...); r.Code != code {
		log, _ := u.g.Run(context.WithoutCancel(u.t.Context()), "journalctl", "-n30", "--no-pager", "-o", "cat", "_UID=1000")
		u.t.Fatalf("want exit status %d: %s\n%s", code, r, log)
	}
}

func (u userService) detach(p program, bake string) (txid string) {
	u.t.Helper()
	r := u.exec("zdt", "--user", "upgrade", "hello", "--binary", u.put(p), "--detach", "--bake", bake)
	if r.Code != 0 {
		u.t.Fatal(r)
	}
	return strings.TrimSpace(r.Stdout)
}

func (u userService) show(property string) string {
	return strings.TrimSpace(u.exec("systemctl", "--user", "show", "--value", "--property="+property, "hello.service").Stdout)
}

func (u userService) mainPID() int {
	var pid int
	fmt.Sscan(u.show("MainPID"), &pid)
	return pid
}

func (u userService) upgrade(p program) result {
	u.t.Helper()
	r := result{t: u.t, exec: u.exec("zdt", "--user", "upgrade", "hello", "--binary", u.put(p), "-o", "json")}
	if err := json.Unmarshal([]byte(r.exec.Stdout), &r.Report); err != nil {
		u.t.Fatalf("stdout is not one JSON document: %v\n%s", err, r.exec)
	}
	if q := r.Rehearsal; r.Outcome == upgrade.Upgraded && (q == nil || q.State != upgrade.RehearsalLeftOut || !strings.Contains(q.Text, "user manager")) {
		u.t.Errorf("rehearsal %+v of a user's service", q)
	}
	return r
}

// hangingRequest is service's, which asks the system's zdt status.
func (u userService) hangingRequest() (finish func()) {
	u.t.Helper()
	conn, err := u.dial(u.t.Context())
	if err != nil {
		u.t.Fatal(err)
	}
	const head = "POST / HTTP/1.1\r\nHost: hello\r\nContent-Length: 2\r\n\r\n"
	if err := exchange(conn, head+"ab", "ab"); err != nil { // accepted, beyond doubt
		u.t.Fatal(err)
	}
	if _, err := fmt.Fprint(conn, head+"c"); err != nil {
		u.t.Fatal(err)
	}
	return func() {
		u.t.Helper()
		defer conn.Close()
		if err := exchange(conn, "d", "cd"); err != nil {
			u.t.Errorf("the hanging request: %v", err)
		}
	}
}

// exchange sends text and reads until an answer ends with want.
func exchange(conn net.Conn, text, want string) error {
	conn.SetDeadline(time.Now().Add(patience))
	if _, err := fmt.Fprint(conn, text); err != nil {
		return err
	}
	var got strings.Builder
	buf := make([]byte, 1024)
	for !strings.HasSuffix(got.String(), "\r\n\r\n"+want) {
		n, err := conn.Read(buf)
		got.Write(buf[:n])
		if err != nil {
			return fmt.Errorf("%w after %q", err, got.String())
		}
	}
	return nil
}
