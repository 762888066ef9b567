package handoff

import (
	"bufio"
	"context"
	"encoding/json"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/zdt-dev/zdt/handoff/control"
)

// The control socket of real generations.

func TestWatch(t *testing.T) {
	t.Parallel()
	s := stand(t, serviceConfig{})
	first := s.mustStatus()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	type result struct {
		phases []control.Phase
		last   control.Status
		err    error
	}
	results := make(chan result, 3)
	started := make(chan struct{}, 3)
	for range 3 {
		c := s.mustClient()
		go func() {
			var r result
			for st, err := range c.Watch(ctx) {
				if err != nil {
					r.err = err
					break
				}
				if len(r.phases) == 0 {
					started <- struct{}{}
				}
				if !slices.Contains(r.phases, st.Phase) {
					r.phases = append(r.phases, st.Phase)
				}
				r.last = st
			}
			results <- r
		}()
	}
	for range 3 {
		<-started
	}
	s.hold("t1")
	if _, err := s.ask(func(ctx context.Context, c *control.Client) (control.Status, error) { return c.Commit(ctx, "t1") }); err != nil {
		t.Fatal(err)
	}
	s.awaitExit(first.PID, "exited 0")
	// A slow watcher misses phases and never sees them out of order.
	order := []control.Phase{control.Idle, control.Forked, control.Held, control.Draining, control.Exited}
	for range 3 {
		r := <-results
		if r.err != nil {
			t.Errorf("watch: %v", r.err)
		}
		at := 0
		for _, p := range r.phases {
			i := slices.Index(order, p)
			if i < at {
				t.Errorf("phases %v", r.phases)
				break
			}
			at = i
		}
		if r.last.Phase != control.Exited || r.last.PID != first.PID || r.last.Last == nil || !r.last.Last.Committed {
			t.Errorf("last status: %+v", r.last)
		}
	}
}

// A watcher that reads nothing must not keep a generation from ending.
func TestWatcherThatDoesNotRead(t *testing.T) {
	t.Parallel()
	s := stand(t, serviceConfig{})
	c, err := net.Dial("unix", s.controlPath())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := io.WriteString(c, `{"op":"watch"}`+"\n"); err != nil {
		t.Fatal(err)
	}
	half, err := net.Dial("unix", s.controlPath()) // says half a line, ever
	if err != nil {
		t.Fatal(err)
	}
	defer half.Close()
	io.WriteString(half, `{"op":`)
	// More statuses than the socket's buffer holds.
	other := s.mustClient()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	for range 2000 {
		if _, err := other.Status(ctx); err != nil {
			t.Fatal(err)
		}
	}
	pid := s.mustStatus().PID
	s.nextWorks()
	s.checkExit(pid, "exited 0")
}

func TestControlOfAnotherUser(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root, to be somebody else")
	}
	t.Parallel()
	s := stand(t, serviceConfig{})
	s.play("ask-control")
	for _, dir := range []string{s.dir, s.controlPath()} {
		if err := os.Chmod(dir, 0o777); err != nil {
			t.Fatal(err)
		}
	}
	ask := func(uid uint32) string {
		cmd := exec.Command(filepath.Join(s.dir, "ask-control"), s.controlPath())
		cmd.Env = append(os.Environ(), envRole+"="+s.dir)
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uid, Gid: uid}}
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Errorf("%v: %s", err, out)
		}
		return string(out)
	}
	for range 20 {
		if got := ask(65534); !strings.Contains(got, "pid 0, error status: only root") {
			t.Fatalf("nobody is told %q", got)
		}
	}
	if got := ask(0); !strings.Contains(got, "error <nil>") {
		t.Errorf("root is told %q", got)
	}
	// Without the test's help the mode alone keeps others out.
	s.nextWorks()
}

func TestControlSocketMode(t *testing.T) {
	t.Parallel()
	s := stand(t, serviceConfig{})
	st, err := os.Lstat(s.controlPath())
	if err != nil || st.Mode() != os.ModeSocket|0o600 {
		t.Errorf("%v, %v", st.Mode(), err)
	}
	entries, _ := os.ReadDir(s.dir)
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), ".control") {
			t.Errorf("left behind: %s", e.Name())
		}
	}
}

func TestDialFollowsNoSymlink(t *testing.T) {
	t.Parallel()
	s := stand(t, serviceConfig{})
	link := filepath.Join(s.dir, "link")
	if err := os.Symlink(s.controlPath(), link); err != nil {
		t.Fatal(err)
	}
	dirLink := filepath.Join(s.dir, "dir")
	if err := os.Symlink(s.dir, dirLink); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{link, filepath.Join(dirLink, "control.sock")} {
		if c, err := control.Dial(t.Context(), path); err == nil {
			c.Close()
			t.Errorf("Dial followed %s", path)
		}
	}
}

func TestTwoProcessesOneControlPath(t *testing.T) {
	t.Parallel()
	s := stand(t, serviceConfig{})
	if _, err := Open(Options{ControlSocket: s.controlPath(), Logger: quiet()}); err == nil || !strings.Contains(err.Error(), "running twice") {
		t.Errorf("a second service on the same path: %v", err)
	}
	s.nextWorks()
	pid := s.mustStatus().PID
	s.signal(pid, syscall.SIGKILL)
	s.awaitExit(pid, "killed KILL")
	// What a dead one has left is no obstacle.
	h, err := Open(Options{ControlSocket: s.controlPath(), Logger: quiet()})
	if err != nil {
		t.Fatal(err)
	}
	h.Close()
}

// Requests that make no sense get an answer, and the next client one that does.
func TestBadRequests(t *testing.T) {
	t.Parallel()
	s := stand(t, serviceConfig{})
	for _, tt := range []struct{ line, code string }{
		{`{"op":"status"}`, ""},
		{`{"op":"fly"}`, control.CodeBadRequest},
		{`{}`, control.CodeBadRequest},
		{`not json`, control.CodeBadRequest},
		{`{"op":"arm"}`, control.CodeBadRequest},
		{`{"op":"arm","arm":{}}`, control.CodeBadRequest},
		{`{"op":"arm","arm":{"txid":"t","exe":"relative"}}`, control.CodeBadRequest},
		{`{"op":"arm","arm":{"txid":"t","hold_for":-1}}`, control.CodeBadRequest},
		{`{"op":"commit"}`, control.CodeNotHeld},
		{`{"op":"abort"}`, control.CodeNotHeld},
		{`{"op":"disarm","txid":"x"}`, ""},
		{`{"op":"reclaim"}`, ""},
		{`{"op":"status","added":"by a newer client"}`, ""},
	} {
		t.Run(tt.line, func(t *testing.T) {
			c, err := net.Dial("unix", s.controlPath())
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			c.SetDeadline(time.Now().Add(patience))
			io.WriteString(c, tt.line+"\n")
			line, err := bufio.NewReader(c).ReadBytes('\n')
			if err != nil {
				t.Fatal(err)
			}
			var resp control.Response
			if err := json.Unmarshal(line, &resp); err != nil || resp.Code != tt.code {
				t.Errorf("%s, want code %q", line, tt.code)
			}
		})
	}
	s.nextWorks()
}
