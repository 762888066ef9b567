package systest

import (
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/zdt-dev/zdt/internal/guest"
	"github.com/zdt-dev/zdt/internal/load"
	"github.com/zdt-dev/zdt/upgrade"
)

// as runs a command as somebody who has just logged in, with all groups of that user.
func (s *service) as(user string, code int, args ...string) guest.Result {
	s.t.Helper()
	r, err := s.g.Run(s.t.Context(), append([]string{"setpriv", "--reuid", user, "--regid", user, "--init-groups", "--reset-env", "env", "PATH=/usr/local/bin:/usr/bin:/usr/sbin"}, args...)...)
	if err != nil {
		s.t.Fatal(err)
	}
	if r.Code != code {
		s.t.Errorf("%s: exit %d, want %d\n%s", user, r.Code, code, r)
	}
	return r
}

// asReport is as, of a command that prints the report of an upgrade.
func (s *service) asReport(user string, code int, args ...string) upgrade.Report {
	s.t.Helper()
	r := s.as(user, code, append(args, "-o", "json")...)
	var report upgrade.Report
	if err := json.Unmarshal([]byte(r.Stdout), &report); err != nil {
		s.t.Fatalf("%v\n%s", err, r)
	}
	return report
}

// A member of a group that zdt operators was told of upgrades one service, under load and without root, and can do
// nothing else.
func TestOperator(t *testing.T) {
	guest.Each(t, func(t *testing.T, g *guest.Guest) {
		s := newService(t, g, options{})
		s.run("groupadd", "--system", "hello-ops")
		s.run("usermod", "-aG", "hello-ops,systemd-journal", guest.User)
		s.run("useradd", "--create-home", "stranger")
		s.must(0, "zdt", "operators", s.name, "--group", "hello-ops", "--dry-run")
		s.must(0, "zdt", "operators", s.name, "--group", "hello-ops")
		if r := s.must(0, "zdt", "operators", s.name, "--group", "hello-ops"); !strings.Contains(r.Stdout, "nothing to do") {
			t.Errorf("not idempotent:\n%s", r)
		}
		two := s.put(good(2))
		l := s.load(loadOfOperators())
		r := s.asReport(guest.User, 0, "zdt", "upgrade", s.name, "--binary", two, "-m", "as an operator")
		if r.Outcome != upgrade.Upgraded || r.Who.UID != guest.UserUID || !r.Who.Operator || r.Why != "as an operator" {
			t.Errorf("%+v", r)
		}
		s.mustRun(2)
		r = s.asReport(guest.User, 0, "zdt", "rollback", s.name)
		if r.Outcome != upgrade.Upgraded {
			t.Errorf("%+v", r)
		}
		s.mustRun(1)
		mustLoseNothing(t, l.Stop())

	})
}

func loadOfOperators() load.Config {
	return load.Config{KeepAlive: 6, Fresh: 2, Think: 5 * time.Millisecond}
}
