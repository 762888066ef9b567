package systest

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/zdt-dev/zdt/handoffcheck"
	"github.com/zdt-dev/zdt/internal/guest"
	"github.com/zdt-dev/zdt/upgrade"
)

// check is what zdt check finds, which must end with the code.
func (s *service) check(code int) []handoffcheck.Finding {
	s.t.Helper()
	r, err := s.g.Run(s.t.Context(), "zdt", "check", s.name, "-o", "json")
	if err != nil {
		s.t.Fatal(err)
	}
	var doc struct {
		Findings []handoffcheck.Finding `json:"findings"`
		Unknown  []string               `json:"unknown"`
	}
	if err := json.Unmarshal([]byte(r.Stdout), &doc); err != nil || r.Code != code {
		s.t.Fatalf("want exit code %d and a document: %v\n%s", code, err, r)
	}
	if len(doc.Unknown) > 0 {
		s.t.Errorf("of a service that runs all can be known: %q", doc.Unknown)
	}
	return doc.Findings
}

// mustFindNothing: zdt check finds nothing in a service that is in order.
func (s *service) mustFindNothing() {
	s.t.Helper()
	if found := s.check(0); len(found) > 0 {
		s.t.Errorf("%s is in order, and zdt check finds %+v", s.name, found)
	}
}

// Nothing is found in what zdt init makes. A setting that spoils it is found in what systemd says of the unit, by its ID alone,
// and the drop-in that is printed mends it.
func TestCheck(t *testing.T) {
	t.Parallel()
	guest.Each(t, func(t *testing.T, g *guest.Guest) {
		for _, runtime := range []string{"library", "helper"} {
			t.Run(runtime, func(t *testing.T) {
				s := newService(t, g, options{init: []string{"--runtime", runtime, "--service-user", guest.User}})
				defer s.remove()
				if found := s.check(0); len(found) > 0 {
					t.Fatalf("in what zdt init makes: %+v", found)
				}
				killMode, pidFile, group, stop := "mixed", "", "", "ZDT013"
				if runtime == "helper" {
					killMode, pidFile, group, stop = "control-group", "ZDT011", "ZDT004", ""
				}
				// What comes of each is shown in TestUnitChecks.
				for _, tt := range []struct{ unit, section, line, want string }{
					{".service", "Service", "Type=simple", "ZDT001"},
					{".service", "Service", "KillMode=" + killMode, group},
					{".service", "Service", "TimeoutStopSec=3s", "ZDT005"},
					{".service", "Service", "TimeoutStartSec=3s", "ZDT006"},
					{".service", "Service", "Restart=no", "ZDT007"},
					{".service", "Unit", "StartLimitIntervalSec=10s", "ZDT008"},
					{".service", "Service", "RemainAfterExit=yes", "ZDT009"},
					{".service", "Service", "ExitType=cgroup", "ZDT010"},
					{".service", "Service", "PIDFile=/run/hello.pid", pidFile},
					{".service", "Service", "ExecReload=\nExecReload=/bin/true", "ZDT012"},
					{".service", "Service", "ExecStop=", stop},
					{".socket", "Socket", "FlushPending=yes", "ZDT017"},
					{".socket", "Socket", "TriggerLimitIntervalSec=2s", "ZDT018"},
				} {
					dir := "/etc/systemd/system/" + s.name + tt.unit + ".d/"
					s.writeUnit(dir+"a-defect.conf", "["+tt.section+"]\n"+tt.line+"\n")
					s.run("systemctl", "daemon-reload")
					code := 0
					if c, ok := handoffcheck.Find(tt.want); ok && c.Severity == handoffcheck.Blocker {
						code = 10
					}
					found := s.check(code)
					var ids []string
					for _, f := range found {
						ids = append(ids, f.ID)
					}
					if strings.Join(ids, " ") != tt.want {
						t.Errorf("%s: got %q, want %q", tt.line, ids, tt.want)
					}
					for _, f := range found {
						if f.Unit != s.name+tt.unit || f.DropIn == "" {
							t.Errorf("%s: no drop-in: %+v", tt.line, f)
							continue
						}
						s.writeUnit(dir+"b-mended.conf", f.DropIn)
						s.run("systemctl", "daemon-reload")
						if left := s.check(0); len(left) > 0 {
							t.Errorf("%s: the drop-in leaves %+v", tt.line, left)
						}
					}
					s.run("rm", "-r", dir)
				}
				s.run("systemctl", "daemon-reload")
				if found := s.check(0); len(found) > 0 {
					t.Errorf("in the end: %+v", found)
				}
				if g.Image() == guest.Trixie { // the kernel forbids, whatever systemd has told it to
					s.checkSandbox(runtime == "helper")
				}
			})
		}
	})
}

// checkSandbox: what a sandbox takes from a service that runs in it is found, an upgrade fails over it indeed and changes nothing, and
// succeeds after a restart with the drop-in that is printed.
func (s *service) checkSandbox(helper bool) {
	const dir = "/etc/systemd/system/hello.service.d/"
	n := 1
	for _, tt := range []struct {
		lines, want string
		runs        bool // with the runtime
	}{
		{"SystemCallFilter=~sendmsg", "ZDT021", !helper},
		{"SystemCallFilter=~pidfd_open pidfd_send_signal", "ZDT021", helper},
		{"TemporaryFileSystem=/var/lib/zdt\nBindReadOnlyPaths=/var/lib/zdt/hello/current", "ZDT022", true},
		{"NoExecPaths=/var/lib/zdt\nExecPaths=/var/lib/zdt/hello/current", "ZDT023", true},
		{"PrivateUsers=yes", "ZDT024", helper},
	} {
		if !tt.runs {
			continue
		}
		s.writeUnit(dir+"a-defect.conf", "[Service]\n"+tt.lines+"\n")
		s.run("systemctl", "daemon-reload")
		s.run("systemctl", "restart", s.unit)
		found := s.check(10)
		if len(found) != 1 || found[0].ID != tt.want {
			s.t.Errorf("%s: got %+v, want %s", tt.lines, found, tt.want)
			continue
		}
		n++
		r := s.upgrade(good(n))
		if r.exec.Code != 10 || r.Phase != upgrade.Preflight || !strings.Contains(r.Cause, tt.want) {
			s.t.Errorf("%s: the upgrade is not refused: %s", tt.lines, r.exec)
		}
		r = s.upgrade(good(n), "--accept-risk", tt.want) // it is bound to fail
		s.t.Logf("%s: %s", tt.lines, r.Cause)
		if r.exec.Code != 10 && r.exec.Code != 11 || r.Phase == upgrade.Preflight || len(r.AcceptedRisks) != 1 {
			s.t.Errorf("%s: the upgrade does not fail: %s", tt.lines, r.exec)
		}
		s.writeUnit(dir+"b-mended.conf", found[0].DropIn)
		s.run("systemctl", "daemon-reload")
		s.run("systemctl", "restart", s.unit)
		if left := s.check(0); len(left) > 0 {
			s.t.Errorf("%s: the drop-in leaves %+v", tt.lines, left)
		}
		n++
		if r := s.upgrade(good(n)); r.exec.Code != 0 {
			s.t.Errorf("%s: with the drop-in: %s", tt.lines, r.exec)
		}
		s.run("rm", "-r", dir)
	}
}
