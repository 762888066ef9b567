package cmd_test

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/zdt-dev/zdt/internal/guest"
)

// buildShop compiles testdata/shop as one of its versions.
func buildShop(t *testing.T, dir, version string) string {
	t.Helper()
	file := filepath.Join(dir, "shop-"+version)
	c := exec.Command("go", "build", "-o", file, "-ldflags", "-X main.version="+version, "./testdata/shop")
	c.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := c.CombinedOutput(); err != nil {
		t.Fatalf("%v: %v\n%s", c.Args, err, out)
	}
	return file
}

// prove has zdt prove hand over three times. What the program loses when it ends is its own affair.
func prove(t *testing.T, g *guest.Guest) {
	t.Helper()
	r, err := g.Run(t.Context(), "zdt", "prove", "shop", "--handoffs", "3", "--clients", "8", "-o", "json")
	if err != nil || r.Code != 0 && r.Code != 1 {
		t.Fatalf("%v\n%s", err, r)
	}
	var doc struct {
		Outcome  string
		Refused  int
		Handoffs []struct {
			Outcome  string
			Finished bool
		}
	}
	if err := json.Unmarshal([]byte(r.Stdout), &doc); err != nil {
		t.Fatal(err)
	}
	if doc.Refused > 0 || len(doc.Handoffs) != 3 || doc.Outcome != "proved" && doc.Outcome != "noticed" {
		t.Errorf("%+v", doc)
	}
	for _, h := range doc.Handoffs {
		if h.Outcome != "committed" || !h.Finished {
			t.Errorf("%+v", doc)
		}
	}
}

// TestHelperOnSystemd walks a program that knows nothing of zdt through the same commands on a real systemd, in the
// sandbox of the generated unit.
func TestHelperOnSystemd(t *testing.T) {
	guest.Require(t)
	dir := t.TempDir()
	zdt := build(t, dir, "github.com/zdt-dev/zdt")
	versions := []string{"1", "2", "broken"}
	for _, v := range versions {
		buildShop(t, dir, v)
	}
	guest.Each(t, func(t *testing.T, g *guest.Guest) {
		if err := g.Copy(zdt, "/usr/local/bin/zdt", 0o755); err != nil {
			t.Fatal(err)
		}
		for _, v := range versions {
			if err := g.Copy(filepath.Join(dir, "shop-"+v), "/srv/shop-"+v, 0o755); err != nil {
				t.Fatal(err)
			}
		}
		run := func(want int, args ...string) guest.Result {
			t.Helper()
			r, err := g.Run(t.Context(), args...)
			if err != nil {
				t.Fatal(err)
			}
			if r.Code != want {
				t.Fatalf("exit %d, want %d\n%s\n%s", r.Code, want, r, g.Journal(t.Context(), "_SYSTEMD_UNIT=shop.service"))
			}
			if len(r.Stdout) < 2000 {
				t.Log(r)
			}
			return r
		}
		serves := func(want string) {
			t.Helper()
			c, err := g.Dial(t.Context(), "tcp", "127.0.0.1:8080")
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			c.SetDeadline(time.Now().Add(10 * time.Second))
			fmt.Fprintf(c, "GET / HTTP/1.0\r\n\r\n")
			buf := make([]byte, 4096)
			n := 0
			for {
				m, err := c.Read(buf[n:])
				if n += m; err != nil {
					break
				}
			}
			if _, body, _ := strings.Cut(string(buf[:n]), "\r\n\r\n"); body != want {
				t.Errorf("answers %q, want %q", body, want)
			}
		}
		// Not --dynamic-user: without nss-systemd, which these guests lack, the bus turns such users away, and ExecReload=
		// cannot ask for the unit's arguments.
		run(0, "zdt", "init", "shop", "--runtime", "helper", "--exec", "/srv/shop-1", "--listen", ":8080=http", "--service-user", guest.User,
			"--pass", "none", "--stop-signal", "QUIT", "--env", "GREETING=one", "--drain-timeout", "5s", "--start", "--", "--fd", "{fd:http}")
		serves("version 1, greeting one, note ")
		main := strings.TrimSpace(run(0, "systemctl", "show", "-P", "MainPID", "shop.service").Stdout)
		if r := run(0, "zdt", "status", "shop"); !strings.Contains(r.Stdout, "zdt run, the main process") {
			t.Error("status does not tell of the helper")
		}

		run(0, "zdt", "upgrade", "shop", "--binary", "/srv/shop-2", "--bake", "200ms")
		serves("version 2, greeting one, note ")

		// What the unit says now is what the next generation gets: after a reload by systemd, by zdt, and in an upgrade.
		const unit = "/etc/systemd/system/shop.service.d/50-test.conf"
		say := func(greeting string) {
			t.Helper()
			text := "[Service]\nEnvironment=GREETING=" + greeting + "\nExecStart=\n" +
				"ExecStart=/usr/local/bin/zdt run --pass=none --stop-signal=QUIT -- /var/lib/zdt/shop/current/shop --fd {fd:http} --note ${GREETING}$$\n"
			if err := g.WriteFile(unit, []byte(text), 0o644); err != nil {
				t.Fatal(err)
			}
			run(0, "systemctl", "daemon-reload")
		}
		say("two")
		run(0, "systemctl", "reload", "shop.service")
		serves("version 2, greeting two, note two$")
		say("three")
		run(0, "zdt", "handoff", "shop")
		serves("version 2, greeting three, note three$")
		say("four")
		run(0, "zdt", "upgrade", "shop", "--binary", "/srv/shop-1")
		serves("version 1, greeting four, note four$")

		// What goes wrong is undone, and said.
		run(11, "zdt", "upgrade", "shop", "--binary", "/srv/shop-broken")
		serves("version 1, greeting four, note four$")
		prove(t, g)
		if now := strings.TrimSpace(run(0, "systemctl", "show", "-P", "MainPID", "shop.service").Stdout); now != main {
			t.Errorf("main process %s, was %s", now, main)
		}

		// The program ends alone: systemd starts the service anew, from the current release.
		var doc struct {
			Services []struct {
				Runtime struct {
					App        int
					Generation int
				}
				Running struct{ ID string }
				Current struct{ ID string }
				Problem string `json:"runtime_problem"`
			}
		}
		look := func() {
			t.Helper()
			if err := json.Unmarshal([]byte(run(0, "zdt", "status", "shop", "-o", "json").Stdout), &doc); err != nil {
				t.Fatal(err)
			}
			if s := doc.Services[0]; s.Problem != "" || s.Running.ID != s.Current.ID || s.Current.ID == "" {
				t.Errorf("%+v", s)
			}
		}
		look()
		run(0, "kill", "-KILL", fmt.Sprint(doc.Services[0].Runtime.App))
		for range 500 {
			if strings.TrimSpace(g.MustRun(t, "systemctl", "show", "-P", "NRestarts,SubState", "shop.service")) == "1\nrunning" {
				break
			}
			time.Sleep(20 * time.Millisecond)
		}
		serves("version 1, greeting four, note four$")
		look()
		run(0, "zdt", "upgrade", "shop", "--binary", "/srv/shop-2")
		run(0, "systemctl", "stop", "shop.socket", "shop.service")
		if r := run(0, "systemctl", "show", "-P", "Result", "shop.service"); strings.TrimSpace(r.Stdout) != "success" {
			t.Errorf("stopped with result %s", r.Stdout)
		}
	})
}
