package dbusctl

import (
	"errors"
	"reflect"
	"strings"
	"testing"
	"time"
	"unicode"

	systemd1 "github.com/coreos/go-systemd/v22/dbus"
	"github.com/godbus/dbus/v5"
)

type execCommand struct {
	Path           string
	Argv           []string
	Ignore         bool
	T1, T2, T3, T4 uint64
	PID            uint32
	Code, Status   int32
}

func TestParseUnit(t *testing.T) {
	const none = ^uint64(0)
	in := map[string]any{
		"Id": "web.service", "LoadState": "loaded", "ActiveState": "active", "SubState": "running",
		"DropInPaths": []string{"/etc/systemd/system/web.service.d/a.conf"}, "NeedDaemonReload": true,
		"Job": struct {
			ID   uint32
			Path dbus.ObjectPath
		}{9, "/j"},
		"InvocationID":         []byte{0xab, 0x01},
		"ActiveEnterTimestamp": uint64(1_700_000_000_000_001),
		"LoadError":            struct{ Name, Text string }{"org.x", "Unit\n web.service has a bad unit file setting."},
		"Type":                 "notify", "MainPID": uint32(12), "UID": uint32(998), "ExecMainStatus": int32(203),
		"ExecStart":        []execCommand{{Path: "/bin/a", Argv: []string{"a", "b c"}}, {Path: "/bin/z"}},
		"TimeoutStartUSec": none, "TimeoutStopUSec": uint64(90_000_000), "WatchdogUSec": none,
		"Environment":   []string{"A=1"},
		"MemoryCurrent": none, "MemoryMax": uint64(1 << 30), "TasksMax": uint64(77),
		"ExecMainStartTimestampMonotonic": uint64(5), "ActiveExitTimestampMonotonic": uint64(7), "ExecMainExitTimestampMonotonic": uint64(8),
		"InactiveExitTimestamp": uint64(1_600_000_000_000_001),
		"TriggeredBy":           []string{"web.socket"},
		"Listen":                []struct{ Kind, Address string }{{"Stream", "[::]:8080"}, {"Datagram", "/run/x"}},
	}
	all := viaWire(t, in)
	want := Unit{
		Name: "web.service", LoadState: "loaded", ActiveState: "active", SubState: "running",
		DropInPaths: []string{"/etc/systemd/system/web.service.d/a.conf"}, NeedDaemonReload: true,
		Job: 9, InvocationID: "ab01", ActiveEnter: time.UnixMicro(1_700_000_000_000_001),
		LoadError: "Unit web.service has a bad unit file setting.", TriggeredBy: []string{"web.socket"},
		Service: Service{
			Type: "notify", MainPID: 12, UID: 998, ExecMainStatus: 203, Stopped: true,
			ExecStartPath: "/bin/a", ExecStart: []string{"a", "b c"},
			TimeoutStart: Infinity, TimeoutStop: 90 * time.Second, Environment: []string{"A=1"},
			MemoryCurrent: NoLimit, MemoryMax: 1 << 30, TasksMax: 77,
		},
		InactiveExit: time.UnixMicro(1_600_000_000_000_001),
		Socket:       Socket{Listen: []Listen{{"Stream", "[::]:8080"}, {"Datagram", "/run/x"}}},
	}
	if got := parseUnit(all); !reflect.DeepEqual(got, want) {
		t.Errorf("got  %+v\nwant %+v", got, want)
	}
	if got := parseUnit(nil); !reflect.DeepEqual(got, Unit{Service: Service{UID: NoUID}}) {
		t.Errorf("of nothing: %+v", got)
	}
	// Another version may have another type for a property: zero, no panic.
	for k := range all {
		all[k] = dbus.MakeVariant(3.5)
	}
	parseUnit(all)
	all["ExecStart"] = dbus.MakeVariant([][]any{{}, nil})
	all["Job"] = dbus.MakeVariant([]any{})
	parseUnit(all)
}

// viaWire gives properties the dynamic types that they have after decoding.
func viaWire(t *testing.T, in map[string]any) (out map[string]dbus.Variant) {
	t.Helper()
	conn, err := dbus.Connect(startBus(t).address)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	variants := make(map[string]dbus.Variant)
	for k, v := range in {
		variants[k] = dbus.MakeVariant(v)
	}
	get := func() (map[string]dbus.Variant, *dbus.Error) { return variants, nil }
	if err := conn.ExportMethodTable(map[string]any{"Get": get}, "/unit", "zdt.Unit"); err != nil {
		t.Fatal(err)
	}
	if err := conn.Object(conn.Names()[0], "/unit").Call("zdt.Unit.Get", 0).Store(&out); err != nil {
		t.Fatal(err)
	}
	return out
}

func TestUnitNotFound(t *testing.T) {
	m := startFake(t).dial()
	u, err := m.Unit(testContext(t), "nope.service")
	var e *Error
	if !errors.Is(err, ErrNoUnit) || !errors.As(err, &e) || e.Hint == "" || u.LoadState != "not-found" {
		t.Errorf("Unit = %+v, %v", u, err)
	}
	if want := "read nope.service: no such unit"; err.Error() != want {
		t.Errorf("err = %v, want %s", err, want)
	}
}

func TestCheckName(t *testing.T) {
	for _, good := range []string{"web.service", "web.socket", "a@b.service", `dev-x\x2dy.device`, "-.slice", "1.mount", "a:b_c.timer"} {
		if err := checkName("read", good); err != nil {
			t.Errorf("%s: %v", good, err)
		}
	}
	for _, bad := range []string{"", "web", ".service", "web.conf", "a/b.service", "a b.service", "a'.service", "é.service", strings.Repeat("x", 248) + ".service"} {
		if err := checkName("read", bad); err == nil {
			t.Errorf("%q is accepted", bad)
		}
	}
}

func FuzzUnitPath(f *testing.F) {
	for _, s := range []string{"web.service", "1a-b_c@d.socket", "", `x\x2d.mount`, "é", "\x00"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, name string) {
		if strings.ContainsFunc(name, unicode.IsControl) {
			return // go-systemd pads no escape below 16
		}
		got := unitPath(name)
		if want := unitRoot + systemd1.PathBusEscape(name); string(got) != want {
			t.Errorf("unitPath(%q) = %s, want %s", name, got, want)
		}
		if checkName("read", name) == nil && !got.IsValid() {
			t.Errorf("unitPath(%q) = %s is no object path", name, got)
		}
	})
}

// Who dies and who is stopped differ in the order of two moments.
func TestStopped(t *testing.T) {
	for _, tt := range []struct {
		name               string
		began, left, ended uint64
		want               bool
	}{
		{"never ran", 0, 0, 0, false},
		{"runs for the first time", 5, 0, 0, false},
		{"runs again after a stop", 9, 7, 0, false},
		{"was stopped", 5, 7, 8, true},
		{"ended by itself", 5, 8, 7, false},
		{"a later start failed", 8, 7, 9, false},
		{"ended during its stop", 5, 7, 7, false},
		{"is being stopped", 5, 7, 0, false},
	} {
		all := viaWire(t, map[string]any{"ExecMainStartTimestampMonotonic": tt.began, "ActiveExitTimestampMonotonic": tt.left,
			"ExecMainExitTimestampMonotonic": tt.ended})
		if got := parseUnit(all).Stopped; got != tt.want {
			t.Errorf("%s: %t", tt.name, got)
		}
	}
}
