package unitgen

import (
	"strings"
	"testing"
)

func TestOperators(t *testing.T) {
	o := Operators{Name: "web", Group: "web-ops", Zdt: "/opt/my zdt/zdt", Dir: "/var/lib/zdt-operators/web", UnitDir: "/etc/systemd/system", RulesDir: "/etc/polkit-1/rules.d"}
	files, err := o.Generate()
	if err != nil || len(files) != 2 {
		t.Fatal(files, err)
	}
	for i, has := range [][]string{
		{"\nExecStart=\"/opt/my zdt/zdt\" accept --sweep web\n", "\nExecReload=\"/opt/my zdt/zdt\" accept web\n", "\nRemainAfterExit=yes\n", "\nTimeoutStartSec=infinity\n"},
		{`action.lookup("unit") == "zdt-operator@web.service" &&`, `action.lookup("verb") == "reload" &&`, `subject.isInGroup("web-ops")`, `action.id == "org.freedesktop.systemd1.manage-units" &&`},
	} {
		text := string(files[i].Data)
		for _, want := range has {
			if !strings.Contains(text, want) {
				t.Errorf("no %q in\n%s", want, text)
			}
		}
		if !OperatorsWrote(files[i].Data) {
			t.Errorf("not known again:\n%s", text)
		}
	}
	if files[0].Path != "/etc/systemd/system/zdt-operator@web.service" || files[1].Path != "/etc/polkit-1/rules.d/60-zdt-operator-web.rules" {
		t.Error(files[0].Path, files[1].Path)
	}
	// A rule is a program: nothing that is not a name gets into it.
	for _, bad := range []Operators{{Name: "web", Group: `x") || true || ("`}, {Name: "web", Group: ""}, {Name: "web@1", Group: "x"}, {Name: `w"`, Group: "x"}, {Name: "web", Group: "a\nb"}} {
		if _, err := bad.Generate(); err == nil {
			t.Errorf("%+v was accepted", bad)
		}
	}
	if OperatorsWrote([]byte("[Service]\n")) || OperatorsWrote(nil) {
		t.Error("what a person wrote is taken for zdt's")
	}
}
