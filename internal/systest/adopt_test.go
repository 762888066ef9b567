package systest

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/zdt-dev/zdt/internal/docstest"
	"github.com/zdt-dev/zdt/internal/guest"
	"github.com/zdt-dev/zdt/internal/load"
)

// adopted is what the scenarios need of zdt adopt -o json.
type adopted struct {
	Outcome  string   `json:"outcome"`
	Runtime  string   `json:"runtime"`
	Program  string   `json:"program"`
	Switched bool     `json:"switched"`
	Gap      string   `json:"gap"`
	Steps    []string `json:"steps"`
	Error    string   `json:"error"`
}

// adopt runs zdt adopt, which must end with the code.
func (s *service) adopt(code int, flags ...string) adopted {
	s.t.Helper()
	r, err := s.g.Run(s.t.Context(), append([]string{"zdt", "adopt", s.name, "-o", "json"}, flags...)...)
	if err != nil {
		s.t.Fatal(err)
	}
	var doc adopted
	if err := json.Unmarshal([]byte(r.Stdout), &doc); err != nil || r.Code != code {
		s.t.Fatalf("want exit code %d and a document: %v\n%s", code, err, r)
	}
	return doc
}

// units are all unit files of the guest that adopt could touch, with their contents and modes.
func (s *service) unitFiles() string {
	s.t.Helper()
	return s.run("sh", "-c", "find /etc/systemd /usr/lib/systemd/system /run/systemd/system ! -name '*.wants' -printf '%p %m %l\\n' | sort; find /etc/systemd -type f | sort | xargs sha256sum")
}

// A Go service that somebody has written a unit for, with a socket unit and without, is brought under zdt while clients that never
// retry use it: nobody is refused. Afterwards it is upgraded as any other, and given back it is as it was.
func TestAdopt(t *testing.T) {
	t.Parallel()
	guest.Each(t, func(t *testing.T, g *guest.Guest) {
		for _, socket := range []bool{false, true} {
			t.Run(map[bool]string{false: "alone", true: "with a socket unit"}[socket], func(t *testing.T) {
				s := &service{t: t, g: g, name: "hello", unit: "hello.service", addr: "127.0.0.1:8080"}
				s.installZdt()
				s.run("sh", "-c", "install -D "+s.put(good(1))+" /opt/hello/hello")
				unit := "[Service]\nExecStart=/opt/hello/hello -listen " + s.addr + "\nUser=" + guest.User + "\n[Install]\nWantedBy=multi-user.target\n"
				s.writeUnit("/etc/systemd/system/hello.service", unit)
				if socket {
					s.writeUnit("/etc/systemd/system/hello.socket", "[Socket]\nListenStream="+s.addr+"\n[Install]\nWantedBy=sockets.target\n")
					s.run("systemctl", "daemon-reload")
					s.run("systemctl", "enable", "--now", "hello.socket")
				}
				s.run("systemctl", "daemon-reload")
				s.run("systemctl", "enable", "--now", "hello.service")
				s.await("it serves", func() bool { _, err := s.ask("/"); return err == nil })
				before, main := s.unitFiles(), s.mainPID()

				t.Logf("%s", s.must(0, "zdt", "adopt", s.name, "--dry-run", "--restart"))
				if doc := s.adopt(0, "--dry-run"); doc.Outcome != "would-change" || doc.Runtime != "library" {
					t.Errorf("a dry run: %+v", doc)
				}
				if now := s.unitFiles(); now != before {
					t.Fatalf("a dry run has changed\n%s\nto\n%s", before, now)
				}
				l := s.load(load.Config{KeepAlive: 4, Fresh: 4, Failures: 1000})
				s.flows(l)
				if doc := s.adopt(0); doc.Outcome != "changed" || doc.Switched || s.mainPID() != main {
					t.Errorf("without --restart: %+v", doc)
				}
				if doc := s.adopt(0, "--restart"); doc.Outcome != "changed" || !doc.Switched {
					t.Errorf("with --restart: %+v", doc)
				}
				if doc := s.adopt(0, "--restart"); doc.Outcome != "unchanged" {
					t.Errorf("once more: %+v", doc)
				}
				s.flows(l)
				if found := s.check(0); len(found) > 0 {
					t.Errorf("zdt check finds %+v", found)
				}
				s.mustUpgrade(good(2))
				s.flows(l)
				report := l.Stop()
				mustFailNothing(t, report) // the old program closes its connections, politely
				if !socket {               // one may be had as well, from the next boot on
					s.adopt(0, "--socket")
					s.run("systemctl", "stop", "hello.service")
					s.run("systemctl", "start", "hello.socket")
					s.run("systemctl", "start", "hello.service")
					if got := s.answers(); got != version(2) {
						t.Errorf("%s answers behind the socket unit", got)
					}
					s.mustUpgrade(good(3))
					if doc := s.adopt(0, "--restart"); doc.Outcome != "unchanged" {
						t.Errorf("with the socket unit once more: %+v", doc)
					}
				}
				if doc := s.adopt(0, "--undo", "--restart"); doc.Outcome != "changed" {
					t.Errorf("the undoing: %+v", doc)
				}
				if now := s.unitFiles(); now != before {
					t.Errorf("before:\n%s\nafter:\n%s", before, now)
				}
				s.await("it serves as before", func() bool { return s.answers() == version(1) })
				if exe := s.run("readlink", "/proc/"+s.run("systemctl", "show", "--value", "-p", "MainPID", s.unit)+"/exe"); strings.TrimSpace(exe) != "/opt/hello/hello" {
					t.Errorf("%s runs", exe)
				}
				s.run("systemctl", "disable", "--now", "hello.service")
				if socket {
					s.run("systemctl", "disable", "--now", "hello.socket")
				}
				s.run("sh", "-c", "rm -rf /etc/systemd/system/hello.* /var/lib/zdt/hello; systemctl daemon-reload")
			})
		}
	})
}

// nginx as its Debian package sets it up, and gunicorn in a unit as its manual has it, hold their ports themselves. They are brought
// under zdt without a client being refused, go over to another configuration or application by a reload, and given back are as they were.
func TestAdoptPrograms(t *testing.T) {
	t.Parallel()
	g := guest.Boot(t, guest.TrixiePrograms)
	for _, tt := range []struct {
		name, recipe, unit, file string
	}{
		{name: "nginx", recipe: "nginx", file: "/etc/nginx/sites-enabled/shop.conf"},
		{name: "shop", recipe: "gunicorn", file: "/srv/shop/app.py", unit: `[Service]
Type=notify
DynamicUser=yes
ExecStart=/usr/bin/gunicorn --preload --workers 2 --chdir /srv/shop --bind 127.0.0.1:8080 app:app
ExecReload=/bin/kill -s HUP $MAINPID
KillMode=mixed
TimeoutStopSec=5
[Install]
WantedBy=multi-user.target
`},
	} {
		t.Run(tt.recipe, func(t *testing.T) {
			s := &service{t: t, g: g, name: tt.name, unit: tt.name + ".service", addr: "127.0.0.1:8080"}
			s.installZdt()
			var p foreign
			for _, f := range foreigners() {
				if f.recipe == tt.recipe {
					p = f
				}
			}
			deploy := func(n int) {
				for _, data := range p.release(s, n, false) {
					s.writeUnit(tt.file, string(data))
				}
			}
			if p.backend {
				s.startBackend()
				// The site of Debian stays: it has all addresses of IPv4 and all of IPv6, in two sockets.
			}
			deploy(1)
			if tt.unit != "" {
				s.writeUnit("/etc/systemd/system/"+s.unit, tt.unit)
			}
			s.run("systemctl", "daemon-reload")
			s.run("systemctl", "enable", "--now", s.unit)
			s.await("it serves", func() bool { return s.answers() == version(1) })
			before := s.unitFiles()

			l := s.load(load.Config{Fresh: 4, Failures: 1000})
			s.flows(l)
			// One that does not come up under zdt is the old one's again.
			if doc := s.adopt(11, "--restart", "--ready", "exec:/bin/false", "--ready-timeout", "2s"); doc.Outcome != "rolled-back" || doc.Switched {
				t.Errorf("an adoption that fails: %+v", doc)
			}
			if now := s.unitFiles(); now != before {
				t.Errorf("before:\n%s\nafter an adoption that failed:\n%s", before, now)
			}
			s.await("the old program serves again", func() bool { return s.answers() == version(1) })
			s.flows(l)
			l.Stop()

			l = s.load(load.Config{Fresh: 4, Failures: 1000})
			s.flows(l)
			doc := s.adopt(0, "--restart")
			t.Logf("%+v", doc)
			if doc.Outcome != "changed" || doc.Runtime != "helper" || !doc.Switched {
				t.Errorf("the adoption: %+v", doc)
			}
			s.flows(l)
			if found := s.check(0); len(found) > 0 {
				t.Errorf("zdt check finds %+v", found)
			}
			for n := 2; n <= 4; n++ {
				deploy(n)
				s.run("systemctl", "reload", s.unit)
				s.until(l, "answers of "+version(n), func(r load.Report) bool { return r.Versions[version(n)] > 0 })
				s.await("the old processes are gone", func() bool { return s.serving().Predecessor == nil })
			}
			report := l.Stop()
			s.run("systemctl", "stop", s.unit) // and starts as it would after a boot, when nobody has kept its sockets
			s.run("systemctl", "start", s.unit)
			s.await("it serves after a stop", func() bool { return s.answers() == version(4) })
			t.Log(report)
			if report.Refused > 0 || p.lossless && report.Losses() > 0 {
				t.Errorf("clients noticed: %s", report)
			}
			if doc := s.adopt(0, "--undo", "--restart"); doc.Outcome != "changed" {
				t.Errorf("the undoing: %+v", doc)
			}
			if now := s.unitFiles(); now != before {
				t.Errorf("before:\n%s\nafter:\n%s", before, now)
			}
			s.await("it serves as before", func() bool { return s.answers() == version(4) })
			if doc := s.adopt(0, "--undo"); doc.Outcome != "unchanged" {
				t.Errorf("a second undoing: %+v", doc)
			}
			if tt.name == "nginx" { // and once more as the page says
				for _, c := range adoptCommands(t) {
					if r := s.do("/", []string{c}); r.Code != 0 {
						t.Errorf("docs/adopt.md: %s", r)
					}
				}
				if now := s.unitFiles(); now != before {
					t.Errorf("before:\n%s\nafter the commands of docs/adopt.md:\n%s", before, now)
				}
			}
			s.run("systemctl", "disable", "--now", s.unit)
		})
	}
}

// adoptCommands are those of docs/adopt.md.
func adoptCommands(t *testing.T) (commands []string) {
	t.Helper()
	blocks, err := docstest.Blocks(string(readFile(t, "../../docs/adopt.md")))
	if err != nil {
		t.Fatal(err)
	}
	all, err := docstest.Commands(blocks)
	if err != nil || len(all) < 6 {
		t.Fatalf("%d commands, %v", len(all), err)
	}
	for _, c := range all {
		commands = append(commands, c.Text)
	}
	return commands
}
