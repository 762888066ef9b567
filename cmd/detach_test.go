package cmd

import (
	"errors"
	"io"
	"slices"
	"strings"
	"testing"

	"github.com/spf13/cobra"

	"github.com/zdt-dev/zdt/dbusctl"
	"github.com/zdt-dev/zdt/release"
	"github.com/zdt-dev/zdt/upgrade"
)

func TestIdentity(t *testing.T) {
	u := func(n uint32) *uint32 { return &n }
	const good = `{"txid":"` + txA + `","who":{"uid":0,"loginuid":1000,"sudo_user":"anna"}}`
	for _, tt := range []struct {
		name, text string
		own        *uint32
		ok         bool
	}{
		{"of a unit, which nobody has logged in for", good, nil, true},
		{"of the same login", good, u(1000), true},
		{"of another login", good, u(1001), false},
		{"of nobody's, by somebody", `{"txid":"` + txA + `","who":{"uid":0}}`, u(1001), false},
		{"of nobody's, by nobody", `{"txid":"` + txA + `","who":{"uid":0}}`, nil, true},
		{"without who", `{"txid":"` + txA + `"}`, nil, false},
		{"without ID", `{"who":{"uid":0}}`, nil, false},
		{"with another ID", `{"txid":"../x","who":{"uid":0}}`, nil, false},
		{"no JSON", `root`, nil, false},
	} {
		var i identity
		err := i.Set(tt.text)
		if err == nil {
			err = i.check(false, tt.own)
			if user := i.check(true, tt.own); user != nil {
				t.Errorf("%s, in a user manager: %v", tt.name, user)
			}
		}
		if (err == nil) != tt.ok {
			t.Errorf("%s: %v, %+v", tt.name, err, i)
		}
	}
	var i identity
	if i.who().UID != release.Identify().UID {
		t.Errorf("without the flag: %v", i.who())
	}
	if err := i.Set(good); err != nil || i.who().SudoUser != "anna" {
		t.Errorf("with it: %v, %v", i.who(), err)
	}
	if text, err := i.flag(); err != nil || text == "" {
		t.Errorf("flag: %q, %v", text, err)
	} else if err := new(identity).Set(text); err != nil {
		t.Errorf("read what was written: %v", err)
	}
}

// What was typed is what the unit runs, without what is about the terminal.
func TestDetachedArgs(t *testing.T) {
	for _, tt := range []struct {
		typed string
		want  string
	}{
		{"upgrade web --detach", "upgrade"},
		{"--user upgrade --binary ./web web -o json --bake 2m -q --detach", "upgrade --user=true --binary=./web --bake=2m"},
		{"upgrade web -ojson --wait --timeout=1h --detach=true --no-color -m -x", "upgrade --wait=forever --timeout=1h --message=-x"},
		{"upgrade --detach --on-failure freeze --ignore-hold -- web", "upgrade --on-failure=freeze --ignore-hold=true"},
		{"rollback web --to 2026 --detach", "rollback --to=2026"},
		{"resume web --settle --detach", "resume --settle=true"},
	} {
		f := newFactory(Streams{Out: io.Discard, Err: io.Discard, Width: func() int { return 80 }})
		f.args = strings.Fields(tt.typed)
		root := newRootCmd(f)
		cmd, rest, err := root.Find(f.args)
		if err == nil {
			err = cmd.ParseFlags(rest)
		}
		if err != nil {
			t.Errorf("%s: %v", tt.typed, err)
			continue
		}
		who := release.Who{UID: 0}
		got, err := f.detachedArgs(cmd, "web", identity{TxID: txA, Who: &who})
		if err != nil || len(got) < 3 {
			t.Errorf("%s: %q, %v", tt.typed, got, err)
			continue
		}
		n := len(got) - 3
		if strings.Join(got[:n], " ") != tt.want || !strings.HasPrefix(got[n], "--as={") || !slices.Equal(got[n+1:], []string{"--", "web"}) {
			t.Errorf("%s: %q, want %s", tt.typed, got, tt.want)
		}
	}
}

func TestDetachedUnit(t *testing.T) {
	f := newFactory(Streams{Out: io.Discard, Err: io.Discard, Width: func() int { return 80 }})
	f.executable = func() (string, error) { return "/usr/local/bin/zdt", nil }
	f.getenv = func(name string) string {
		return map[string]string{"PATH": "/bin", "HOME": "/root\nX=1", "LD_PRELOAD": "/tmp/x"}[name]
	}
	cmd := &cobra.Command{Use: "upgrade"}
	who := release.Who{}
	u, err := f.detachedUnit(cmd, "web@1", identity{TxID: txA, Who: &who})
	if err != nil || u.Name != "zdt-web:1-"+txA+".service" || !u.Keep {
		t.Errorf("%+v, %v", u, err)
	}
	if env := f.detachedEnv(); !slices.Equal(env, []string{"PATH=/bin"}) {
		t.Errorf("environment %q", env)
	}
	f.executable = func() (string, error) { return "", errors.New("gone") }
	if _, err := f.detachedUnit(cmd, "web", identity{Who: &who}); err == nil {
		t.Error("a zdt that cannot be found was started")
	}
}

// A transaction that is over before zdt upgrade --detach returns is told as if it had not been detached.
func TestEndedAtOnce(t *testing.T) {
	ended := func(code, status int32) dbusctl.Unit {
		return dbusctl.Unit{Service: dbusctl.Service{ExecMainCode: code, ExecMainStatus: status}}
	}
	for _, tt := range []struct {
		name   string
		report any
		unit   dbusctl.Unit
		code   ExitCode
		out    string
	}{
		{"upgraded", upgrade.Report{Schema: "zdt.upgrade/1", Outcome: upgrade.Upgraded, TxID: txA}, ended(1, 0), 0, txA + "\n"},
		{"refused", upgrade.Report{Schema: "zdt.upgrade/1", Outcome: upgrade.Refused, ExitCode: 10, Cause: "no"}, ended(1, 10), 10, ""},
		{"an error", newErrorDoc(fail(ExitUnavailable, "", "no bus")), ended(1, 69), 69, ""},
		{"no report, a known status", nil, ended(1, 77), 77, ""},
		{"no report, an unknown status", nil, ended(1, 203), 1, ""},
		{"no report, and all is well?", nil, ended(1, 0), 1, ""},
		{"killed", nil, ended(2, 9), 13, ""},
		{"nothing known", nil, dbusctl.Unit{}, 1, ""},
	} {
		f, _, store := followHost(t)
		var out, errOut strings.Builder
		f.Out, f.Err = &out, &errOut
		if tt.report != nil {
			f.keepReport("web", txA, tt.report)
		}
		s := &site{host: &host{f: f, service: "web"}, f: f, store: store}
		err := s.endedAtOnce(detachedDoc{Service: "web", TxID: txA, Unit: "zdt-web.service"}, tt.unit)
		if codeOf(err) != tt.code || out.String() != tt.out {
			t.Errorf("%s: %v (%d), stdout %q, want %d and %q", tt.name, err, codeOf(err), out.String(), tt.code, tt.out)
		}
	}
}
