package cmd

import (
	"context"
	"errors"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/zdt-dev/zdt/internal/fdstore"
	"github.com/zdt-dev/zdt/unitgen"
)

// The old program is ended as its own unit said, whatever the new one says, and its sockets are taken before.
func TestReplacementText(t *testing.T) {
	old, err := unitgen.ReadSettings(unitgen.File{Data: []byte("[Unit]\nDescription=x\n[Service]\nExecStart=/bin/a\nKillSignal=SIGQUIT\nExecStop=/bin/b \"c d\" \\\n  -e\nTimeoutStopSec=5\n")})
	if err != nil {
		t.Fatal(err)
	}
	r := replacement{unit: "web.service", dir: "/run/systemd/system", zdt: "/usr/bin/zdt", stop: stopSettings(old)}
	want := `# Written by zdt for one restart, and removed after it.
[Service]
ExecStop=
KillMode=control-group
KillSignal=SIGTERM
KillSignal=SIGQUIT
ExecStop=/bin/b "c d"    -e
TimeoutStopSec=5
`
	if got := string(r.text()); got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
	r.holds = []fdstore.Wish{{Name: "http", Network: "tcp", Address: "[::]:80"}}
	want += "NotifyAccess=exec\nFileDescriptorStoreMax=256\nExecReload=\nExecReload=+/usr/bin/zdt keep-sockets \"http=tcp:[::]:80\"\n"
	if got := string(r.text()); got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
}

// Nothing is restarted unless systemd has the sockets, and nothing of the overlay is left.
func TestReplacementSteps(t *testing.T) {
	for _, tt := range []struct {
		name          string
		before, after uint64
		again         bool
		want          string
	}{
		{"kept", 0, 1, false, "reload signal restart reload"},
		{"kept beside others", 3, 4, false, "reload signal restart reload"},
		{"not kept", 0, 0, false, "reload signal, clear: reload"},
		{"not kept beside others", 3, 3, false, "reload signal, clear: reload"},
		{"kept before", 1, 1, true, "reload signal restart reload"},
	} {
		var did []string
		do := func(what string) func(context.Context) error {
			return func(context.Context) error { did = append(did, what); return nil }
		}
		r := replacement{unit: "web.service", dir: t.TempDir(), holds: []fdstore.Wish{{Name: "http", Network: "tcp", Address: "[::]:80"}}, bus: replacer{
			reload: do("reload"), signal: do("signal"), restart: do("restart"),
			stored: func(context.Context) (uint64, error) {
				if slices.Contains(did, "signal") {
					return tt.after, nil
				}
				return tt.before, nil
			},
		}, again: tt.again}
		var err error
		for _, s := range r.steps() {
			if err = s.do(t.Context(), nil); err != nil {
				did[len(did)-1] += ", clear:"
				if cerr := r.clear(t.Context()); cerr != nil {
					t.Error(cerr)
				}
				break
			}
		}
		if got := strings.Join(did, " "); got != tt.want || (err == nil) != strings.Contains(tt.want, "restart") {
			t.Errorf("%s: got %q, %v", tt.name, got, err)
		}
		if left, err := os.ReadDir(r.dir); err != nil || len(left) > 0 {
			t.Errorf("%s: %v, %v is left", tt.name, err, left)
		}
		if err := r.clear(t.Context()); err != nil || !slices.Contains(did, "reload") {
			t.Errorf("%s: a second time: %v", tt.name, err)
		}
	}
	r := replacement{unit: "web.service", dir: t.TempDir(), bus: replacer{reload: func(context.Context) error { return errors.New("no") }}}
	if err := r.write(t.Context()); err == nil {
		t.Error("systemd does not read the overlay, and nobody says so")
	}
}
