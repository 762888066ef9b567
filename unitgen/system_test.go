package unitgen

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/zdt-dev/zdt/internal/guest"
)

// maxExposure is the worst score of systemd-analyze security, in tenths. "OK" ends at 49;
// what the units reach is far below, and shall stay there.
const maxExposure = 22

// buildProbe builds testdata/probe as the static binary that every guest can run.
func buildProbe(t *testing.T) string {
	t.Helper()
	bin := filepath.Join(t.TempDir(), "probe")
	cmd := exec.Command("go", "build", "-o", bin, "./testdata/probe")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("build probe: %v\n%s", err, out)
	}
	return bin
}

// install puts the units of s and, as program and as zdt, the probe into the guest.
func install(t *testing.T, g *guest.Guest, probe string, s Spec) []File {
	t.Helper()
	files, err := Generate(s)
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		if err := g.WriteFile(f.Path, f.Data, f.Mode); err != nil {
			t.Fatal(err)
		}
	}
	programs := []string{s.Zdt, s.withDefaults().execPath()}
	if s.Template() { // what systemd-analyze verify calls an instance, until version 254 and since
		programs = []string{s.Zdt, fill(programs[1], "i"), fill(programs[1], "test_instance")}
	}
	for _, p := range programs {
		if err := g.Copy(probe, p, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	return files
}

// verify lets the guest's own systemd-analyze judge the files: not one word of complaint.
func verify(t *testing.T, g *guest.Guest, files []File, manager string) {
	t.Helper()
	args := []string{"systemd-analyze", manager, "verify"}
	for _, f := range files {
		args = append(args, f.Path)
	}
	// A user manager's verify wants such a directory; nobody is logged in here.
	r, err := g.Exec(t.Context(), guest.Command{Args: args, Env: []string{"XDG_RUNTIME_DIR=/run"}})
	if err != nil || r.Code != 0 || r.Stdout+r.Stderr != "" {
		t.Errorf("%v\n%s", err, r)
	}
}

// exposure is what the guest's systemd-analyze thinks of the service, in tenths.
func exposure(t *testing.T, g *guest.Guest, unit File) int {
	t.Helper()
	out := g.MustRun(t, "systemd-analyze", "security", "--offline=true", "--no-pager", unit.Path)
	_, score, ok := strings.Cut(out, "Overall exposure level for ") // a template as an instance that systemd makes up
	if ok {
		_, score, ok = strings.Cut(score, ": ")
	}
	if !ok {
		t.Fatalf("no score in\n%s", out)
	}
	t.Logf("%s: %s", unit.Name, score)
	f, err := strconv.ParseFloat(strings.Fields(score)[0], 64)
	if err != nil {
		t.Fatalf("score %q: %v", score, err)
	}
	return int(f*10 + 0.5)
}

// Every golden, generated for this systemd and for an unknown one, passes
// systemd-analyze verify without a word and is sandboxed well.
func TestSystemVerify(t *testing.T) {
	guest.Require(t)
	probe := buildProbe(t)
	guest.Each(t, func(t *testing.T, g *guest.Guest) {
		for _, gold := range goldens(t) {
			for _, version := range []int{0, g.Image().Systemd()} {
				s := gold.spec
				s.SystemdVersion = version
				manager := "--system"
				if s.UserManager {
					manager = "--user"
				}
				files := install(t, g, probe, s)
				verify(t, g, files, manager)
				if s.UserManager {
					continue // the score counts what only a system manager can take away
				}
				if got := exposure(t, g, files[0]); got > maxExposure {
					t.Errorf("%s for systemd %d: exposure %d tenths, want %d at most", gold.name, version, got, maxExposure)
				}
			}
		}
	})
}

// What the host's systemd-analyze says, for those who work without root. The units are
// rewritten to a program that exists.
func TestHostVerify(t *testing.T) {
	analyze, err := exec.LookPath("systemd-analyze")
	if err != nil {
		if os.Getenv("ZDT_SYSTEST") == "require" {
			t.Fatal("systemd-analyze is not installed")
		}
		t.Skip("systemd-analyze is not installed")
	}
	for _, gold := range goldens(t) {
		s := gold.spec
		if s.SystemdVersion = 0; s.UserManager {
			continue // its runtime directory need not exist here
		}
		files, err := Generate(s)
		if err != nil {
			t.Fatal(err)
		}
		dir := t.TempDir()
		args := []string{"verify"}
		for _, f := range files {
			text := strings.NewReplacer(s.withDefaults().execPath(), "/bin/true", s.Zdt, "/bin/true").Replace(string(f.Data))
			p := filepath.Join(dir, f.Name)
			if err := os.WriteFile(p, []byte(text), 0o644); err != nil {
				t.Fatal(err)
			}
			args = append(args, p)
		}
		if out, err := exec.Command(analyze, args...).CombinedOutput(); err != nil || len(out) > 0 {
			t.Errorf("%s: %v\n%s", gold.name, err, out)
		}
		if out, err := exec.Command(analyze, "security", "--offline=true", "--no-pager", fmt.Sprintf("--threshold=%d", maxExposure), args[1]).CombinedOutput(); err != nil {
			t.Errorf("%s: %v\n%s", gold.name, err, out)
		}
	}
}

// probeReport is testdata/probe's report.
type probeReport struct {
	Args    []string
	Env     []string
	Handoff string
}

func readReport(t *testing.T, g *guest.Guest, p string) probeReport {
	t.Helper()
	data, err := g.ReadFile(p)
	if err != nil {
		t.Fatal(err)
	}
	var r probeReport
	if err := json.Unmarshal(data, &r); err != nil {
		t.Fatal(err)
	}
	return r
}

// probeSpec is a service that runs the probe on a port.
func probeSpec(g *guest.Guest, name string) Spec {
	return Spec{
		Name: name, Exec: name, Zdt: "/usr/local/bin/zdt", DynamicUser: true, SystemdVersion: g.Image().Systemd(),
		Listen: []Listen{{Proto: "tcp", Addr: ":8080"}}, ReadyTimeout: 10 * time.Second, DrainTimeout: 5 * time.Second,
	}
}

// A generated service starts, gets exactly the arguments and variables of the
// Spec whatever characters they have, finds its sockets by name, can do in its
// sandbox what a handoff needs, and knows root when root connects.
func TestSystemService(t *testing.T) {
	guest.Require(t)
	probe := buildProbe(t)
	guest.Each(t, func(t *testing.T, g *guest.Guest) {
		g.MustRun(t, "useradd", "--system", "shop")
		for name, identity := range map[string]func(*Spec){
			"dynamic": func(s *Spec) { s.DynamicUser = true },
			"user":    func(s *Spec) { s.User = "shop" },
			"root":    func(s *Spec) {},
		} {
			s := probeSpec(g, name)
			s.DynamicUser = false
			identity(&s)
			for i, w := range awkward {
				s.Args, s.Environment = append(s.Args, w), append(s.Environment, fmt.Sprintf("V%d=%s", i, w))
			}
			s.Args = slices.DeleteFunc(s.Args, func(a string) bool { return validateText("", a, maxText) != nil })
			s.Environment = slices.DeleteFunc(s.Environment, func(kv string) bool { return validateText("", kv, maxText) != nil })
			s.StartProbe = []string{"/bin/sh", "-c", `test "$V0$#" = 2 && test "$1" = '$A%n'`, "x", "$A%n", "y"}
			for _, text := range []string{"udp::5353=dns", "/run/" + name + ".sock=local"} {
				l, err := ParseListen(text)
				if err != nil {
					t.Fatal(err)
				}
				s.Listen = append(s.Listen, l)
			}
			verify(t, g, install(t, g, probe, s), "--system")
			g.MustRun(t, "systemctl", "daemon-reload")
			g.MustRun(t, "systemctl", "start", s.ServiceUnit())

			r := readReport(t, g, "/run/zdt/"+name+"/report.json")
			if want := append([]string{s.withDefaults().execPath()}, s.Args...); !slices.Equal(r.Args, want) {
				t.Errorf("%s: arguments\n%q, want\n%q", name, r.Args, want)
			}
			for _, want := range append(s.Environment, "ZDT_SERVICE="+name, "ZDT_READY_TIMEOUT=10s", "ZDT_DRAIN_TIMEOUT=5s",
				"LISTEN_FDS=3", "RUNTIME_DIRECTORY=/run/zdt/"+name) {
				if !slices.Contains(r.Env, want) {
					t.Errorf("%s: no variable %q in\n%q", name, want, r.Env)
				}
			}
			for _, kv := range r.Env {
				if names, ok := strings.CutPrefix(kv, "LISTEN_FDNAMES="); ok {
					got := strings.Split(names, ":")
					slices.Sort(got)
					if want := slices.Sorted(slices.Values([]string{name + ".socket", "dns", "local"})); !slices.Equal(got, want) {
						t.Errorf("%s: sockets %q, want %q", name, got, want)
					}
				}
			}
			if r.Handoff != "ok" {
				t.Errorf("%s: handoff in the sandbox: %s", name, r.Handoff)
			}
			if out := g.MustRun(t, "socat", "-u", "UNIX-CONNECT:/run/zdt/"+name+"/control.sock,type=5", "-"); !strings.HasPrefix(out, "uid 0,") {
				t.Errorf("%s: the program thinks that root is %q", name, out)
			}
			g.MustRun(t, "systemctl", "reload", s.ServiceUnit())
			if out, err := ask(t.Context(), g, "unix", "/run/"+name+".sock"); err != nil || !strings.HasPrefix(out, "served by") {
				t.Errorf("%s: %q, %v", name, out, err)
			}
			// A changed socket unit is applied by a restart of it, which takes the service along and back.
			g.MustRun(t, "systemctl", "restart", s.SocketUnits()[0])
			if out, err := ask(t.Context(), g, "tcp", "127.0.0.1:8080"); err != nil || !strings.HasPrefix(out, "served by") {
				t.Errorf("%s: after a restart of the socket: %q, %v", name, out, err)
			}
			g.MustRun(t, append([]string{"systemctl", "stop"}, s.SocketUnits()...)...)
			if err := g.WaitUnit(t.Context(), s.ServiceUnit(), "inactive"); err != nil {
				t.Error(err)
			}
		}
	})
}

// ask connects and reads until the end.
func ask(ctx context.Context, g *guest.Guest, network, addr string) (string, error) {
	c, err := g.Dial(ctx, network, addr)
	if err != nil {
		return "", err
	}
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(20 * time.Second)); err != nil {
		return "", err
	}
	b, err := io.ReadAll(c)
	return string(b), err
}

// A service that cannot start keeps its port open, does not keep the machine
// busy, and serves the clients that have waited as soon as it can start again.
func TestSystemCrashLoop(t *testing.T) {
	guest.Require(t)
	probe := buildProbe(t)
	guest.Each(t, func(t *testing.T, g *guest.Guest) {
		for i, c := range []struct {
			name   string
			status string
			most   int // starts in the time the test looks
			dropIn string
		}{
			{"error", "1", 12, ""},
			{"exit", "0", 12, ""},
			{"config", "78", 1, ""},
			// Whatever an operator does to the pace, the port stays open.
			{"unpaced", "1", 1 << 20, "[Service]\nRestart=no\nExecStopPost=\n"},
		} {
			t.Run(c.name, func(t *testing.T) {
				t.Parallel()
				s := probeSpec(g, c.name)
				s.Listen[0].Addr = fmt.Sprintf(":%d", 8080+i)
				if c.dropIn != "" {
					if err := g.WriteFile("/etc/systemd/system/"+s.ServiceUnit()+".d/50-pace.conf", []byte(c.dropIn), 0o644); err != nil {
						t.Fatal(err)
					}
				}
				crashLoop(t, g, probe, s, c.status, c.most)
			})
		}
	})
}

func crashLoop(t *testing.T, g *guest.Guest, probe string, s Spec, status string, most int) {
	const look = 3 * time.Second
	install(t, g, probe, s)
	mode := path.Join(s.withDefaults().StateDir, "current", "mode")
	if err := g.WriteFile(mode, []byte(status), 0o644); err != nil {
		t.Fatal(err)
	}
	g.MustRun(t, "systemctl", "daemon-reload")
	g.MustRun(t, "systemctl", "start", s.SocketUnits()[0])

	// A client that waits all the time is what makes systemd start it again and again.
	type answer struct {
		text string
		err  error
	}
	served := make(chan answer, 1)
	go func() {
		text, err := ask(t.Context(), g, "tcp", "127.0.0.1"+s.Listen[0].Addr)
		served <- answer{text, err}
	}()
	select {
	case a := <-served:
		t.Fatalf("the client got %q, %v from a service that cannot start", a.text, a.err)
	case <-time.After(look): // a rate is what is measured
	}
	log := g.MustRun(t, "journalctl", "-q", "--no-pager", "-o", "cat", "-u", s.ServiceUnit())
	n := strings.Count(log, "probe starts")
	t.Logf("%d starts in %s", n, look)
	if n < 1 || n > most {
		t.Errorf("%d starts in %s, want 1 to %d", n, look, most)
	}
	if state := g.MustRun(t, "systemctl", "is-active", s.SocketUnits()[0]); state != "active" {
		t.Errorf("the socket is %s", state)
	}
	g.MustRun(t, "rm", mode)
	if a := <-served; a.err != nil || !strings.HasPrefix(a.text, "served by") {
		t.Errorf("the client that waited got %q, %v", a.text, a.err)
	}
}

// The same in a user manager, without what only a system manager can do.
func TestSystemUserManager(t *testing.T) {
	guest.Require(t)
	probe := buildProbe(t)
	guest.Each(t, func(t *testing.T, g *guest.Guest) {
		g.MustRun(t, "loginctl", "enable-linger", guest.User)
		if err := g.WaitUnit(t.Context(), fmt.Sprintf("user@%d.service", guest.UserUID), "active"); err != nil {
			t.Fatal(err)
		}
		home := "/home/" + guest.User
		s := probeSpec(g, "notes")
		s.DynamicUser, s.UserManager = false, true
		s.Zdt, s.StateDir, s.UnitDir = home+"/bin/zdt", home+"/.local/state/zdt/notes", home+"/.config/systemd/user"
		install(t, g, probe, s)
		g.MustRun(t, "chown", "-R", guest.User, home)
		systemctl := func(args ...string) {
			t.Helper()
			r, err := g.Exec(t.Context(), guest.Command{UID: guest.UserUID, Args: append([]string{"systemctl", "--user"}, args...)})
			if err != nil || r.Code != 0 {
				status, _ := g.Exec(t.Context(), guest.Command{UID: guest.UserUID, Args: []string{"journalctl", "--no-pager", "--user", "-n50"}})
				t.Fatalf("%v\n%s\n%s", err, r, status)
			}
		}
		systemctl("daemon-reload")
		systemctl("enable", "--now", s.ServiceUnit())
		dir := fmt.Sprintf("/run/user/%d/zdt/notes", guest.UserUID)
		if r := readReport(t, g, dir+"/report.json"); r.Handoff != "ok" || !slices.Contains(r.Env, "RUNTIME_DIRECTORY="+dir) || !slices.Contains(r.Env, "LISTEN_FDNAMES=notes.socket") {
			t.Errorf("%+v", r)
		}
		systemctl("reload", s.ServiceUnit())
		if out, err := ask(t.Context(), g, "tcp", "127.0.0.1:8080"); err != nil || !strings.HasPrefix(out, "served by") {
			t.Errorf("%q, %v", out, err)
		}
		systemctl("stop", s.SocketUnits()[0])
		if err := g.WaitUnit(t.Context(), s.ServiceUnit(), "inactive"); err != nil {
			t.Error(err)
		}
	})
}
