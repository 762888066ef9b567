package systest

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/zdt-dev/zdt/handoffcheck"
	"github.com/zdt-dev/zdt/internal/guest"
)

// debianServices are services as Debian's packages have them. Nothing is wrong with any of them, and none of them knows of zdt.
func debianServices() []debianService {
	return []debianService{
		{unit: "apache2", runs: true}, {unit: "chrony"}, {unit: "cron", runs: true}, {unit: "dbus", runs: true}, {unit: "dnsmasq"},
		{unit: "dovecot", runs: true}, {unit: "haproxy", runs: true}, {unit: "lighttpd"}, {unit: "memcached", runs: true},
		{unit: "mosquitto", runs: true}, {unit: "named", runs: true}, {unit: "nginx"}, {unit: "polkit", runs: true},
		{unit: "postfix", runs: true}, {unit: "postgresql@17-main"}, {unit: "prometheus-node-exporter", runs: true},
		{unit: "redis-server", runs: true, want: []string{"ZDT023"},
			why: "its NoExecPaths=/ leaves out its own program, and no release of zdt: what is tried below"},
		{unit: "rsync"}, {unit: "rsyslog"}, {unit: "squid"}, {unit: "ssh", runs: true}, {unit: "systemd-journald", runs: true},
		{unit: "systemd-logind", runs: true}, {unit: "tftpd-hpa", runs: true}, {unit: "unbound"}, {unit: "vsftpd", runs: true},
	}
}

type debianService struct {
	unit string
	runs bool     // with what its package configures, in a guest, and beside the others that do
	want []string // what is found, besides that zdt does not manage it
	why  string   // it is found rightly
}

// An ordinary service gets no finding without a reason: zdt check says that it does not manage it (ZDT034), and besides only what
// would stand in the way of any upgrade. The units are the packages' own, and so are most of the processes; the other units of the
// host are looked at as well.
func TestCheckDebian(t *testing.T) {
	t.Parallel()
	g := guest.Boot(t, guest.TrixieServices)
	s := &service{t: t, g: g, name: "hello", unit: "hello.service", addr: "127.0.0.1:8080"}
	s.installZdt()
	services := map[string]debianService{}
	var start []string
	for _, d := range debianServices() {
		services[d.unit] = d
		if d.runs {
			start = append(start, d.unit+".service")
		}
	}
	s.run(append([]string{"systemctl", "start"}, start...)...)

	out := s.run("sh", "-c", `
		for u in $(systemctl list-unit-files --type=service --no-legend --no-pager | grep -v masked | cut -d' ' -f1) postgresql@17-main.service; do
			case $u in
			*@.service) ;; # a template
			*.*.service) ;; # not a name that zdt can manage
			*) zdt check $u -o json || test $? = 10 || echo "{\"error\": \"$u: exit code $?\"}";;
			esac
		done`)
	looked := map[string]bool{}
	for dec := json.NewDecoder(strings.NewReader(out)); dec.More(); {
		var doc struct {
			Service, Error string
			Findings       []handoffcheck.Finding
			Unknown        []string
		}
		if err := dec.Decode(&doc); err != nil {
			t.Fatalf("%v in\n%s", err, out)
		}
		if doc.Error != "" || len(doc.Unknown) > 0 {
			t.Errorf("%s: %s, not known: %q", doc.Service, doc.Error, doc.Unknown)
			continue
		}
		d := services[doc.Service]
		looked[doc.Service] = true
		var ids []string
		for _, f := range doc.Findings {
			// What the guest has masked: some of these units are other names for it.
			if f.ID != "ZDT015" || d.unit != "" {
				ids = append(ids, f.ID)
			}
		}
		if want := append(slices.Clone(d.want), "ZDT034"); !slices.Equal(ids, want) {
			t.Errorf("%s: found %q, want %q (%s)\n%+v", doc.Service, ids, want, d.why, doc.Findings)
		}
	}
	for name, d := range services {
		if !looked[name] {
			t.Errorf("%s was not looked at", name)
		}
		if state, err := g.Run(t.Context(), "systemctl", "is-active", name); err != nil || d.runs && state.Code != 0 {
			t.Errorf("%s does not run: %v\n%s", name, err, state)
		}
	}
	t.Logf("%d services, %d of them run", len(looked), len(start))

	// redis-server would not come to run a release.
	redis := &service{t: t, g: g, name: "redis-server", unit: "redis-server.service"}
	if err := g.Copy(good(1).file(t), "/var/lib/zdt/redis-server/releases/x/redis-server", 0o755); err != nil {
		t.Fatal(err)
	}
	r, err := g.Run(t.Context(), "nsenter", "-m", "-t", fmt.Sprint(redis.mainPID()), "/var/lib/zdt/redis-server/releases/x/redis-server", "-h")
	if err != nil || r.Code != 126 || !strings.Contains(r.Stderr, "Permission denied") {
		t.Errorf("the blocker is wrong: %v\n%s", err, r)
	}

	// Whoever asks for help with a service that zdt does not manage has the same report.
	doc, files := s.bugreport(0, "ssh", "postgresql@17-main")
	if len(doc.Missing) > 0 || !strings.Contains(files["services/ssh/units.txt"], "ExecStart=/usr/sbin/sshd") || !strings.Contains(files["services/ssh/journal.txt"], "Server listening") ||
		!strings.Contains(files["services/postgresql@17-main/check.json"], "ZDT034") {
		t.Errorf("missing: %q\n%s", doc.Missing, files["services/ssh/journal.txt"])
	}
}
