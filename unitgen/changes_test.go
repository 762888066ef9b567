package unitgen

import (
	"fmt"
	"strings"
	"testing"
)

func unitText(unit string, texts ...string) UnitText {
	u := UnitText{Unit: unit}
	for i, text := range texts {
		path := "/etc/systemd/system/" + unit
		if i > 0 {
			path += fmt.Sprintf(".d/%d.conf", i)
		}
		u.Files = append(u.Files, File{Path: path, Data: []byte(text)})
	}
	return u
}

// The same changes with both runtimes: with the helper, fewer are left for a restart.
func TestChangesByRuntime(t *testing.T) {
	const run = "ExecStart=/usr/local/bin/zdt run --ready=notify --listen :80=http -- /var/lib/zdt/web/current/web -v 1\n"
	for _, tt := range []struct {
		name, before, after string
		library, helper     string // remedy of each change
	}{
		{"environment", "Environment=A=1 B=2", "Environment=A=1 B=3\nEnvironment=C=4", "restart restart", "handoff handoff"},
		{"environment gone", "Environment=A=1\nEnvironment=B=2", "Environment=A=1", "restart", "handoff"},
		{"environment taken back", "Environment=A=1", "Environment=A=1\nEnvironment=", "restart", "handoff"},
		{"the helper's own", "Environment=ZDT_SERVICE=web ZDT_DRAIN_TIMEOUT=1s", "Environment=ZDT_SERVICE=shop ZDT_DRAIN_TIMEOUT=2s", "restart restart", "handoff restart"},
		{"files", "EnvironmentFile=/a", "EnvironmentFile=-/b", "restart", "handoff"},
		{"passed", "", "PassEnvironment=TZ\nUnsetEnvironment=LANG", "restart restart", "handoff handoff"},
		{"arguments", run, strings.ReplaceAll(run, "-v 1", "-v 2"), "restart", "handoff"},
		{"flags anew", run, strings.ReplaceAll(run, "--ready=notify", "--ready=alive:1s --stop-signal QUIT"), "restart", "handoff handoff"},
		{"flags once", run, strings.ReplaceAll(run, ":80=http", ":81=http"), "restart", "restart"},
		{"another helper", run, strings.ReplaceAll(run, "/usr/local/bin/zdt", "/opt/zdt"), "restart", "restart"},
		{"no helper any more", run, "ExecStart=/usr/bin/web\n", "restart", "restart"},
		{"of systemd's own", "Restart=no\nTimeoutStopSec=5\nKillMode=process", "Restart=always\nTimeoutStopSec=9\nKillMode=mixed\nExecReload=/bin/true",
			"daemon-reload daemon-reload daemon-reload daemon-reload", "daemon-reload daemon-reload daemon-reload daemon-reload"},
		{"limits of the cgroup", "MemoryMax=1G", "MemoryMax=2G\nTasksMax=5\nCPUWeight=7", "daemon-reload daemon-reload daemon-reload", "daemon-reload daemon-reload daemon-reload"},
		{"its place", "", "Slice=web.slice\nIPAddressDeny=any", "restart restart", "restart restart"},
		{"process", "User=a", "User=b\nLimitNOFILE=5\nWorkingDirectory=/srv\nNoNewPrivileges=yes", "restart restart restart restart", "restart restart restart restart"},
		{"unknown", "", "FutureSetting=yes", "restart", "restart"},
		{"start", "", "ExecStartPre=/bin/true", "restart", "restart"},
		{"nothing", "Nice=1\nNice=2\n# x", "Nice=2", "", ""},
		{"unit", "", "[Unit]\nAfter=db.service\nDescription=x\n[Install]\nWantedBy=a.target\n[X-Zdt]\nBake=5s\nGenerated=sha256:1",
			"daemon-reload daemon-reload reenable zdt", "daemon-reload daemon-reload reenable zdt"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			before, after := []UnitText{unitText("web.service", "[Service]\n"+tt.before)}, []UnitText{unitText("web.service", "[Service]\n"+tt.after)}
			for i, want := range []string{tt.library, tt.helper} {
				var got []string
				changes := Changes(before, after, Takes{Unit: i == 1})
				for _, c := range changes {
					got = append(got, string(c.Remedy))
					if c.Key == "Environment" && strings.ContainsAny(c.Before+c.After, "1234") {
						t.Errorf("tells the value of a variable: %s", c)
					}
				}
				if strings.Join(got, " ") != want {
					t.Errorf("helper %t: got %q, want %q\n%v", i == 1, strings.Join(got, " "), want, changes)
				}
			}
		})
	}
}

func TestChangesOfSockets(t *testing.T) {
	before := []UnitText{unitText("web.service", "[Service]\nType=notify"), unitText("web.socket", "[Socket]\nListenStream=80\nBacklog=5\nTriggerLimitBurst=1\nFileDescriptorName=http")}
	after := []UnitText{unitText("web.service", "[Service]\nType=notify"), unitText("web.socket", "[Socket]\nListenStream=80\nListenStream=81\nBacklog=6\nTriggerLimitBurst=2\nFileDescriptorName=web"),
		unitText("web-b.socket", "[Socket]\nListenStream=90")}
	var got []string
	for _, c := range Changes(before, after, Takes{Unit: true}) {
		got = append(got, c.Unit+" "+c.Key+" "+string(c.Remedy))
	}
	want := `web.socket Backlog socket-restart
web.socket FileDescriptorName restart
web.socket ListenStream socket-restart
web.socket TriggerLimitBurst daemon-reload
web-b.socket ListenStream socket-restart`
	if strings.Join(got, "\n") != want {
		t.Errorf("got:\n%s", strings.Join(got, "\n"))
	}
}

// Drop-ins count in their order, and the file that has the last word is named.
func TestChangesOfDropIns(t *testing.T) {
	base := "[Service]\nTimeoutStopSec=40\nReadWritePaths=/a\nEnvironment=A=1\n"
	for _, tt := range []struct {
		name          string
		before, after []string
		want          string
	}{
		{"new", []string{base}, []string{base, "[Service]\nTimeoutStopSec=90\n"}, "TimeoutStopSec= 40 -> 90 | /etc/systemd/system/web.service.d/1.conf"},
		{"gone", []string{base, "[Service]\nTimeoutStopSec=90\n"}, []string{base}, "TimeoutStopSec= 90 -> 40 | /etc/systemd/system/web.service"},
		{"a list grows", []string{base}, []string{base, "[Service]\nReadWritePaths=/b\n"}, "ReadWritePaths= /a -> /a; /b | /etc/systemd/system/web.service.d/1.conf"},
		{"a list is taken back", []string{base}, []string{base, "[Service]\nReadWritePaths=\n"}, "ReadWritePaths= /a (is not set any more) | /etc/systemd/system/web.service.d/1.conf"},
		{"not set before", []string{base}, []string{base, "[Service]\nNice=5\n"}, "Nice= 5 (was not set) | /etc/systemd/system/web.service.d/1.conf"},
		{"a variable", []string{base}, []string{base, "[Service]\nEnvironment=\"A=2\"\n"}, "Environment=A | /etc/systemd/system/web.service.d/1.conf"},
		{"the same", []string{base}, []string{base, "[Service]\nEnvironment=\"A=1\"\n"}, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var got []string
			for _, c := range Changes([]UnitText{unitText("web.service", tt.before...)}, []UnitText{unitText("web.service", tt.after...)}, Takes{}) {
				got = append(got, c.String()+" | "+c.Path)
			}
			if strings.Join(got, "\n") != tt.want {
				t.Errorf("got %q, want %q", got, tt.want)
			}
		})
	}
}

func TestEnvironmentFiles(t *testing.T) {
	got := EnvironmentFiles([]File{{Data: []byte("[Service]\nEnvironmentFile=/x\nEnvironmentFile=\nEnvironmentFile=-/etc/a\n")}, {Data: []byte("[Service]\nEnvironmentFile=/etc/b\n")}})
	if strings.Join(got, " ") != "/etc/a /etc/b" {
		t.Errorf("%q", got)
	}
	if got := EnvironmentFiles(nil); len(got) != 0 {
		t.Errorf("%q", got)
	}
	for _, takes := range []Takes{{}, {Unit: true}} {
		want := map[bool]string{false: "with a restart", true: "with this handoff"}[takes.Unit]
		if c := EnvironmentFileChange("web.service", "/etc/a", takes); c.InForce(false) != want || c.String() != "the contents of /etc/a" {
			t.Errorf("%+v", c)
		}
	}
}

func TestSystemCallFilter(t *testing.T) {
	u := unitText("a.service", "[Service]\nSystemCallFilter=read\nSystemCallFilter=\nSystemCallFilter=@system-service\n", "[Service]\nSystemCallFilter=~sendmsg \\\n recvmsg\n")
	if got := strings.Join(SystemCallFilter(u.Files), "|"); strings.Join(strings.Fields(got), " ") != "@system-service|~sendmsg recvmsg" {
		t.Errorf("got %q", got)
	}
	if got := SystemCallFilter(nil); got != nil {
		t.Errorf("of nothing: %q", got)
	}
}

func FuzzChanges(f *testing.F) {
	f.Add("[Service]\nExecStart=/bin/zdt run --a=b -- x\nEnvironment=A=1 \"B=2\"", "[Service]\nExecStart=/bin/zdt run -- y\nEnvironment=")
	f.Fuzz(func(t *testing.T, a, b string) {
		before, after := []UnitText{unitText("w.service", a)}, []UnitText{unitText("w.service", b)}
		for _, takes := range []Takes{{}, {Unit: true}} {
			if c := Changes(before, before, takes); len(c) > 0 {
				t.Errorf("a text differs from itself: %v", c)
			}
			for _, c := range Changes(before, after, takes) {
				if c.Remedy == "" || c.Key == "" && c.Section == "" {
					t.Errorf("%+v", c)
				}
			}
		}
	})
}
