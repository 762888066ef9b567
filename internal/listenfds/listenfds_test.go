package listenfds

import (
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
)

func lookup(env map[string]string) func(string) string {
	return func(name string) string { return env[name] }
}

func TestNames(t *testing.T) {
	for _, tt := range []struct {
		name  string
		env   map[string]string
		names []string
		meant bool
		err   string
	}{
		{name: "nothing"},
		{name: "from systemd", env: map[string]string{"LISTEN_PID": "7", "LISTEN_FDS": "2", "LISTEN_FDNAMES": "http:admin"}, names: []string{"http", "admin"}, meant: true},
		{name: "several of one name", env: map[string]string{"LISTEN_PID": "7", "LISTEN_FDS": "2", "LISTEN_FDNAMES": "http:http"}, names: []string{"http", "http"}, meant: true},
		{name: "without names", env: map[string]string{"LISTEN_PID": "7", "LISTEN_FDS": "2"}, names: []string{"unknown", "unknown"}, meant: true},
		{name: "for another process", env: map[string]string{"LISTEN_PID": "8", "LISTEN_FDS": "2", "LISTEN_FDNAMES": "a:b"}, names: []string{"a", "b"}},
		{name: "for nobody", env: map[string]string{"LISTEN_FDS": "1"}, names: []string{"unknown"}},
		{name: "a pid alone", env: map[string]string{"LISTEN_PID": "7"}},
		{name: "none", env: map[string]string{"LISTEN_PID": "7", "LISTEN_FDS": "0", "LISTEN_FDNAMES": ""}, meant: true},
		{name: "no number", env: map[string]string{"LISTEN_FDS": "two"}, err: `LISTEN_FDS="two"`},
		{name: "negative", env: map[string]string{"LISTEN_FDS": "-1"}, err: `LISTEN_FDS="-1"`},
		{name: "too many", env: map[string]string{"LISTEN_FDS": "99999999"}, err: "LISTEN_FDS"},
		{name: "too few names", env: map[string]string{"LISTEN_FDS": "2", "LISTEN_FDNAMES": "a"}, err: "1 names for LISTEN_FDS=2"},
		{name: "too many names", env: map[string]string{"LISTEN_FDS": "1", "LISTEN_FDNAMES": "a:b"}, err: "2 names for LISTEN_FDS=1"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			names, err := Names(lookup(tt.env))
			switch {
			case tt.err != "":
				if err == nil || !strings.Contains(err.Error(), tt.err) {
					t.Errorf("error %v, want one with %q", err, tt.err)
				}
				return
			case err != nil:
				t.Error(err)
			case !slices.Equal(names, tt.names):
				t.Errorf("names %q, want %q", names, tt.names)
			}
			if got := MeantFor(lookup(tt.env), 7); got != tt.meant {
				t.Errorf("meant for 7: %v", got)
			}
		})
	}
}

// Whatever the environment says, the names fit the descriptors, and what is
// passed on is read as it was meant.
func FuzzNames(f *testing.F) {
	f.Add("2", "a:b")
	f.Add("1", "")
	f.Add("-1", ":")
	f.Fuzz(func(t *testing.T, fds, text string) {
		names, err := Names(lookup(map[string]string{"LISTEN_FDS": fds, "LISTEN_FDNAMES": text}))
		if err != nil {
			return
		}
		if n, _ := strconv.Atoi(fds); len(names) != n {
			t.Errorf("%d names for LISTEN_FDS=%q", len(names), fds)
		}
		if slices.ContainsFunc(names, func(name string) bool { return !ValidName(name) }) {
			return // such a name is not passed on
		}
		env := map[string]string{}
		for _, kv := range Environ(names) {
			k, v, _ := strings.Cut(kv, "=")
			env[k] = v
		}
		if again, err := Names(lookup(env)); err != nil || !slices.Equal(again, names) {
			t.Errorf("%q became %q, %v", names, again, err)
		}
	})
}

func TestStrip(t *testing.T) {
	base := []string{
		"PATH=/bin", "LISTEN_PID=7", "LISTEN_FDS=9", "LISTEN_FDNAMES=x", "LISTEN_PIDFDID=1", "NOTIFY_SOCKET=/run/n", "WATCHDOG_USEC=1",
		"WATCHDOG_PID=7", "SYSTEMD_EXEC_PID=7", "MINE=3", "LISTEN_PIDX=kept", "ODD",
	}
	saved := slices.Clone(base)
	got := Strip(base, "MINE")
	if want := []string{"PATH=/bin", "NOTIFY_SOCKET=/run/n", "WATCHDOG_USEC=1", "LISTEN_PIDX=kept", "ODD"}; !slices.Equal(got, want) {
		t.Errorf("got %q\nwant %q", got, want)
	}
	if !slices.Equal(base, saved) {
		t.Error("the base was changed")
	}
}

func TestForget(t *testing.T) {
	t.Setenv("LISTEN_FDS", "1")
	t.Setenv("WATCHDOG_PID", "7")
	t.Setenv("WATCHDOG_USEC", "7")
	Forget()
	for name, want := range map[string]bool{"LISTEN_FDS": false, "WATCHDOG_PID": false, "WATCHDOG_USEC": true} {
		if _, ok := os.LookupEnv(name); ok != want {
			t.Errorf("%s is there: %v", name, ok)
		}
	}
}

func TestValidName(t *testing.T) {
	for name, want := range map[string]bool{
		"http": true, "web.socket": true, "a b": true, strings.Repeat("x", 255): true,
		"": false, "a:b": false, "a\n": false, "é": false, "\x7f": false, strings.Repeat("x", 256): false,
	} {
		if got := ValidName(name); got != want {
			t.Errorf("ValidName(%q) = %v", name, got)
		}
	}
}
