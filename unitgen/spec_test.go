package unitgen

import (
	"errors"
	"slices"
	"strings"
	"testing"
	"time"
)

func validSpec() Spec {
	return Spec{Name: "web", Exec: "web", Zdt: "/usr/local/bin/zdt", Listen: []Listen{{Proto: "tcp", Addr: ":8080"}}, DynamicUser: true}
}

// Each bad input is refused by name, and nothing else is complained about.
func TestValidate(t *testing.T) {
	if err := validSpec().Validate(); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name  string
		spoil func(*Spec)
		want  string
	}{
		{"no name", func(s *Spec) { s.Name = "" }, `name "": empty`},
		{"unit name", func(s *Spec) { s.Name = "web.service" }, "this is a unit's name"},
		{"slash", func(s *Spec) { s.Name = "a/b" }, "only letters"},
		{"dots", func(s *Spec) { s.Name = ".." }, "only letters"},
		{"instance", func(s *Spec) { s.Name = "web@1" }, "make the template, web@"},
		{"template without a name", func(s *Spec) { s.Name = "@" }, "empty"},
		{"zdt's own template", func(s *Spec) { s.Name = "zdt-operator@" }, "zdt's own"},
		{"bad instance", func(s *Spec) { s.Name, s.Instances, s.Listen = "web@", []string{"a b"}, nil }, "only letters"},
		{"instances of no template", func(s *Spec) { s.Instances = []string{"1"} }, "name it web@"},
		{"instances that share an address", func(s *Spec) { s.Name, s.Instances = "web@", []string{"1", "2"} }, "instances 1 and 2"},
		{"port of an instance", func(s *Spec) { s.Name, s.Instances = "web@", []string{"x"}; s.Listen[0].Addr = ":80%i" }, "not an address"},
		{"instance outside of a template", func(s *Spec) { s.Listen[0].Addr = ":80%i" }, "not an address"},
		{"specifier", func(s *Spec) { s.Name = "web%i" }, "only letters"},
		{"newline in name", func(s *Spec) { s.Name = "web\n" }, "only letters"},
		{"dash first", func(s *Spec) { s.Name = "-web" }, "only letters"},
		{"dash last", func(s *Spec) { s.Name = "web-" }, "only letters"},
		{"colon", func(s *Spec) { s.Name = "web:1" }, "only letters"},
		{"not ASCII", func(s *Spec) { s.Name = "wéb" }, "only letters"},
		{"long name", func(s *Spec) { s.Name = strings.Repeat("a", 65) }, "longer than 64"},
		{"newline in description", func(s *Spec) { s.Description = "a\n[Service]\nUser=root" }, "control character"},
		{"description goes on", func(s *Spec) { s.Description = `a\` }, "joins a line"},
		{"program with path", func(s *Spec) { s.Exec = "bin/web" }, "plain file name"},
		{"program ..", func(s *Spec) { s.Exec = ".." }, "plain file name"},
		{"no program", func(s *Spec) { s.Exec = "" }, "plain file name"},
		{"control in argument", func(s *Spec) { s.Args = []string{"a\x01"} }, "control character"},
		{"newline in argument", func(s *Spec) { s.Args = []string{"a\nb"} }, "control character"},
		{"argument not UTF-8", func(s *Spec) { s.Args = []string{"\xff"} }, "not UTF-8"},
		{"long argument", func(s *Spec) { s.Args = []string{strings.Repeat("a", maxText+1)} }, "longer than"},
		{"many arguments", func(s *Spec) { s.Args = slices.Repeat([]string{strings.Repeat("a", maxText)}, 3) }, "too long"},
		{"probe by name", func(s *Spec) { s.StartProbe = []string{"true"} }, "absolute path"},
		{"variable without =", func(s *Spec) { s.Environment = []string{"A"} }, "not NAME=VALUE"},
		{"variable name", func(s *Spec) { s.Environment = []string{"A B=c"} }, "not NAME=VALUE"},
		{"zdt's variable", func(s *Spec) { s.Environment = []string{"ZDT_SERVICE=x"} }, "sets this itself"},
		{"systemd's variable", func(s *Spec) { s.Environment = []string{"LISTEN_FDS=x"} }, "sets this itself"},
		{"newline in variable", func(s *Spec) { s.Environment = []string{"A=b\nc"} }, "control character"},
		{"no zdt", func(s *Spec) { s.Zdt = "" }, "not an absolute path"},
		{"relative zdt", func(s *Spec) { s.Zdt = "./zdt" }, "not an absolute path"},
		{"quote in path of zdt", func(s *Spec) { s.Zdt = `/usr/"bin/zdt` }, "systemd takes no"},
		{"zdt out of sight", func(s *Spec) { s.Zdt = "/root/go/bin/zdt" }, "sandbox hides /root"},
		{"zdt in /tmp", func(s *Spec) { s.Zdt = "/tmp/zdt" }, "sandbox hides /tmp"},
		{"dots in state directory", func(s *Spec) { s.StateDir = "/var/../x" }, "plain path"},
		{"bad listen", func(s *Spec) { s.Listen[0].Addr = "x" }, "not an address"},
		{"unknown protocol", func(s *Spec) { s.Listen[0].Proto = "sctp" }, "unknown protocol"},
		{"listen twice", func(s *Spec) { s.Listen = append(s.Listen, Listen{"tcp", "127.0.0.1:8080", "b"}) }, "same address as"},
		{"listen in the runtime directory", func(s *Spec) { s.Listen[0] = Listen{"unix", "/run/zdt/web/x", ""} }, "removed whenever"},
		{"flag of zdt run for a library", func(s *Spec) { s.Run = []string{"--ready=notify"} }, "--runtime helper"},
		{"end of the flags", func(s *Spec) { s.Runtime, s.Run = RuntimeHelper, []string{"--"} }, "--NAME=VALUE"},
		{"flag without a value", func(s *Spec) { s.Runtime, s.Run = RuntimeHelper, []string{"--ready"} }, "--NAME=VALUE"},
		{"flag that is a word", func(s *Spec) { s.Runtime, s.Run = RuntimeHelper, []string{"notify"} }, "--NAME=VALUE"},
		{"newline in a flag", func(s *Spec) { s.Runtime, s.Run = RuntimeHelper, []string{"--ready=a\nName=b"} }, "control character"},
		{"flag that goes on", func(s *Spec) { s.Runtime, s.Run = RuntimeHelper, []string{`--ready=a\`} }, "backslash"},
		{"flag with a space", func(s *Spec) { s.Runtime, s.Run = RuntimeHelper, []string{"--ready=a "} }, "space"},
		{"unknown runtime", func(s *Spec) { s.Runtime = "magic" }, "unknown"},
		{"two users", func(s *Spec) { s.User = "web" }, "made up by systemd"},
		{"bad user", func(s *Spec) { s.DynamicUser, s.User = false, "a b" }, "not a name or number"},
		{"nobody", func(s *Spec) { s.DynamicUser, s.User = false, "nobody" }, "shared by unrelated"},
		{"group alone", func(s *Spec) { s.DynamicUser, s.Group = false, "www" }, "without a user"},
		{"user in a user manager", func(s *Spec) { s.UserManager, s.StateDir, s.UnitDir = true, "/a", "/b" }, "runs everything as"},
		{"health without scheme", func(s *Spec) { s.Health = []string{"localhost/x"} }, "not a URL"},
		{"health ftp", func(s *Spec) { s.Health = []string{"ftp://x/"} }, "only http"},
		{"health with space", func(s *Spec) { s.Health = []string{"http://x/ y"} }, "space"},
		{"health goes on", func(s *Spec) { s.Health = []string{`http://x/\`} }, "backslash"},
		{"negative drain", func(s *Spec) { s.DrainTimeout = -1 }, "not between"},
		{"long bake", func(s *Spec) { s.Bake = 8 * 24 * time.Hour }, "not between"},
		{"on failure", func(s *Spec) { s.OnFailure = "explode" }, "use rollback or freeze"},
		{"old systemd", func(s *Spec) { s.SystemdVersion = 239 }, "older than"},
	} {
		s := validSpec()
		c.spoil(&s)
		_, err := Generate(s)
		var bad *InputError
		if !errors.As(err, &bad) {
			t.Errorf("%s: %v is no InputError", c.name, err)
			continue
		}
		if text := err.Error() + bad.Hint(); !strings.Contains(text, c.want) || strings.Contains(err.Error(), "\n") {
			t.Errorf("%s: %q, want only %q", c.name, text, c.want)
		}
	}
}

// All that is wrong is said at once.
func TestValidateJoins(t *testing.T) {
	err := Spec{Name: "a b", Exec: "", Zdt: "x"}.Validate()
	if n := len(strings.Split(err.Error(), "\n")); n != 3 {
		t.Errorf("%d problems, want 3:\n%v", n, err)
	}
}

func TestSocketUnits(t *testing.T) {
	for _, c := range []struct{ listen, units, names string }{
		{"", "", ""},
		{":80", "web.socket", "web.socket"},
		{":80=http", "web.socket", "http"},
		{":80 udp::53", "web.socket", "web.socket"},
		{":80=http udp::53=dns :81=http", "web.socket web.dns.socket", "http dns"},
		{":80=http :81", "web.http.socket web.socket", "http web.socket"},
	} {
		s := validSpec()
		s.Listen = nil
		for _, text := range strings.Fields(c.listen) {
			l, err := ParseListen(text)
			if err != nil {
				t.Fatal(err)
			}
			s.Listen = append(s.Listen, l)
		}
		if got := s.joinUnits(s.SocketUnits()); got != c.units {
			t.Errorf("%q: units %q, want %q", c.listen, got, c.units)
		}
		files, err := Generate(s)
		if err != nil {
			t.Fatal(err)
		}
		for i, name := range append([]string{"web.service"}, strings.Fields(c.units)...) {
			f := files[i]
			if f.Name != name || f.Path != "/etc/systemd/system/"+name || f.Mode != 0o644 {
				t.Errorf("%q: file %d: %s %s %o", c.listen, i, f.Name, f.Path, f.Mode)
			}
			if i > 0 && !strings.Contains(string(f.Data), "\nFileDescriptorName="+strings.Fields(c.names)[i-1]+"\n") {
				t.Errorf("%q: not named %q:\n%s", c.listen, strings.Fields(c.names)[i-1], f.Data)
			}
		}
	}
}

// What zdt run is told reads back as given, and stands in ExecStart= as one word each, in front of the program.
func TestRunFlags(t *testing.T) {
	for _, w := range awkward {
		s := validSpec()
		s.Runtime, s.Run, s.Args = RuntimeHelper, []string{"--ready=exec:x" + w + "x", "--pass=none"}, []string{w}
		files, err := Generate(s)
		if err != nil {
			continue // refused
		}
		p, err := ParsePolicy(files...)
		if err != nil || p.Runtime != RuntimeHelper || !slices.Equal(p.Run, s.Run) || len(p.Warnings) > 0 {
			t.Errorf("%q: policy %+v, %v", w, p, err)
		}
		for _, line := range strings.Split(string(files[0].Data), "\n") {
			if value, ok := strings.CutPrefix(line, "ExecStart="); ok {
				words, err := splitWords(value)
				for i := range words {
					words[i] = strings.NewReplacer("%%", "%", "$$", "$").Replace(words[i])
				}
				if want := s.withDefaults().argv(); err != nil || !slices.Equal(words, want) {
					t.Errorf("%q, %v; want %q", words, err, want)
				}
			}
		}
	}
	p, err := ParsePolicy(File{Path: "a", Data: []byte("[X-Zdt]\nName=web\nRun=--a=b\n")}, File{Path: "b", Data: []byte("[X-Zdt]\nRun=\nRun=--c=d\n")})
	if err != nil || !slices.Equal(p.Run, []string{"--c=d"}) {
		t.Errorf("drop-in: %q, %v", p.Run, err)
	}
	if _, err := ParsePolicy(File{Data: []byte("[X-Zdt]\nRun=-- x\n")}); err == nil {
		t.Error("the end of the flags is taken for one")
	}
}

// Whatever text gets into a unit through a Spec, it stays where it was put:
// the unit has the same settings as one from harmless text, and reads back as given.
func FuzzSpec(f *testing.F) {
	for _, w := range awkward {
		f.Add(w, w, w, w)
	}
	f.Add("100% Go", "--x", "a b", "http://127.0.0.1/%20?a=$b")
	f.Fuzz(func(t *testing.T, description, arg, value, health string) {
		s := validSpec()
		keys := func(s Spec) (keys []string, data []byte) {
			files, err := Generate(s)
			if err != nil {
				return nil, nil
			}
			all, bad := parseUnit(files[0].Data)
			if len(bad) > 0 {
				t.Fatal(bad)
			}
			for _, e := range all {
				keys = append(keys, e.section+"."+e.key)
			}
			return keys, files[0].Data
		}
		s.Description, s.Args, s.Environment, s.StartProbe, s.Health = "d", []string{"a"}, []string{"V=v"}, []string{"/bin/true", "a"}, []string{"http://h/"}
		want, _ := keys(s)
		s.Description, s.Args, s.Environment, s.StartProbe, s.Health = description, []string{arg}, []string{"V=" + value}, []string{"/bin/true", arg}, []string{health}
		got, data := keys(s)
		if data == nil {
			return // refused
		}
		if !slices.Equal(got, want) {
			t.Fatalf("settings %q, want %q, in\n%s", got, want, data)
		}
		if Inspect(data).Origin != Generated {
			t.Fatal("not recognised as generated")
		}
		p, err := ParsePolicy(File{Path: "web.service", Data: data})
		if err != nil || len(p.Warnings) > 0 || !slices.Equal(p.Health, []string{health}) {
			t.Fatalf("policy %+v, %v; want health %q", p, err, health)
		}
	})
}
