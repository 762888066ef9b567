package rehearse

import (
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/zdt-dev/zdt/dbusctl"
	"github.com/zdt-dev/zdt/handoff/control"
	"github.com/zdt-dev/zdt/internal/health"
	"github.com/zdt-dev/zdt/release"
	"github.com/zdt-dev/zdt/unitgen"
)

const txid = "20261122T100000000Z-0a1b2c3d"

func options() Options {
	return Options{
		Release: release.Release{ID: "20261122T000000Z-0123456789ab", Path: "/var/lib/zdt/web/releases/20261122T000000Z-0123456789ab/web"},
		TxID:    txid, Current: "/var/lib/zdt/web/current", ReadyTimeout: 3 * time.Second,
		UnitDir: "/run/systemd/system", RunDir: "/run",
	}
}

// service is web as zdt init writes it, more or less.
func service(more ...string) Service {
	unit := unitgen.File{Path: "/etc/systemd/system/web.service", Data: []byte(`[Unit]
Requires=web.socket db.service
OnFailure=page-me.service
JoinsNamespaceOf=db.service
[Service]
Type=notify
Sockets=web.socket
ExecStartPre=/bin/migrate
ExecStart=-/var/lib/zdt/web/current/web --flag
ExecStop=-/usr/local/bin/zdt stop
Restart=always
OOMScoreAdjust=-900
DynamicUser=yes
ProtectSystem=strict
StateDirectory=%p
RuntimeDirectory=zdt/web
SystemCallFilter=@system-service
[Install]
WantedBy=multi-user.target
[X-Zdt]
Name=web
`)}
	drop := unitgen.File{Path: "/etc/systemd/system/web.service.d/a.conf", Data: []byte(strings.Join(more, "\n"))}
	all := unitgen.File{Path: "/etc/systemd/system/service.d/all.conf", Data: []byte("[Service]\nLimitNOFILE=7\n")}
	return Service{
		Name: "web", Files: []unitgen.File{unit, drop, all},
		Facts: dbusctl.Unit{Name: "web.service", Service: dbusctl.Service{
			ExecStartPath: "/var/lib/zdt/web/current/web", ExecStart: []string{"/var/lib/zdt/web/current/web", "--flag", "a b%$X"},
			DynamicUser: true, User: "web", RuntimeDirectory: []string{"zdt/web", "web"},
		}},
		Sockets: []SocketUnit{{
			Facts: dbusctl.Unit{Name: "web.socket", Socket: dbusctl.Socket{
				FileDescriptorName: "web.socket", Listen: []dbusctl.Listen{{Type: "Stream", Address: "[::]:80"}, {Type: "Datagram", Address: "10.1.2.3:53"}},
			}},
			Files: []unitgen.File{{Path: "/etc/systemd/system/web.socket", Data: []byte("[Socket]\nListenStream=80\nBacklog=9\nNoDelay=yes\nExecStartPost=/bin/x\nBindToDevice=eth7\nDeferAcceptSec=3\n")}},
		}},
		Policy: unitgen.Policy{Runtime: unitgen.RuntimeLibrary},
		Status: &control.Status{},
	}
}

func TestPlan(t *testing.T) {
	p, files, err := New(service("[Service]", "RestrictNamespaces=yes"), options())
	if err != nil {
		t.Fatal(err)
	}
	if len(files) != 3 {
		t.Fatalf("%d files", len(files))
	}
	const name = "zdt-rehearse-web-" + txid
	socket, unit := string(files[1].Data), string(files[2].Data)
	if files[2].Path != "/run/systemd/system/"+name+".service" || files[1].Path != "/run/systemd/system/"+name+".0.socket" {
		t.Errorf("files %s, %s", files[1].Path, files[2].Path)
	}
	has := func(what, text string, lines ...string) {
		t.Helper()
		for _, l := range lines {
			if !strings.Contains(text, l+"\n") {
				t.Errorf("the %s lacks %q:\n%s", what, l, text)
			}
		}
	}
	has("service", unit, "JoinsNamespaceOf=db.service", "ProtectSystem=strict", "StateDirectory=web", "SystemCallFilter=@system-service", "RestrictNamespaces=yes", "Type=notify",
		"User=web", "Restart=no", "Sockets="+name+".0.socket", "Requires="+name+".0.socket", "PropagatesStopTo="+name+".0.socket",
		`ExecStart=/var/lib/zdt/web/releases/20261122T000000Z-0123456789ab/web --flag "a b%%$X"`,
		"RuntimeDirectory="+name+".0", "BindPaths=/run/"+name+".0:/run/zdt/web", "BindPaths=/run/"+name+".1:/run/web",
		"TimeoutStartSec=3000ms", "EnvironmentFile=/run/systemd/system/"+name+".env", "CollectMode=inactive-or-failed", "StartLimitBurst=1", "OOMScoreAdjust=1000")
	has("socket", socket, "Backlog=9", "NoDelay=yes", "ListenStream=[::]:80", "ListenDatagram=10.1.2.3:53", "FileDescriptorName=web.socket", "Service="+name+".service", "StopWhenUnneeded=yes", "FreeBind=yes")
	for _, never := range []string{"OnFailure", "web.socket db.service", "ExecStartPre", "ExecStop", "Restart=always", "Install", "X-Zdt", "LimitNOFILE", "web.socket\n[", "current", "-900"} {
		if strings.Contains(unit, never) {
			t.Errorf("the service has %q:\n%s", never, unit)
		}
	}
	for _, never := range []string{"ListenStream=80", "ExecStartPost", "BindToDevice", "DeferAcceptSec"} {
		if strings.Contains(socket, never) {
			t.Errorf("the socket has %q:\n%s", never, socket)
		}
	}
	if len(p.Differences) != 1 || !strings.Contains(p.Differences[0], "BindToDevice=eth7") {
		t.Errorf("differences %q", p.Differences)
	}
	if s := p.Sockets; len(s) != 2 || s[0].Network != "tcp" || s[0].dial() != "127.0.0.1:80" || s[1].Network != "udp" || s[1].dial() != "10.1.2.3:53" {
		t.Errorf("sockets %+v", s)
	}
	if last := strings.LastIndex(unit, "EnvironmentFile="); last < strings.LastIndex(unit, "\nRestart=") {
		t.Error("the settings of the rehearsal do not come last")
	}
}

func TestImpossible(t *testing.T) {
	helper := func(flags ...string) func(*Service, *Options) {
		return func(s *Service, o *Options) {
			s.Policy.Runtime = unitgen.RuntimeHelper
			s.Facts.ExecStartPath = "/usr/local/bin/zdt"
			s.Facts.ExecStart = append(append([]string{"/usr/local/bin/zdt", "run"}, flags...), "--", "/var/lib/zdt/web/current/web")
		}
	}
	for name, c := range map[string]struct {
		change func(*Service, *Options)
		why    string
	}{
		"of a user":              {func(s *Service, o *Options) { o.User = true }, "user manager"},
		"another program":        {func(s *Service, o *Options) { s.Facts.ExecStart[0], s.Facts.ExecStartPath = "/bin/x", "/bin/x" }, "does not lead through"},
		"a program twice":        {helper("--strategy=restart"), "cannot run twice"},
		"its own sockets":        {helper("--pass", "none"), "opens its sockets itself"},
		"a shared port":          {func(s *Service, o *Options) { s.Status.Sockets = []control.Socket{{Name: "x", ReusePort: true}} }, "shares its address"},
		"a socket unit's shared": {func(s *Service, o *Options) { s.Sockets[0].Files[0].Data = []byte("[Socket]\nReusePort=yes\n") }, "shares its address"},
		"a process a client":     {func(s *Service, o *Options) { s.Sockets[0].Facts.Accept = true }, "Accept=yes"},
		"a pipe": {func(s *Service, o *Options) {
			s.Sockets[0].Facts.Listen[0] = dbusctl.Listen{Type: "FIFO", Address: "/run/x"}
		}, "FIFO"},
		"found by its path": {func(s *Service, o *Options) { s.Sockets[0].Facts.Listen[0].Address = "/run/x.sock" }, "by its path"},
		"stopped, no unit":  {func(s *Service, o *Options) { s.Status, s.Sockets = nil, nil }, "does not run"},
	} {
		s, o := service(), options()
		c.change(&s, &o)
		_, _, err := New(s, o)
		var i *Impossible
		if !errors.As(err, &i) || !strings.Contains(i.Why, c.why) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// What zdt run would ask of the service is asked of the rehearsal, by zdt.
func TestHelperFlags(t *testing.T) {
	for _, c := range []struct {
		flags, want []string
		gates       int
		differences int
	}{
		{[]string{"--ready=notify"}, []string{"--ready=notify"}, 0, 0},
		{[]string{"--ready=http://127.0.0.1:80/up"}, []string{"--ready=alive:10ms"}, 1, 0},
		{[]string{"--ready", "tcp:127.0.0.1:80", "--pass=einhorn"}, []string{"--ready", "alive:10ms", "--pass=einhorn"}, 1, 0},
		{[]string{"--ready=exec:/bin/check"}, []string{"--ready=alive:1s"}, 0, 1},
		{[]string{"--control=/run/x/control.sock"}, []string{"--control=-"}, 0, 0},
	} {
		s, o := service(), options()
		s.Sockets[0].Files[0].Data = nil
		s.Policy.Runtime = unitgen.RuntimeHelper
		s.Facts.ExecStart = append(append([]string{"/usr/local/bin/zdt", "run"}, c.flags...), "--", "python3", "/var/lib/zdt/web/current/web")
		p, _, err := New(s, o)
		if err != nil {
			t.Fatal(err)
		}
		want := append(append([]string{"/usr/local/bin/zdt", "run"}, c.want...), "--", "python3", o.Release.Path)
		if !slices.Equal(p.words, want) || len(p.Gates) != c.gates || len(p.Differences) != c.differences {
			t.Errorf("%v: %v, gates %v, differences %v", c.flags, p.words, p.Gates, p.Differences)
		}
	}
}

// Sockets that the program has bound itself get a unit; those that it does not use need not be accepted on.
func TestOwnSockets(t *testing.T) {
	s := service()
	s.Status.Sockets = []control.Socket{
		{Name: "web.socket", Network: "tcp", Address: "[::]:80", InUse: false},
		{Name: "admin", Network: "tcp", Address: "127.0.0.1:81", InUse: true},
		{Name: "local", Network: "unix", Address: "/run/web/local.sock", InUse: true},
	}
	p, files, err := New(s, options())
	if err != nil || len(p.Sockets) != 4 || len(files) != 5 {
		t.Fatalf("%+v, %d files, %v", p, len(files), err)
	}
	if p.Sockets[0].asked || !p.Sockets[2].asked || !p.Sockets[3].asked {
		t.Errorf("%+v", p.Sockets)
	}
	if at := p.Sockets[3].At; at != "/run/zdt-rehearse-web-"+txid+".3.sock" {
		t.Errorf("the unix socket is at %s", at)
	}
}

func TestGatesThatCanBeAsked(t *testing.T) {
	p := &Plan{Sockets: []Socket{
		{Name: "http", Network: "tcp", Address: "[::]:80"}, {Name: "admin", Network: "tcp", Address: "127.0.0.1:81"},
		{Name: "local", Network: "unix", Address: "/run/web.sock"}, {Name: "dns", Network: "udp", Address: "[::]:53"},
	}}
	for text, asked := range map[string]bool{
		"http://127.0.0.1:80/x":              true,
		"http://localhost/x status=204":      true,
		"http://web.example/":                true,
		"https://localhost/":                 false,
		"http://127.0.0.1:81/":               true,
		"http://127.0.0.2:81/":               false,
		"http://127.0.0.1:8080/":             false,
		"tcp:127.0.0.1:80 successes=1":       true,
		"tcp:127.0.0.1:53":                   false,
		"unix:/run/web.sock":                 true,
		"unix:/run/other.sock":               false,
		"http+unix:/run/web.sock:/up":        true,
		"exec:/usr/local/bin/check a":        true,
		"timeout=3s exec:/usr/local/bin/chk": true,
		"journal:ready":                      false,
	} {
		g, err := health.Parse(text)
		if err != nil {
			t.Errorf("%s: %v", text, err)
			continue
		}
		if why := p.unasked(g.String()); (why == "") != asked {
			t.Errorf("%s (%s): %q", text, g, why)
		}
	}
}

func TestContradiction(t *testing.T) {
	p := &Plan{Name: "zdt-rehearse-web-1", envFile: "/run/systemd/system/zdt-rehearse-web-1.env"}
	service := settings{"User": "web", "ProtectSystem": "strict", "LimitNOFILE": "7", "MainPID": "12", "NotifyAccess": "main", "OOMScoreAdjust": "0", "EnvironmentFiles": "[[/etc/web.env true]]", "BindPaths": "[]"}
	mine := settings{
		"User": "web", "ProtectSystem": "strict", "LimitNOFILE": "7", "MainPID": "0", "NotifyAccess": "all", "OOMScoreAdjust": "1000",
		"EnvironmentFiles": "[[/etc/web.env true] [/run/systemd/system/zdt-rehearse-web-1.env false]]",
		"BindPaths":        "[[/run/zdt-rehearse-web-1.0 /run/zdt/web false 16384]]",
	}
	add := p.additions([]string{"zdt/web"}, "/run")
	if worthless, told := contradiction(service, mine, add); worthless != nil || told != nil {
		t.Errorf("the same: %v, %v", worthless, told)
	}
	mine["User"], mine["ProtectSystem"], mine["LimitNOFILE"] = "root", "no", "8"
	worthless, told := contradiction(service, mine, add)
	if !slices.Equal(worthless, []string{"ProtectSystem", "User"}) || !slices.Equal(told, []string{"LimitNOFILE"}) {
		t.Errorf("%v, %v", worthless, told)
	}
	delete(mine, "ProtectSystem")
	if worthless, _ := contradiction(service, mine, add); !slices.Contains(worthless, "ProtectSystem") {
		t.Errorf("a property that is missing: %v", worthless)
	}
}

func TestStale(t *testing.T) {
	for name, want := range map[string]bool{
		"zdt-rehearse-web-" + txid + ".service":      true,
		"zdt-rehearse-web-" + txid + ".0.socket":     true,
		"zdt-rehearse-web-" + txid + ".env":          true,
		"zdt-rehearse-web-shop-" + txid + ".service": false,
		"zdt-rehearse-web.service":                   false,
		"web.service":                                false,
		"zdt-rehearse-web-" + txid + ".timer":        false,
	} {
		if got := stale(name, "web"); got != want {
			t.Errorf("%s: %t", name, got)
		}
	}
}

func TestJudgeEnd(t *testing.T) {
	end := func(result string, code, status int32) dbusctl.Unit {
		return dbusctl.Unit{Service: dbusctl.Service{Result: result, ExecMainCode: code, ExecMainStatus: status}}
	}
	for _, c := range []struct {
		name   string
		unit   dbusctl.Unit
		helper bool
		fails  string
	}{
		{"exits 0", end("success", 1, 0), false, ""},
		{"SuccessExitStatus", end("success", 1, 7), false, ""},
		{"killed by SIGTERM", end("success", 2, 15), false, "SIGTERM killed it"},
		{"killed by SIGTERM, a helper's", end("success", 2, 15), true, ""},
		{"143, a helper's", end("exit-code", 1, 143), true, ""},
		{"exits 3", end("exit-code", 1, 3), false, "exit status 3"},
		{"exits 3, a helper's", end("exit-code", 1, 3), true, "exit status 3"},
		{"does not end", end("timeout", 2, 9), false, "did not end within"},
	} {
		r := &run{plan: &Plan{helper: c.helper}}
		err := r.judgeEnd(c.unit)
		if (err == nil) != (c.fails == "") || err != nil && !strings.Contains(err.Error(), c.fails) {
			t.Errorf("%s: %v", c.name, err)
		}
	}
}
