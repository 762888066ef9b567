package handoff

import (
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/zdt-dev/zdt/internal/listenfds"
)

func lookup(env map[string]string) func(string) string {
	return func(name string) string { return env[name] }
}

func TestUnderHelper(t *testing.T) {
	for value, want := range map[string]bool{"": false, "7": true, "8": false, "07": false, "x": false} {
		if got := underHelper(lookup(map[string]string{envApp: value}), 7); got != want {
			t.Errorf("%s=%q: %t", envApp, value, got)
		}
	}
}

func TestParseInheritance(t *testing.T) {
	for _, tt := range []struct {
		name        string
		env         map[string]string
		names       []string
		predecessor int
		err         string
	}{
		{name: "nothing", predecessor: -1},
		{name: "from systemd", env: map[string]string{"LISTEN_PID": "7", "LISTEN_FDS": "2", "LISTEN_FDNAMES": "http:admin"}, names: []string{"http", "admin"}, predecessor: -1},
		{name: "several of one name", env: map[string]string{"LISTEN_PID": "7", "LISTEN_FDS": "2", "LISTEN_FDNAMES": "http:http"}, names: []string{"http", "http"}, predecessor: -1},
		{name: "without names", env: map[string]string{"LISTEN_PID": "7", "LISTEN_FDS": "2"}, names: []string{"unknown", "unknown"}, predecessor: -1},
		{name: "for another process", env: map[string]string{"LISTEN_PID": "8", "LISTEN_FDS": "2", "LISTEN_FDNAMES": "a:b"}, predecessor: -1},
		{name: "nonsense for another process", env: map[string]string{"LISTEN_PID": "8", "LISTEN_FDS": "x"}, predecessor: -1},
		{name: "for nobody", env: map[string]string{"LISTEN_FDS": "2"}, predecessor: -1},
		{name: "no number", env: map[string]string{"LISTEN_PID": "7", "LISTEN_FDS": "two"}, predecessor: -1, err: `LISTEN_FDS="two"`},
		{name: "negative", env: map[string]string{"LISTEN_PID": "7", "LISTEN_FDS": "-1"}, predecessor: -1, err: `LISTEN_FDS="-1"`},
		{name: "too many", env: map[string]string{"LISTEN_PID": "7", "LISTEN_FDS": "99999999"}, predecessor: -1, err: "LISTEN_FDS"},
		{name: "too few names", env: map[string]string{"LISTEN_PID": "7", "LISTEN_FDS": "2", "LISTEN_FDNAMES": "a"}, predecessor: -1, err: "1 names for LISTEN_FDS=2"},
		{name: "too many names", env: map[string]string{"LISTEN_PID": "7", "LISTEN_FDS": "1", "LISTEN_FDNAMES": "a:b"}, predecessor: -1, err: "2 names for LISTEN_FDS=1"},
		{name: "from a predecessor", env: map[string]string{envPredecessor: "4", "LISTEN_FDS": "1", "LISTEN_FDNAMES": "http"}, names: []string{"http"}, predecessor: 4},
		{name: "a predecessor without sockets", env: map[string]string{envPredecessor: "3", "LISTEN_FDS": "0", "LISTEN_FDNAMES": ""}, predecessor: 3},
		{name: "a predecessor on a standard descriptor", env: map[string]string{envPredecessor: "2"}, predecessor: -1, err: envPredecessor},
		{name: "a predecessor on no descriptor", env: map[string]string{envPredecessor: "x"}, predecessor: -1, err: envPredecessor},
	} {
		t.Run(tt.name, func(t *testing.T) {
			in, err := parseInheritance(lookup(tt.env), 7)
			switch {
			case tt.err != "":
				if err == nil || !strings.Contains(err.Error(), tt.err) {
					t.Errorf("error %v, want one with %q", err, tt.err)
				}
			case err != nil:
				t.Error(err)
			case !slices.Equal(in.names, tt.names) || in.predecessor != tt.predecessor:
				t.Errorf("%+v", in)
			}
		})
	}
}

// Whatever the environment says, the names fit the descriptors.
func FuzzParseInheritance(f *testing.F) {
	f.Add("2", "a:b", "7", "")
	f.Add("1", "", "7", "4")
	f.Add("-1", ":", "8", "x")
	f.Fuzz(func(t *testing.T, fds, names, pid, predecessor string) {
		in, err := parseInheritance(lookup(map[string]string{
			"LISTEN_FDS": fds, "LISTEN_FDNAMES": names, "LISTEN_PID": pid, envPredecessor: predecessor,
		}), 7)
		if err != nil {
			return
		}
		if n, _ := strconv.Atoi(fds); len(in.names) != 0 && len(in.names) != n {
			t.Errorf("%d names for LISTEN_FDS=%q", len(in.names), fds)
		}
		if in.predecessor != -1 && in.predecessor < listenfds.Start {
			t.Errorf("predecessor %d", in.predecessor)
		}
		if in.predecessor == -1 && pid != "7" && in.names != nil {
			t.Errorf("took descriptors meant for pid %q", pid)
		}
	})
}

func TestSuccessorEnviron(t *testing.T) {
	base := []string{
		"PATH=/bin", "LISTEN_PID=7", "LISTEN_FDS=9", "LISTEN_FDNAMES=x", "LISTEN_PIDFDID=1", "NOTIFY_SOCKET=/run/n", "WATCHDOG_USEC=1",
		"WATCHDOG_PID=7", "SYSTEMD_EXEC_PID=7", envPredecessor + "=3", "LISTEN_PIDX=kept", "ODD",
	}
	saved := slices.Clone(base)
	got := successorEnviron(base, []string{"http", "admin"})
	want := []string{
		"PATH=/bin", "NOTIFY_SOCKET=/run/n", "WATCHDOG_USEC=1", "LISTEN_PIDX=kept", "ODD",
		"LISTEN_FDS=2", "LISTEN_FDNAMES=http:admin", envPredecessor + "=5",
	}
	if !slices.Equal(got, want) {
		t.Errorf("got %q\nwant %q", got, want)
	}
	if !slices.Equal(base, saved) {
		t.Error("the base was changed")
	}
	// What one generation writes is what the next one reads.
	env := map[string]string{}
	for _, kv := range got {
		k, v, _ := strings.Cut(kv, "=")
		env[k] = v
	}
	in, err := parseInheritance(lookup(env), 8)
	if err != nil || !slices.Equal(in.names, []string{"http", "admin"}) || in.predecessor != 5 {
		t.Errorf("the successor reads %+v, %v", in, err)
	}
}

func TestOptions(t *testing.T) {
	for _, tt := range []struct {
		name  string
		o     Options
		env   map[string]string
		check func(o Options) bool
		err   string
	}{
		{name: "defaults", check: func(o Options) bool {
			return o.ReadyTimeout == DefaultReadyTimeout && o.HoldTimeout == DefaultHoldTimeout && o.DrainTimeout == DefaultDrainTimeout &&
				o.StreamTimeout == DefaultDrainTimeout && o.IdleGrace == DefaultIdleGrace && o.StopGrace == DefaultStopGrace &&
				o.ReleaseTimeout == DefaultReleaseTimeout && o.ControlSocket == "" && o.Service != ""
		}},
		{name: "the program's own", o: Options{ReadyTimeout: 1, DrainTimeout: 2, Service: "web", ControlSocket: "/c"}, check: func(o Options) bool {
			return o.ReadyTimeout == 1 && o.DrainTimeout == 2 && o.StreamTimeout == 2 && o.Service == "web" && o.ControlSocket == "/c"
		}},
		{name: "the operator's override", o: Options{ReadyTimeout: 1, DrainTimeout: 2},
			env: map[string]string{"ZDT_READY_TIMEOUT": "3s", "ZDT_HOLD_TIMEOUT": "4s", "ZDT_DRAIN_TIMEOUT": "5s", "ZDT_STREAM_TIMEOUT": "6s", "ZDT_IDLE_GRACE": "7s"},
			check: func(o Options) bool {
				return o.ReadyTimeout == 3*time.Second && o.HoldTimeout == 4*time.Second && o.DrainTimeout == 5*time.Second && o.StreamTimeout == 6*time.Second && o.IdleGrace == 7*time.Second
			}},
		{name: "streams follow requests", env: map[string]string{"ZDT_DRAIN_TIMEOUT": "5s"}, check: func(o Options) bool { return o.StreamTimeout == 5*time.Second }},
		{name: "names from the unit", env: map[string]string{"ZDT_SERVICE": "web", "RUNTIME_DIRECTORY": "/run/other:/run/zdt/web"}, check: func(o Options) bool {
			return o.Service == "web" && o.ControlSocket == "/run/zdt/web/control.sock"
		}},
		{name: "no control socket", o: Options{ControlSocket: "-"}, env: map[string]string{"RUNTIME_DIRECTORY": "/run/zdt/web"}, check: func(o Options) bool { return o.ControlSocket == "" }},
		{name: "under zdt run", env: map[string]string{"ZDT_GENERATION": "3"}, check: func(o Options) bool { return o.generation == 3 }},
		{name: "no generation", env: map[string]string{"ZDT_GENERATION": "0"}, err: `ZDT_GENERATION="0"`},
		{name: "no duration", env: map[string]string{"ZDT_DRAIN_TIMEOUT": "30"}, err: `ZDT_DRAIN_TIMEOUT="30"`},
		{name: "zero", env: map[string]string{"ZDT_IDLE_GRACE": "0s"}, err: `ZDT_IDLE_GRACE="0s"`},
		{name: "negative in the environment", env: map[string]string{"ZDT_READY_TIMEOUT": "-1s"}, err: "ZDT_READY_TIMEOUT"},
		{name: "negative in the program", o: Options{StopGrace: -1}, err: "negative"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			o, err := tt.o.withDefaults(lookup(tt.env))
			switch {
			case tt.err != "":
				if err == nil || !strings.Contains(err.Error(), tt.err) {
					t.Errorf("error %v, want one with %q", err, tt.err)
				}
			case err != nil:
				t.Error(err)
			case !tt.check(o):
				t.Errorf("%+v", o)
			}
		})
	}
}
