package cmd

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/zdt-dev/zdt/dbusctl"
	"github.com/zdt-dev/zdt/internal/fdstore"
	"github.com/zdt-dev/zdt/unitgen"
)

// quietSystemd does whatever it is told.
type quietSystemd struct{ fakeSystemd }

func (quietSystemd) DaemonReload(context.Context) error             { return nil }
func (quietSystemd) Enable(context.Context, bool, ...string) error  { return nil }
func (quietSystemd) Disable(context.Context, bool, ...string) error { return nil }
func (quietSystemd) Version(context.Context) (int, string, error)   { return 257, "257", nil }
func (quietSystemd) Properties(context.Context, string) (map[string]any, error) {
	return map[string]any{"TimeoutStopUSec": uint64(5e6)}, nil
}

// foundling is a service that somebody else has written.
type foundling struct {
	dir   string
	paths Paths
	bus   systemd
	f     *factory
}

func newFoundling(t *testing.T, unit string) *foundling {
	t.Helper()
	f, _, _ := testFactory(t, false)
	dir := t.TempDir()
	x := &foundling{dir: dir, f: f, paths: Paths{Units: filepath.Join(dir, "units"), State: filepath.Join(dir, "state"), Runtime: filepath.Join(dir, "run"), Locks: filepath.Join(dir, "locks")}}
	fragment := filepath.Join(x.paths.Units, "web.service")
	if err := os.MkdirAll(x.paths.Units, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(fragment, []byte(unit), 0o644); err != nil {
		t.Fatal(err)
	}
	exe := filepath.Join(dir, "web")
	if err := os.WriteFile(exe, []byte("#!/bin/sh\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	u := dbusctl.Unit{Name: "web.service", LoadState: "loaded", ActiveState: "inactive", FragmentPath: fragment}
	u.ExecStartPath = exe
	x.bus = quietSystemd{fakeSystemd{units: map[string]dbusctl.Unit{"web.service": u}}}
	return x
}

func (x *foundling) plan(t *testing.T, o adoptOptions) (*adoptPlan, error) {
	t.Helper()
	p := &adoptPlan{name: "web", unit: "web.service", paths: x.paths, bus: x.bus, moment: filepath.Join(x.dir, "moment")}
	if err := p.read(t.Context(), x.f); err != nil {
		t.Fatal(err)
	}
	if o.Undo {
		return p, p.planBack(o)
	}
	return p, p.plan(t.Context(), x.f, o, "/usr/local/bin/zdt")
}

// tree is everything below the directory of units, and the record.
func (x *foundling) tree(t *testing.T) string {
	t.Helper()
	var b strings.Builder
	for _, dir := range []string{x.paths.Units, x.paths.State} {
		filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
			if err != nil || strings.Contains(path, "/releases") || d.Name() == "current" || d.Name() == "history.ndjson" || d.Name() == ".lock" || path == x.paths.State || path == filepath.Join(x.paths.State, "web") {
				return nil
			}
			data, _ := os.ReadFile(path)
			fmt.Fprintf(&b, "%s %x\n", path, sha256.Sum256(data))
			return nil
		})
	}
	return b.String()
}

const foundUnit = "[Service]\nExecStart=/opt/web --port 80\nType=notify\nKillSignal=SIGINT\nPIDFile=/run/web.pid\nRuntimeDirectory=web\n"

var errCut = errors.New("cut off")

// Wherever an adoption ends, running it again completes it, and an undoing leaves nothing of it. So it is with an undoing.
func TestAdoptIsCutOff(t *testing.T) {
	o := adoptOptions{Name: "web", Run: []string{"--pass=systemd"}}
	for _, undo := range []bool{false, true} {
		for cut := 0; ; cut++ {
			x := newFoundling(t, foundUnit)
			before := x.tree(t)
			run := func(o adoptOptions, cut int) (steps int) {
				p, err := x.plan(t, o)
				if err != nil {
					t.Fatalf("%+v: %v", o, err)
				}
				if cut >= 0 && cut < len(p.steps) {
					p.steps[cut].do = func(context.Context, *factory) error { return errCut }
				}
				if err := p.apply(t.Context(), x.f); err != nil && !errors.Is(err, errCut) {
					t.Fatalf("%+v: %v", o, err)
				}
				return len(p.steps)
			}
			steps := 0
			if undo {
				run(o, -1)
				steps = run(adoptOptions{Name: "web", Undo: true}, cut)
			} else {
				steps = run(o, cut)
			}
			if cut%2 == 0 { // and an undoing needs no completion before
				run(o, -1)
				p, err := x.plan(t, o)
				if err != nil || len(p.changes) > 0 {
					t.Errorf("undo %t, cut at %d: run again there is still %+v, %v", undo, cut, p.changes, err)
				}
			}
			run(adoptOptions{Name: "web", Undo: true}, -1)
			if after := x.tree(t); after != before {
				t.Errorf("undo %t, cut at %d: before\n%s\nafter\n%s", undo, cut, before, after)
			}
			if cut >= steps {
				break
			}
		}
	}
}

// What an adoption wrote is neither overwritten nor removed when somebody has edited it, unless that is wanted; then a copy is kept.
func TestAdoptEdited(t *testing.T) {
	x := newFoundling(t, foundUnit)
	o := adoptOptions{Name: "web", Run: []string{"--pass=systemd"}}
	p, err := x.plan(t, o)
	if err == nil {
		err = p.apply(t.Context(), x.f)
	}
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(x.paths.Units, "web.service.d", unitgen.AdoptFile)
	if err := os.WriteFile(path, []byte("[Service]\nNice=5\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	for _, o := range []adoptOptions{o, {Name: "web", Undo: true}} {
		if _, err := x.plan(t, o); codeOf(err) != ExitRefused {
			t.Errorf("%+v: %v", o, err)
		}
		o.Force = true
		p, err := x.plan(t, o)
		if err == nil {
			err = p.apply(t.Context(), x.f)
		}
		if err != nil {
			t.Fatal(err)
		}
		copies, _ := filepath.Glob(path + ".zdt-saved-*")
		if len(copies) != 1 {
			t.Errorf("%+v: copies %q", o, copies)
		}
		for _, c := range copies {
			os.Remove(c)
		}
		os.MkdirAll(filepath.Dir(path), 0o755)
		os.WriteFile(path, []byte("[Service]\nNice=5\n"), 0o644)
	}
}

// What cannot work afterwards is refused before anything is written.
func TestAdoptRefuses(t *testing.T) {
	const begin = "[Service]\nExecStart=/opt/web --port 80\n"
	for _, tt := range []struct {
		name, unit string
		o          adoptOptions
		want       string
	}{
		{"two programs", begin + "ExecStart=/bin/b\n", adoptOptions{}, "2 commands in ExecStart="},
		{"a name of its own", "[Service]\nExecStart=@/opt/web httpd\n", adoptOptions{}, "another name"},
		{"no readiness", begin, adoptOptions{}, "when it is ready"},
		{"background", begin + "Type=forking\n", adoptOptions{Run: []string{"--ready=alive:1s"}}, "goes into the background"},
		{"how it is told", begin + "Type=notify\n", adoptOptions{Listen: []string{":80=http"}}, "how it learns of a socket"},
		{"not in ExecStart=", begin + "Type=notify\n", adoptOptions{Exec: "/bin/sh"}, "does not mention"},
		{"both", begin + "Type=notify\n", adoptOptions{Exec: "/bin/sh", InPlace: true}, "exclude each other"},
		{"under zdt", "[Service]\nExecStart=/usr/local/bin/zdt run -- /opt/web\n", adoptOptions{}, "runs under zdt run already"},
		{"a directory", begin + "RuntimeDirectory=web\nExecStartPre=/bin/touch ${RUNTIME_DIRECTORY}/x\n", adoptOptions{}, "the variable names"},
		{"zdt's own", begin + "[X-Zdt]\nName=web\nFormat=1\n", adoptOptions{}, "zdt's already"},
		{"no socket", begin + "Type=notify\n", adoptOptions{Socket: true}, "no socket"},
		{"a runtime", begin, adoptOptions{Runtime: "magic"}, "unknown"},
	} {
		x := newFoundling(t, tt.unit)
		if tt.name == "under zdt" {
			bus := x.bus.(quietSystemd)
			u := bus.units["web.service"]
			u.ExecStartPath = "/usr/local/bin/zdt"
			bus.units["web.service"] = u
		}
		before := x.tree(t)
		p, err := x.plan(t, tt.o)
		if err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: %v\n%+v", tt.name, err, p.adoption)
		}
		if x.tree(t) != before {
			t.Errorf("%s: something was written", tt.name)
		}
	}
}

// What a restart that was cut off has left in /run goes with the next adoption or undoing.
func TestAdoptClearsUp(t *testing.T) {
	o := adoptOptions{Name: "web", Run: []string{"--pass=systemd"}}
	for _, o := range []adoptOptions{o, {Name: "web", Undo: true}} {
		x := newFoundling(t, foundUnit)
		left := filepath.Join(x.dir, "moment", "web.service.d", overlayFile)
		if err := os.MkdirAll(filepath.Dir(left), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(left, []byte("[Service]\n"), 0o644); err != nil {
			t.Fatal(err)
		}
		p, err := x.plan(t, o)
		if err == nil {
			err = p.apply(t.Context(), x.f)
		}
		if err != nil {
			t.Fatal(err)
		}
		if _, err := os.Stat(left); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%+v: it is still there: %v", o, err)
		}
	}
}

// All addresses of IPv4 and all of IPv6 are two sockets of nginx as Debian sets it up, and each keeps its name.
func TestAdoptBothFamilies(t *testing.T) {
	p := &adoptPlan{name: "web"}
	own := []fdstore.Held{{Network: "tcp", Address: "0.0.0.0:80"}, {Network: "tcp", Address: "[::]:80"}}
	p.adoption.Bind = p.bindings(own)
	p.findGap(own)
	want := []fdstore.Wish{{Name: "web-80", Network: "tcp", Address: "0.0.0.0:80"}, {Name: "web-80x", Network: "tcp", Address: "[::]:80"}}
	if !slices.Equal(p.holds, want) {
		t.Errorf("got %+v, want %+v", p.holds, want)
	}
}

// toldSystemd notes what it is told to do. Its one dependent unit is stopped with the service.
type toldSystemd struct {
	quietSystemd
	did *[]string
}

func (s toldSystemd) do(what string) error { *s.did = append(*s.did, what); return nil }

func (s toldSystemd) Stop(_ context.Context, name string) error {
	u := s.units["worker.service"]
	u.ActiveState = "inactive"
	s.units["worker.service"] = u
	return s.do("stop " + name)
}
func (s toldSystemd) Start(_ context.Context, name string) error { return s.do("start " + name) }
func (s toldSystemd) ResetFailed(context.Context, string) error  { return s.do("reset") }
func (s toldSystemd) Disable(_ context.Context, _ bool, names ...string) error {
	return s.do("disable " + strings.Join(names, " "))
}

func (s toldSystemd) Properties(_ context.Context, name string) (map[string]any, error) {
	if name == "web.service" {
		return map[string]any{"RequiredBy": []string{"worker.service"}, "TimeoutStopUSec": uint64(5e6)}, nil
	}
	return map[string]any{"RequiredBy": []string{"web.service"}}, nil
}

func (x *foundling) tell() *[]string {
	bus := toldSystemd{quietSystemd: x.bus.(quietSystemd), did: new([]string)}
	bus.units["worker.service"] = dbusctl.Unit{Name: "worker.service", LoadState: "loaded", ActiveState: "active"}
	x.bus = bus
	return bus.did
}

// An adoption that fails starts the old program again, and what depends on it. What other services of zdt need stays.
func TestAdoptGoesBack(t *testing.T) {
	for _, others := range []bool{false, true} {
		x := newFoundling(t, foundUnit)
		did := x.tell()
		p, err := x.plan(t, adoptOptions{Name: "web", Run: []string{"--pass=systemd"}})
		if err != nil {
			t.Fatal(err)
		}
		if others {
			if err := os.MkdirAll(x.paths.StateDir("other"), 0o755); err != nil {
				t.Fatal(err)
			}
		}
		p.back = func(ctx context.Context, f *factory, cause error) error {
			p.u.MainPID = 1 // it runs no more
			return p.goBack(ctx, f, replacement{unit: p.unit, dir: p.moment}, cause)
		}
		p.steps = append(p.steps, initStep{title: "restart", replaces: true, do: func(context.Context, *factory) error { return errCut }})
		if err := p.apply(t.Context(), x.f); codeOf(err) != ExitRolledBack {
			t.Fatal(err)
		}
		want := "stop web.service, disable zdt-reconcile.service, reset, start web.service, start worker.service"
		if others {
			want = strings.Replace(want, " disable zdt-reconcile.service,", "", 1)
		}
		if got := strings.Join(*did, ", "); got != want {
			t.Errorf("other services %t: got %s, want %s", others, got, want)
		}
		if _, err := os.Stat(filepath.Join(x.paths.Units, unitgen.ReconcileUnit)); (err == nil) != others {
			t.Errorf("other services %t: %v", others, err)
		}
	}
}

// Wherever an undoing with a restart was cut off, running it again completes it.
func TestAdoptUndoRestartIsCutOff(t *testing.T) {
	for cut := 0; ; cut++ {
		x := newFoundling(t, foundUnit)
		before := x.tree(t)
		did := x.tell()
		p, err := x.plan(t, adoptOptions{Name: "web", Run: []string{"--pass=systemd"}})
		if err == nil {
			err = p.apply(t.Context(), x.f)
		}
		if err != nil {
			t.Fatal(err)
		}
		undo := func(cut int) int {
			p := &adoptPlan{name: "web", unit: "web.service", paths: x.paths, bus: x.bus, moment: filepath.Join(x.dir, "moment")}
			err := p.read(t.Context(), x.f)
			p.u.ActiveState, p.switched = "active", !slices.Contains(*did, "start web.service")
			if err == nil && (p.switched || len(p.record.Files) > 0) {
				err = p.planBack(adoptOptions{Name: "web", Undo: true, Restart: true})
			}
			if err != nil {
				t.Fatal(err)
			}
			if cut < len(p.steps) {
				p.steps[cut].do = func(context.Context, *factory) error { return errCut }
			}
			if err := p.apply(t.Context(), x.f); err != nil && !errors.Is(err, errCut) {
				t.Fatalf("cut at %d: %v", cut, err)
			}
			return len(p.steps)
		}
		steps := undo(cut)
		undo(1 << 10)
		if after := x.tree(t); after != before {
			t.Errorf("cut at %d: before\n%s\nafter\n%s", cut, before, after)
		}
		if got := strings.Join(slices.DeleteFunc(*did, func(s string) bool { return strings.HasPrefix(s, "disable") }), ", "); got != "stop web.service, reset, start web.service, start worker.service" {
			t.Errorf("cut at %d: %s", cut, got)
		}
		if _, err := os.Stat(filepath.Join(x.dir, "moment", "web.service.d")); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("cut at %d: the overlay is left: %v", cut, err)
		}
		if cut >= steps {
			break
		}
	}
}

// A start under zdt that was left half done is no state to be left in.
func TestAdoptUndoHalfStarted(t *testing.T) {
	for _, state := range []string{"activating", "failed"} {
		x := newFoundling(t, foundUnit)
		did := x.tell()
		p, err := x.plan(t, adoptOptions{Name: "web", Run: []string{"--pass=systemd"}})
		if err == nil {
			err = p.apply(t.Context(), x.f)
		}
		if err != nil {
			t.Fatal(err)
		}
		units := x.bus.(toldSystemd).units
		u := units["web.service"]
		u.ActiveState = state
		units["web.service"] = u
		if _, err := x.plan(t, adoptOptions{Name: "web", Undo: true}); (codeOf(err) == ExitRefused) != (state == "activating") {
			t.Errorf("%s, without --restart: %v", state, err)
		}
		p, err = x.plan(t, adoptOptions{Name: "web", Undo: true, Restart: true})
		if err == nil {
			err = p.apply(t.Context(), x.f)
		}
		if got := strings.Join(*did, ", "); err != nil || !strings.Contains(got, "stop web.service, reset, start web.service") {
			t.Errorf("%s: %s, %v", state, got, err)
		}
	}
}

// What systemd is in the middle of, or has not read, is left alone.
func TestAdoptWaits(t *testing.T) {
	for want, change := range map[string]func(*dbusctl.Unit){
		"is activating":   func(u *dbusctl.Unit) { u.ActiveState = "activating" },
		"is deactivating": func(u *dbusctl.Unit) { u.ActiveState = "deactivating" },
		"has not read":    func(u *dbusctl.Unit) { u.NeedDaemonReload = true },
	} {
		x := newFoundling(t, foundUnit)
		bus := x.bus.(quietSystemd)
		u := bus.units["web.service"]
		change(&u)
		bus.units["web.service"] = u
		if _, err := x.plan(t, adoptOptions{Name: "web", Run: []string{"--pass=systemd"}}); codeOf(err) != ExitRefused || !strings.Contains(err.Error(), want) {
			t.Errorf("want %q: %v", want, err)
		}
	}
	x := newFoundling(t, foundUnit)
	p, err := x.plan(t, adoptOptions{Name: "web", Run: []string{"--pass=systemd"}})
	if err != nil {
		t.Fatal(err)
	}
	p.u.MainPID = 7 // and now it is another
	if err := p.apply(t.Context(), x.f); codeOf(err) != ExitBusy {
		t.Errorf("a service that was restarted meanwhile: %v", err)
	}
}

// nginx that its unit has in the foreground is not told so again, which it would not start with.
func TestAdoptForegroundNginx(t *testing.T) {
	for kind, want := range map[string]string{"simple": "", "forking": " -g 'daemon off;'"} {
		x := newFoundling(t, "[Service]\nExecStart=/usr/sbin/nginx\nType="+kind+"\n")
		bus := x.bus.(quietSystemd)
		u := bus.units["web.service"]
		u.ExecStartPath = "/usr/sbin/nginx"
		bus.units["web.service"] = u
		p, err := x.plan(t, adoptOptions{Name: "web", Run: []string{"--ready=alive:1s"}})
		if err != nil || p.adoption.Command != "/usr/sbin/nginx"+want {
			t.Errorf("Type=%s: %q, %v", kind, p.adoption.Command, err)
		}
	}
}

// A drop-in that is read after zdt's must not take back what that says.
func TestAdoptOverruled(t *testing.T) {
	for _, tt := range []struct{ name, text, want string }{
		{"zz-local.conf", "[Service]\nExecStart=\nExecStart=/opt/web --port 81\n", "overrule its ExecStart="},
		{"zz-local.conf", "[Service]\nRuntimeDirectory=\n", "overrule its RuntimeDirectory="},
		{"zz-local.conf", "[Service]\nRuntimeDirectory=more\nEnvironment=A=b\nLimitNOFILE=4096\nRestart=always\n", ""},
		{"override.conf", "[Service]\nExecStart=\nExecStart=/opt/web --port 81\n", ""},
	} {
		x := newFoundling(t, foundUnit)
		path := filepath.Join(x.paths.Units, "web.service.d", tt.name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte(tt.text), 0o644)); err != nil {
			t.Fatal(err)
		}
		bus := x.bus.(quietSystemd)
		u := bus.units["web.service"]
		u.DropInPaths = []string{path}
		bus.units["web.service"] = u
		_, err := x.plan(t, adoptOptions{Name: "web", Run: []string{"--pass=systemd"}})
		if got := fmt.Sprint(err); (err == nil) != (tt.want == "") || !strings.Contains(got, tt.want) {
			t.Errorf("%s: %s: %v", tt.name, tt.text, err)
		}
	}
}

// A program that was started again and does not listen is not back.
func TestAdoptAwaitsTheOldProgram(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	p := &adoptPlan{unit: "web.service", u: dbusctl.Unit{Service: dbusctl.Service{ControlGroup: "/none"}}, served: []fdstore.Held{{Network: "tcp", Address: "127.0.0.1:1"}}}
	if err := p.awaitServed(ctx); err == nil || !strings.Contains(err.Error(), "nobody listens on tcp 127.0.0.1:1") {
		t.Errorf("got %v", err)
	}
}

// Heartbeats of workers would not be heard from the moment on in which systemd reads the drop-in.
func TestAdoptHeartbeats(t *testing.T) {
	x := newFoundling(t, foundUnit+"NotifyAccess=all\n")
	bus := x.bus.(quietSystemd)
	u := bus.units["web.service"]
	u.ActiveState = "active"
	bus.units["web.service"] = u
	p := &adoptPlan{name: "web", unit: "web.service", paths: x.paths, bus: x.bus, moment: x.dir}
	if err := p.read(t.Context(), x.f); err != nil {
		t.Fatal(err)
	}
	p.props.Properties = map[string]any{"WatchdogUSec": uint64(10e6)}
	for _, restart := range []bool{false, true} {
		if err := p.dangerous(adoptOptions{Restart: restart}); (err == nil) != restart {
			t.Errorf("restart %t: %v", restart, err)
		}
	}
}
