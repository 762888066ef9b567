package unitgen

import (
	"strings"
	"testing"
)

func TestReconcile(t *testing.T) {
	for _, tt := range []struct {
		r    Reconcile
		path string
		has  []string
		not  string
	}{
		{Reconcile{UnitDir: "/etc/systemd/system", StateRoot: "/var/lib/zdt", Zdt: "/usr/local/bin/zdt"}, "/etc/systemd/system/zdt-reconcile.service",
			[]string{"ConditionPathExistsGlob=/var/lib/zdt/*/txn.json", "\nExecStart=/usr/local/bin/zdt resume --all --settle\n", "\nAfter=multi-user.target dbus.service\n", "\nWantedBy=multi-user.target\n"}, "Environment="},
		{Reconcile{UnitDir: "/home/u/.config/systemd/user", StateRoot: "/home/u/100%/zdt", Zdt: "/home/u/my bin/zdt", UserManager: true, Environment: []string{"XDG_STATE_HOME=/home/u/100%"}}, "/home/u/.config/systemd/user/zdt-reconcile.service",
			[]string{"ConditionPathExistsGlob=/home/u/100%%/zdt/*/txn.json", "ExecStart=\"/home/u/my bin/zdt\" --user resume --all --settle\n", "\nAfter=default.target\n", "\nWantedBy=default.target\n", `Environment="XDG_STATE_HOME=/home/u/100%%"`}, "multi-user"},
	} {
		f, err := tt.r.Generate()
		if err != nil || f.Path != tt.path || f.Name != ReconcileUnit {
			t.Fatalf("%+v, %v", f, err)
		}
		for _, want := range tt.has {
			if !strings.Contains(string(f.Data), want) {
				t.Errorf("no %q in\n%s", want, f.Data)
			}
		}
		if strings.Contains(string(f.Data), tt.not) {
			t.Errorf("%q in\n%s", tt.not, f.Data)
		}
	}
}
