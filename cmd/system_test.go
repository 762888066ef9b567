package cmd_test

import (
	"bytes"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/zdt-dev/zdt/internal/guest"
)

// build compiles a package of this module for guests: without cgo.
func build(t *testing.T, dir, pkg string) string {
	t.Helper()
	file := filepath.Join(dir, filepath.Base(pkg))
	c := exec.Command("go", "build", "-o", file, pkg)
	c.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := c.CombinedOutput(); err != nil {
		t.Fatalf("%v: %v\n%s", c.Args, err, out)
	}
	return file
}

// lockedBuffer is a buffer that may be read while it is written.
type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// TestOnSystemd walks a service through init, status, reload, handoff and
// watch, as root and inside the unit's sandbox, on a real systemd.
func TestOnSystemd(t *testing.T) {
	guest.Require(t)
	dir := t.TempDir()
	zdt := build(t, dir, "github.com/zdt-dev/zdt")
	hello := build(t, dir, "github.com/zdt-dev/zdt/examples/hello")
	guest.Each(t, func(t *testing.T, g *guest.Guest) {
		if err := g.Copy(zdt, "/usr/local/bin/zdt", 0o755); err != nil {
			t.Fatal(err)
		}
		if err := g.Copy(hello, "/srv/web", 0o755); err != nil {
			t.Fatal(err)
		}
		run := func(want int, args ...string) guest.Result {
			t.Helper()
			r, err := g.Run(t.Context(), args...)
			if err != nil {
				t.Fatal(err)
			}
			if r.Code != want {
				t.Fatalf("exit %d, want %d\n%s", r.Code, want, r)
			}
			if len(r.Stdout) < 1000 {
				t.Log(r)
			}
			return r
		}
		initArgs := []string{"zdt", "init", "web", "--exec", "/srv/web", "--listen", ":8080=http", "--dynamic-user"}

		run(4, "zdt", "status", "web")
		if r := run(0, append(initArgs, "--dry-run")...); !strings.Contains(r.Stdout, "+FileDescriptorName=http") {
			t.Error("--dry-run shows no difference")
		}
		run(4, "zdt", "status", "web")
		run(0, append(initArgs, "--start")...)
		if r := run(0, append(initArgs, "--start")...); !strings.Contains(r.Stdout, "nothing to do") {
			t.Error("the second init did something")
		}
		run(0, "zdt", "status", "web")

		type status struct {
			Services []struct {
				State   string
				Problem string `json:"runtime_problem"`
				Runtime struct {
					PID        int
					Generation int
				}
				Running struct{ ID string }
				Current struct{ ID string }
			}
		}
		look := func() (s status) {
			t.Helper()
			r := run(0, "zdt", "status", "web", "-o", "json")
			if err := json.Unmarshal([]byte(r.Stdout), &s); err != nil {
				t.Fatal(err)
			}
			if p := s.Services[0].Problem; p != "" {
				t.Errorf("runtime: %s", p)
			}
			return s
		}
		before := look().Services[0]
		if before.Running.ID != before.Current.ID || before.Running.ID == "" {
			t.Errorf("running %q, current %q", before.Running.ID, before.Current.ID)
		}

		var seen lockedBuffer
		watch, err := g.Spawn(t.Context(), guest.Command{Args: []string{"zdt", "watch", "web", "-o", "ndjson"}, Output: &seen})
		if err != nil {
			t.Fatal(err)
		}
		waitIdle := func() {
			t.Helper()
			for range 200 {
				if r := run(0, "zdt", "status", "web", "-o", "json"); !strings.Contains(r.Stdout, `"predecessor": {`) {
					return
				}
				time.Sleep(20 * time.Millisecond)
			}
			t.Fatal("the predecessor does not end")
		}
		run(0, "systemctl", "reload", "web") // ExecReload=zdt handoff, in the sandbox
		waitIdle()
		run(0, "zdt", "handoff", "web")
		waitIdle()
		after := look().Services[0]
		if after.Runtime.Generation != before.Runtime.Generation+2 || after.Runtime.PID == before.Runtime.PID {
			t.Errorf("before %+v, after %+v", before.Runtime, after.Runtime)
		}
		run(0, "zdt", "status", "web")

		// A program that cannot start: reload says so, and the service serves on.
		release := "/var/lib/zdt/web/releases/" + after.Current.ID
		run(0, "mv", release+"/web", release+"/away")
		run(1, "systemctl", "reload", "web")
		run(11, "zdt", "handoff", "web")
		run(11, "zdt", "handoff", "web", "-o", "json")
		run(0, "mv", release+"/away", release+"/web")
		if got := look().Services[0].Runtime; got.PID != after.Runtime.PID {
			t.Errorf("pid %d serves, and not %d", got.PID, after.Runtime.PID)
		}
		// journald lets readers wait for up to 250 ms.
		for range 200 {
			if strings.Count(seen.String(), `"kind":"abort"`) >= 3 {
				break
			}
			time.Sleep(20 * time.Millisecond)
		}
		if err := watch.Signal(os.Interrupt); err != nil {
			t.Error(err)
		}
		r, err := watch.Wait()
		if err != nil || r.Code != 130 {
			t.Errorf("watch: %v\n%s", err, r)
		}
		for _, kind := range []string{"fork", "listen", "drain", "exit", "abort"} {
			if !strings.Contains(r.Stdout, `"kind":"`+kind+`"`) {
				t.Errorf("watch did not show %s\n%s", kind, r)
			}
		}

		// What a person wrote is not overwritten.
		run(0, "sed", "-i", "s/^Backlog=.*/Backlog=77/", "/etc/systemd/system/web.socket")
		if r := run(10, initArgs...); !strings.Contains(r.Stdout, "-Backlog=77") || !strings.Contains(r.Stderr, "edited") {
			t.Error("the refusal does not say what it is about")
		}
		run(0, append(initArgs, "--force")...)
		run(0, "sh", "-c", "grep Backlog=77 /etc/systemd/system/web.socket.zdt-saved-*")
		run(0, "systemctl", "stop", "web.socket", "web.service")
		run(3, "zdt", "status", "web")
		run(10, "zdt", "handoff", "web")
		run(10, "zdt", "handoff", "nosuch")
		run(64, "zdt", "handoff")
	})
}
