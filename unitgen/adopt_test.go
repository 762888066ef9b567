package unitgen

import (
	"os"
	"strings"
	"testing"
	"time"
)

// What zdt adopt adds to a unit, for a program that hands over by itself and for any other. -update writes the files.
func TestAdoption(t *testing.T) {
	for file, a := range map[string]Adoption{
		"testdata/adopt/library.conf": {
			Name: "web", Zdt: "/usr/local/bin/zdt", Runtime: RuntimeLibrary, Command: "/var/lib/zdt/web/current/web -port 80", Exec: "web",
			Sockets: []string{"web.socket"}, NonBlocking: true, Restart: true, TimeoutStop: true,
		},
		"testdata/adopt/helper.conf": {
			Name: "shop", Zdt: "/opt/z d t/zdt", Runtime: RuntimeHelper, Prefix: "-", Command: `/usr/sbin/nginx -g "daemon off;" $OPTIONS %i`, Exec: "nginx",
			Run: []string{"--pass=nginx", "--ready=exec:test $A = 5%"}, Bind: []Listen{{Proto: "tcp", Addr: "0.0.0.0:80", FDName: "shop-80"}, {Proto: "udp", Addr: "[::1]:53"}},
			Health: []string{"http://127.0.0.1/"}, Bake: time.Minute, ReadyTimeout: 5 * time.Second, DrainTimeout: time.Minute,
			KeepMode: true, PIDFile: true, RemainAfterExit: true, ExitType: true, TimeoutStart: true, Store: 64,
		},
	} {
		got, err := a.DropIn("/etc/systemd/system")
		if err != nil {
			t.Fatal(err)
		}
		if want := "/etc/systemd/system/" + a.Name + ".service.d/zdt.conf"; got.Path != want {
			t.Errorf("it is at %s, not %s", got.Path, want)
		}
		if *update {
			if err := os.WriteFile(file, got.Data, 0o644); err != nil {
				t.Fatal(err)
			}
		}
		if want, err := os.ReadFile(file); err != nil || string(want) != string(got.Data) {
			t.Errorf("%s: %v, got\n%s", file, err, got.Data)
		}
		if _, bad := parseUnit(got.Data); len(bad) > 0 {
			t.Errorf("%s: %+v", file, bad)
		}
		if p, err := ParsePolicy(got); err != nil || p.Name != a.Name || p.Runtime != a.Runtime || p.Bake != a.Bake || len(p.Warnings) > 0 {
			t.Errorf("%s: %+v, %v", file, p, err)
		}
	}
}

func TestAdoptionRefuses(t *testing.T) {
	good := Adoption{Name: "web", Zdt: "/bin/zdt", Runtime: RuntimeHelper, Command: "/bin/web", Exec: "web"}
	if _, err := good.DropIn("/etc"); err != nil {
		t.Fatal(err)
	}
	for name, spoil := range map[string]func(*Adoption){
		"name":    func(a *Adoption) { a.Name = "a/b" },
		"zdt":     func(a *Adoption) { a.Zdt = "zdt" },
		"lines":   func(a *Adoption) { a.Command = "/bin/web\nUser=root" },
		"goes on": func(a *Adoption) { a.Command = `/bin/web \` },
		"nothing": func(a *Adoption) { a.Command = "" },
		"program": func(a *Adoption) { a.Exec = "../web" },
		"flag":    func(a *Adoption) { a.Run = []string{"no flag"} },
		"url":     func(a *Adoption) { a.Health = []string{"ftp://x"} },
	} {
		a := good
		spoil(&a)
		if f, err := a.DropIn("/etc"); err == nil {
			t.Errorf("%s: no error, but\n%s", name, f.Data)
		}
	}
}

func TestSplitCommand(t *testing.T) {
	for value, want := range map[string][3]string{
		"/bin/a":                {"", "/bin/a", ""},
		"/bin/a -b  $C":         {"", "/bin/a", " -b  $C"},
		"-+!!/bin/a\t%i":        {"-+!!", "/bin/a", "\t%i"},
		`"/opt/a b/c" d`:        {"", `"/opt/a b/c"`, " d"},
		`:'/opt/a b/c' "d" 'e'`: {":", `'/opt/a b/c'`, ` "d" 'e'`},
		"@/bin/a b":             {"@", "/bin/a", " b"},
	} {
		prefix, program, rest, err := SplitCommand(value)
		if got := [3]string{prefix, program, rest}; err != nil || got != want {
			t.Errorf("%q: got %q, %v", value, got, err)
		}
	}
	for _, value := range []string{"", "-", `"/bin/a`, "- /bin/a"} {
		if prefix, program, rest, err := SplitCommand(value); err == nil {
			t.Errorf("%q: %q %q %q", value, prefix, program, rest)
		}
	}
}

// Whatever a unit says, nothing of it is lost, and the program is no flag.
func FuzzSplitCommand(f *testing.F) {
	for _, seed := range []string{"/bin/a -b", `-"/a b" c`, "@x y"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, value string) {
		prefix, program, rest, err := SplitCommand(value)
		if err == nil && (prefix+program+rest != value || program == "" || strings.ContainsAny(program[:1], "@-:+!| \t")) {
			t.Errorf("%q: %q %q %q", value, prefix, program, rest)
		}
	})
}
