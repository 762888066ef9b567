package unitgen

import (
	"errors"
	"math"
	"slices"
	"strings"
	"testing"
	"time"
)

// What Generate writes, ParsePolicy reads back.
func TestPolicyOfGenerated(t *testing.T) {
	for _, g := range goldens(t) {
		files, err := Generate(g.spec)
		if err != nil {
			t.Fatal(err)
		}
		s := g.spec.withDefaults()
		service := s.Name
		if s.Template() { // read for an instance, as it is there
			service += "2"
			for i := range s.Listen {
				s.Listen[i] = s.Listen[i].at("2")
			}
			for i := range s.Health {
				s.Health[i] = fill(s.Health[i], "2")
			}
		}
		p, err := InstancePolicy(service, files[0])
		if err != nil || len(p.Warnings) > 0 {
			t.Errorf("%s: %v, %v", g.name, err, p.Warnings)
		}
		if !p.Managed || p.Name != s.Name || p.Exec != s.Exec || p.Runtime != s.Runtime || !slices.Equal(p.Listen, s.Listen) || !slices.Equal(p.Health, s.Health) ||
			p.ReadyTimeout != s.ReadyTimeout || p.DrainTimeout != s.DrainTimeout || p.Bake != s.Bake || p.OnFailure != s.OnFailure {
			t.Errorf("%s: read back %+v of %+v", g.name, p, s)
		}
	}
}

// What stands for the name of an instance is filled in, for an instance only; a URL keeps its percent signs.
func TestInstancePolicy(t *testing.T) {
	unit := File{Path: "web@.service", Data: []byte("[X-Zdt]\nName=web@\nHealth=http://127.0.0.1:80%i/?a=%20b%2f\nGate=exec:/bin/x %p %n %N %%i\nRun=--ready=tcp:127.0.0.1:80%i\n[Service]\nEnvironment=ZDT_READY_TIMEOUT=%i\n")}
	for _, c := range []struct{ service, health, gate, run string }{
		{"web@81", "http://127.0.0.1:8081/?a=%20b%2f", "exec:/bin/x web web@81.service web@81 %i", "--ready=tcp:127.0.0.1:8081"},
		{"web@8-1_b", "", "exec:/bin/x web web@8-1_b.service web@8-1_b %i", "--ready=tcp:127.0.0.1:808-1_b"},
		{"web", "", "exec:/bin/x %p %n %N %%i", "--ready=tcp:127.0.0.1:80%i"},
	} {
		p, err := InstancePolicy(c.service, unit)
		if (c.health == "") != (err != nil) { // that port is none
			t.Errorf("%s: %v", c.service, err)
		}
		if c.health != "" && !slices.Equal(p.Health, []string{c.health}) || !slices.Equal(p.Gates, []string{c.gate}) || !slices.Equal(p.Run, []string{c.run}) {
			t.Errorf("%s: %q %q %q", c.service, p.Health, p.Gates, p.Run)
		}
	}
}

func service(t *testing.T, s Spec) File {
	t.Helper()
	files, err := Generate(s)
	if err != nil {
		t.Fatal(err)
	}
	return files[0]
}

// Drop-ins replace single values, add to lists, and reset either with an empty one.
func TestPolicyDropIns(t *testing.T) {
	s := validSpec()
	s.Health, s.Bake, s.OnFailure = []string{"http://a/"}, time.Minute, OnFailureFreeze
	unit := service(t, s)
	read := func(dropIns ...string) Policy {
		t.Helper()
		files := []File{unit}
		for _, d := range dropIns {
			files = append(files, File{Path: "50.conf", Data: []byte(d)})
		}
		p, err := ParsePolicy(files...)
		if err != nil {
			t.Fatal(err)
		}
		return p
	}
	if p := read("[X-Zdt]\nHealth=http://b/ http://c/\nBake=2min 30s\n"); !slices.Equal(p.Health, []string{"http://a/", "http://b/", "http://c/"}) || p.Bake != 150*time.Second {
		t.Errorf("added: %+v", p)
	}
	if p := read("[X-Zdt]\nHealth=\nHealth=http://d/\nBake=\nOnFailure=\n", "[X-Zdt]\nBake=90\n"); !slices.Equal(p.Health, []string{"http://d/"}) || p.Bake != 90*time.Second || p.OnFailure != OnFailureRollback {
		t.Errorf("reset: %+v", p)
	}
	if p := read(); p.Keep != DefaultKeep || p.KeepFailed != DefaultKeepFailed {
		t.Errorf("keeps %d and %d", p.Keep, p.KeepFailed)
	}
	if p := read("[X-Zdt]\nLongestRequest=2min\nIdleTimeout=60\n"); p.LongestRequest != 2*time.Minute || p.IdleTimeout != time.Minute {
		t.Errorf("in front: %v and %v", p.LongestRequest, p.IdleTimeout)
	}
	if p := read("[X-Zdt]\nLongestRequest=2min\nIdleTimeout=60\n", "[X-Zdt]\nLongestRequest=\nIdleTimeout=0\n"); p.LongestRequest != 0 || p.IdleTimeout != 0 {
		t.Errorf("in front: %v and %v", p.LongestRequest, p.IdleTimeout)
	}
	if p := read("[X-Zdt]\nKeep=infinity\nKeepFailed=0\n"); p.Keep != math.MaxInt || p.KeepFailed != 0 {
		t.Errorf("keeps %d and %d", p.Keep, p.KeepFailed)
	}
	if p := read("[X-Zdt]\nKeep=12\nKeepFailed=0\n", "[X-Zdt]\nKeepFailed=\n"); p.Keep != 12 || p.KeepFailed != DefaultKeepFailed {
		t.Errorf("keeps %d and %d", p.Keep, p.KeepFailed)
	}
	if p := read("[X-Zdt]\nAcceptRisk=ZDT004,ZDT007 ZDT999\n", "[X-Zdt]\nAcceptRisk=ZDT008\n"); strings.Join(p.AcceptRisk, " ") != "ZDT004 ZDT007 ZDT999 ZDT008" {
		t.Errorf("accepts %q", p.AcceptRisk)
	}
	if p := read("[X-Zdt]\nAcceptRisk=ZDT004\n", "[X-Zdt]\nAcceptRisk=\n"); len(p.AcceptRisk) > 0 {
		t.Errorf("accepts %q", p.AcceptRisk)
	}
	if p := read("[Service]\nHealth=http://b/\n"); len(p.Health) != 1 || len(p.Warnings) != 0 {
		t.Errorf("other sections count: %+v", p)
	}
	if p, err := ParsePolicy(File{Path: "ssh.service", Data: []byte("[Service]\nExecStart=/usr/sbin/sshd\n")}); err != nil || p.Managed {
		t.Errorf("a foreign unit: %+v, %v", p, err)
	}
}

// A line that cannot be read is an error with its place, never a default in disguise.
func TestPolicyErrors(t *testing.T) {
	for line, want := range map[string]string{
		"Bake=soon":                 "not a duration",
		"Bake=1 fortnight":          "unknown unit of time",
		"Bake=infinity":             "not a duration",
		"DrainTimeout=0":            "not between",
		"ReadyTimeout=-5s":          "not a duration",
		"Bake=9d":                   "longer than",
		"Keep=-1":                   "use a number from 0 on, or infinity",
		"Keep=all":                  "not a number of releases",
		"AcceptRisk=all":            "IDs look like",
		"AcceptRisk=ZDT4":           "not an ID",
		"KeepFailed=3 4":            "not a number of releases",
		"LongestRequest=soon":       "not a duration",
		"OnFailure=panic":           "use rollback or freeze",
		"Health=localhost":          "not a URL",
		"Listen=nowhere":            "not an address",
		"Name=a/b":                  "only letters",
		"Exec=../x":                 "plain file name",
		"Runtime=magic":             "unknown",
		"Format=2":                  "newer zdt",
		"Format=x":                  "not a number",
		"noise":                     "is no setting",
		"[X-Zdt":                    "not closed",
		"Health=http://a/ \\\nftp:": "not a URL",
	} {
		p, err := ParsePolicy(service(t, validSpec()), File{Path: "/etc/x.conf", Data: []byte("[X-Zdt]\n" + line + "\n")})
		if err == nil {
			t.Errorf("%s: read as %+v", line, p)
			continue
		}
		text := err.Error()
		var pe *PolicyError
		if errors.As(err, &pe) {
			text += pe.Hint()
			if pe.Line != 2 || pe.Path != "/etc/x.conf" || pe.Hint() == "" {
				t.Errorf("%s: %+v", line, pe)
			}
		}
		if !strings.Contains(text, want) || !strings.Contains(text, "/etc/x.conf") || !p.Managed {
			t.Errorf("%s: %q, want %q", line, text, want)
		}
	}
}

func TestPolicyWarnings(t *testing.T) {
	for _, c := range []struct{ dropIn, want string }{
		{"[X-Zdt]\nBaek=1m\n", "50.conf:2: zdt knows no Baek="},
		{"[Service]\nnoise\n", "50.conf:2: \"noise\" is no setting (there is no =); systemd ignores the line"},
		{"[X-Zdt]\nbake=1m\n", "50.conf:2: zdt knows no bake="},
		{"[X-Zdt]\nDrainTimeout=2m\n", "50.conf:2: DrainTimeout=2m, but the service was told ZDT_DRAIN_TIMEOUT=30s"},
		{"[Service]\nEnvironment=A=b ZDT_READY_TIMEOUT=10s\n", "but the service was told ZDT_READY_TIMEOUT=10s"},
		{"[Service]\nTimeoutStopSec=20\n", "50.conf:2: systemd kills the service after 20s, while it may still drain until 30s"},
		{"[Service]\nEnvironment=ZDT_STREAM_TIMEOUT=1h\n", "may still drain until 1h"},
		{"[Service]\nTimeoutStopSec=infinity\n", ""},
		{"[Service]\nTimeoutStopSec=2min\nEnvironment=ZDT_DRAIN_TIMEOUT=1m\n[X-Zdt]\nDrainTimeout=1m\n", ""},
	} {
		p, err := ParsePolicy(service(t, validSpec()), File{Path: "50.conf", Data: []byte(c.dropIn)})
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, w := range p.Warnings {
			got = append(got, w.String())
			if w.Fix == "" {
				t.Errorf("%s has no fix", w)
			}
		}
		if text := strings.Join(got, "\n"); c.want == "" && text != "" || !strings.Contains(text, c.want) {
			t.Errorf("%q: %q, want %q", c.dropIn, text, c.want)
		}
	}
}

func TestSpan(t *testing.T) {
	for in, want := range map[string]time.Duration{
		"90": 90 * time.Second, "90s": 90 * time.Second, "1m30s": 90 * time.Second, "1min 30s": 90 * time.Second, "1.5 min": 90 * time.Second,
		"500ms": 500 * time.Millisecond, "0": 0, "2h": 2 * time.Hour, "1d": 24 * time.Hour, " 5 sec ": 5 * time.Second,
	} {
		if got, err := parseSpan(in); err != nil || got != want {
			t.Errorf("parseSpan(%q) = %v, %v; want %v", in, got, err, want)
		}
	}
	for _, in := range []string{"", " ", "s", "5 M", "1y", "-1s", "1s,", "infinity", "1..2s", ".", "1e9h", "9999999999999999999s"} {
		if got, err := parseSpan(in); err == nil {
			t.Errorf("parseSpan(%q) = %v, want an error", in, got)
		}
	}
	for d, want := range map[time.Duration]string{
		0: "0s", 30 * time.Second: "30s", 60 * time.Second: "1m", 90 * time.Minute: "1h30m", 1500 * time.Millisecond: "1s500ms", 1: "1ms", time.Second + 1: "1s1ms",
	} {
		got := formatSpan(d)
		goes, err := time.ParseDuration(got)
		own, err2 := parseSpan(got)
		if got != want || err != nil || err2 != nil || goes != own {
			t.Errorf("formatSpan(%v) = %q, read as %v, %v (%v, %v); want %q", d, got, goes, own, err, err2, want)
		}
	}
}

func TestPolicyRequireSignature(t *testing.T) {
	unit := service(t, validSpec())
	for _, tc := range []struct {
		dropIn string
		want   RequireSignature
		bad    bool
	}{
		{"", RequireSignatureNo, false},
		{"RequireSignature=yes\n", RequireSignatureYes, false},
		{"RequireSignature=minisign\n", RequireSignatureMinisign, false},
		{"RequireSignature=minisign\nRequireSignature=ssh\n", RequireSignatureSSH, false},
		{"RequireSignature=yes\nRequireSignature=\n", RequireSignatureNo, false},
		{"RequireSignature=no\n", RequireSignatureNo, false},
		{"RequireSignature=true\n", "", true},
		{"RequireSignature=YES\n", "", true},
		{"RequireSignature=yes no\n", "", true},
	} {
		p, err := ParsePolicy(unit, File{Path: "50.conf", Data: []byte("[X-Zdt]\n" + tc.dropIn)})
		var in *InputError
		switch {
		case tc.bad:
			if !errors.As(err, &in) || in.Fix == "" {
				t.Errorf("%q: %v", tc.dropIn, err)
			}
		case err != nil || p.RequireSignature != tc.want || len(p.Warnings) > 0:
			t.Errorf("%q: %q, %v, %v, want %q", tc.dropIn, p.RequireSignature, err, p.Warnings, tc.want)
		}
	}
}

func TestPolicyRehearse(t *testing.T) {
	for text, want := range map[string]Rehearse{
		"": RehearseYes, "Rehearse=yes\n": RehearseYes, "Rehearse=always\n": RehearseAlways, "Rehearse=yes\nRehearse=no\n": RehearseNo,
		"Rehearse=always\nRehearse=\n": RehearseYes,
	} {
		p, err := ParsePolicy(File{Path: "/u", Data: []byte("[X-Zdt]\nName=web\n" + text)})
		if err != nil || p.Rehearse != want {
			t.Errorf("%q: %q, %v", text, p.Rehearse, err)
		}
	}
	if _, err := ParsePolicy(File{Path: "/u", Data: []byte("[X-Zdt]\nName=web\nRehearse=maybe\n")}); err == nil {
		t.Error("Rehearse=maybe is understood")
	}
}
