package guest_test

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/godbus/dbus/v5"

	"github.com/zdt-dev/zdt/internal/guest"
)

// roleEnv makes the test binary play another process than the test suite.
const roleEnv = "ZDT_GUEST_TEST_ROLE"

func TestMain(m *testing.M) {
	switch role := os.Getenv(roleEnv); role {
	case "":
		os.Exit(m.Run())
	case "victim":
		os.Exit(playVictim())
	default:
		fmt.Fprintf(os.Stderr, "unknown role %q\n", role)
		os.Exit(2)
	}
}

func TestBootsSystemd(t *testing.T) {
	guest.Each(t, func(t *testing.T, g *guest.Guest) {
		if got := g.MustRun(t, "systemctl", "is-system-running"); got != "running" {
			t.Errorf("system is %s, want running", got)
		}
		version := g.MustRun(t, "systemctl", "--version")
		if want := fmt.Sprintf("systemd %d ", g.Image().Systemd()); !strings.HasPrefix(version, want) {
			t.Errorf("version is %q, want %q", version, want)
		}
		if got := g.MustRun(t, "systemd-detect-virt", "--container"); got != "container-other" {
			t.Errorf("virtualization is %q, want container-other", got)
		}
		if got := g.Journal(t.Context(), "-p", "err"); got != "" {
			t.Errorf("errors during the boot:\n%s", got)
		}
	})
}

// Nothing runs in a guest but what every guest needs, whatever the host and the image's packages enable.
func TestRunsOnlyWhatIsNeeded(t *testing.T) {
	guest.Each(t, func(t *testing.T, g *guest.Guest) {
		want := []string{"dbus.service", "systemd-journald.service", "systemd-logind.service"}
		if got := units(t, g, "--type=service", "--state=running"); !slices.Equal(got, want) {
			t.Errorf("running services are %q, want %q", got, want)
		}
		if got := units(t, g, "--type=timer"); got != nil {
			t.Errorf("active timers are %q, want none", got)
		}
		if got := g.MustRun(t, "ip", "-brief", "address", "show", "dev", "lo"); !strings.Contains(got, "127.0.0.1") {
			t.Errorf("loopback is not up: %q", got)
		}
	})
}

// units lists the names of units, sorted.
func units(t *testing.T, g *guest.Guest, filter ...string) []string {
	t.Helper()
	out := g.MustRun(t, append([]string{"systemctl", "list-units", "--plain", "--no-legend"}, filter...)...)
	var names []string
	for line := range strings.Lines(out) {
		names = append(names, strings.Fields(line)[0])
	}
	slices.Sort(names)
	return names
}

// What the kernel has only once is the host's, and a guest cannot turn it.
func TestCannotTurnTheHostsKnobs(t *testing.T) {
	guest.Each(t, func(t *testing.T, g *guest.Guest) {
		if r, err := g.Run(t.Context(), "sh", "-c", "echo 1 >/proc/sys/kernel/panic"); err != nil || r.Code == 0 {
			t.Errorf("wrote a sysctl of the host: %v\n%s", err, r)
		}
		g.MustRun(t, "sh", "-c", "echo 1 >/proc/sys/net/ipv4/ip_forward") // its own
	})
}

func TestGuestsDoNotSeeEachOther(t *testing.T) {
	guest.Require(t)
	t.Parallel()
	a, b := guest.Boot(t, guest.Bookworm), guest.Boot(t, guest.Trixie)
	a.MustRun(t, "systemd-run", "--unit=only-in-a", "sleep", "infinity")
	if err := a.WaitUnit(t.Context(), "only-in-a.service", "active"); err != nil {
		t.Fatal(err)
	}
	if got := b.MustRun(t, "systemctl", "show", "-P", "LoadState", "only-in-a"); got != "not-found" {
		t.Errorf("the other guest has the unit: %s", got)
	}
	if got := b.MustRun(t, "sh", "-c", "ls -d /sys/fs/cgroup/system.slice/only-in-a* 2>/dev/null || echo none"); got != "none" {
		t.Errorf("the other guest sees the unit's cgroup: %s", got)
	}
	if got := b.MustRun(t, "ps", "ax"); strings.Contains(got, "infinity") {
		t.Errorf("the other guest sees the unit's process:\n%s", got)
	}
	if ida, idb := a.MustRun(t, "cat", "/etc/machine-id"), b.MustRun(t, "cat", "/etc/machine-id"); ida == idb || len(ida) != 32 {
		t.Errorf("machine IDs are %q and %q", ida, idb)
	}
}

func TestRun(t *testing.T) {
	guest.Each(t, func(t *testing.T, g *guest.Guest) {
		r, err := g.Run(t.Context(), "sh", "-c", "echo out; echo err >&2; exit 7")
		if err != nil || r.Stdout != "out\n" || r.Stderr != "err\n" || r.Code != 7 {
			t.Errorf("got %+v, %v", r, err)
		}
		r, err = g.Run(t.Context(), "sh", "-c", "kill -TERM $$")
		if err != nil || r.Code != -1 || r.Signal != syscall.SIGTERM {
			t.Errorf("killed by TERM: got %+v, %v", r, err)
		}
		if r, err := g.Run(t.Context(), "no-such-program"); !errors.Is(err, exec.ErrNotFound) {
			t.Errorf("missing program: got %+v, %v", r, err)
		}
		var live bytes.Buffer
		r, err = g.Exec(t.Context(), guest.Command{
			Args: []string{"sh", "-c", "id -u; pwd; echo $X; cat"}, UID: guest.UserUID, Dir: "/tmp", Env: []string{"X=y"},
			Stdin: strings.NewReader("in\n"), Output: &live,
		})
		if want := "1000\n/tmp\ny\nin\n"; err != nil || r.Stdout != want || live.String() != want {
			t.Errorf("got %+v, %q, %v", r, live.String(), err)
		}
		// A program outside every unit under test.
		if got := g.MustRun(t, "cat", "/proc/self/cgroup"); !strings.Contains(got, "0::/init.scope") {
			t.Errorf("runs in cgroup %q", got)
		}
	})
}

func TestRunEndsWithItsContext(t *testing.T) {
	guest.Require(t)
	t.Parallel()
	g := guest.Boot(t, guest.Bookworm)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	p, err := g.Spawn(ctx, guest.Command{Args: []string{"sleep", "infinity"}})
	if err != nil {
		t.Fatal(err)
	}
	cancel()
	if r, err := p.Wait(); !errors.Is(err, context.Canceled) || r.Signal != syscall.SIGKILL {
		t.Errorf("got %+v, %v", r, err)
	}
	if got := g.MustRun(t, "ps", "ax"); strings.Contains(got, "infinity") {
		t.Errorf("still there:\n%s", got)
	}
}

func TestFiles(t *testing.T) {
	guest.Require(t)
	t.Parallel()
	g := guest.Boot(t, guest.Bookworm)
	if err := g.WriteFile("/opt/new/dir/file", []byte("text"), 0o4711); err != nil {
		t.Fatal(err)
	}
	host := filepath.Join(t.TempDir(), "tool")
	if err := os.WriteFile(host, []byte("#!/bin/sh\necho copied\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := g.Copy(host, "/usr/local/bin/tool", 0o755); err != nil {
		t.Fatal(err)
	}
	if got := g.MustRun(t, "tool"); got != "copied" {
		t.Errorf("copied tool says %q", got)
	}
	if got, err := g.ReadFile("/opt/new/dir/file"); err != nil || string(got) != "text" {
		t.Errorf("read %q, %v", got, err)
	}
	if got := g.MustRun(t, "stat", "-c", "%a %U", "/opt/new/dir/file"); got != "711 root" {
		t.Errorf("mode and owner are %q", got)
	}
	// /var/run is an absolute link in some images. A file written through one is the guest's, never the host's.
	g.MustRun(t, "ln", "-s", "/run", "/opt/link")
	if err := g.WriteFile("/opt/link/zdt-guest-test", nil, 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Lstat("/run/zdt-guest-test"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("on the host: %v", err)
	}
	if _, err := os.Lstat(g.Path("/run/zdt-guest-test")); err != nil {
		t.Error(err)
	}
}

// Connections of each kind reach the guest's network and are served to whichever goroutine uses them.
func TestDial(t *testing.T) {
	guest.Each(t, func(t *testing.T, g *guest.Guest) {
		for _, tc := range []struct{ socat, network, addr string }{
			{"TCP4-LISTEN:7,fork", "tcp", "127.0.0.1:7"},
			{"TCP6-LISTEN:8,fork", "tcp", "[::1]:8"},
			{"UDP4-LISTEN:7,fork", "udp", "127.0.0.1:7"},
			{"UNIX-LISTEN:/run/echo,fork", "unix", "/run/echo"},
			{"ABSTRACT-LISTEN:echo,fork", "unix", "@echo"},
		} {
			if _, err := g.Spawn(t.Context(), guest.Command{Args: []string{"socat", tc.socat, "EXEC:cat"}}); err != nil {
				t.Fatal(err)
			}
			got, err := echo(t.Context(), g, tc.network, tc.addr)
			if err != nil || got != "hello\n" {
				t.Errorf("%s: got %q, %v", tc.socat, got, err)
			}
		}
		if conn, err := g.Dial(t.Context(), "tcp", "127.0.0.1:9"); !errors.Is(err, syscall.ECONNREFUSED) {
			t.Errorf("nobody listens: got %v, %v", conn, err)
		}
	})
}

// echo sends a line and returns the answer, and tries again while the server is not up yet.
func echo(ctx context.Context, g *guest.Guest, network, addr string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	for {
		answer, err := func() (string, error) {
			conn, err := g.Dial(ctx, network, addr)
			if err != nil {
				return "", err
			}
			defer conn.Close()
			deadline, _ := ctx.Deadline()
			conn.SetDeadline(deadline)
			if _, err := io.WriteString(conn, "hello\n"); err != nil {
				return "", err
			}
			return bufio.NewReader(conn).ReadString('\n')
		}()
		retry := errors.Is(err, syscall.ECONNREFUSED) || errors.Is(err, syscall.ENOENT)
		if !retry || ctx.Err() != nil {
			return answer, err
		}
	}
}

func TestDo(t *testing.T) {
	guest.Require(t)
	t.Parallel()
	g := guest.Boot(t, guest.Trixie)
	var l net.Listener
	if err := g.Do(func() (err error) {
		l, err = net.Listen("tcp", "127.0.0.1:0")
		return err
	}); err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	port := l.Addr().(*net.TCPAddr).Port
	if got := g.MustRun(t, "ss", "-Hltn"); !strings.Contains(got, ":"+strconv.Itoa(port)+" ") {
		t.Errorf("the guest does not listen on %d:\n%s", port, got)
	}
	if err := g.Do(func() error { runtime.Goexit(); return nil }); err == nil {
		t.Error("a function that never returned has no error")
	}
	want := errors.New("its own")
	if err := g.Do(func() error { return want }); err != want {
		t.Errorf("got %v, want %v", err, want)
	}
}

func TestSystemBus(t *testing.T) {
	guest.Each(t, func(t *testing.T, g *guest.Guest) {
		conn, err := dbus.Connect(g.BusAddress(), dbus.WithContext(t.Context()))
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		v, err := conn.Object("org.freedesktop.systemd1", "/org/freedesktop/systemd1").
			GetProperty("org.freedesktop.systemd1.Manager.Version")
		if err != nil {
			t.Fatal(err)
		}
		if got := v.Value().(string); !strings.HasPrefix(got, strconv.Itoa(g.Image().Systemd())) {
			t.Errorf("manager's version is %q", got)
		}
	})
}

func TestUserManager(t *testing.T) {
	guest.Each(t, func(t *testing.T, g *guest.Guest) {
		g.MustRun(t, "loginctl", "enable-linger", guest.User)
		if err := g.WaitUnit(t.Context(), "user@1000.service", "active"); err != nil {
			t.Fatal(err)
		}
		r, err := g.Exec(t.Context(), guest.Command{UID: guest.UserUID, Args: []string{
			"systemd-run", "--user", "--wait", "--pipe", "--quiet", "sh", "-c", "id -un; pwd"}})
		if err != nil || r.Code != 0 || r.Stdout != "op\n/home/op\n" {
			t.Errorf("run in the user's manager: %v\n%s", err, r)
		}
		sock, err := g.DialAs(t.Context(), guest.UserUID, "unix", "/run/user/1000/bus")
		if err != nil {
			t.Fatal(err)
		}
		conn, err := dbus.NewConn(sock)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		if err := conn.Auth([]dbus.Auth{dbus.AuthExternal(strconv.Itoa(guest.UserUID))}); err != nil {
			t.Fatal(err)
		}
		if err := conn.Hello(); err != nil {
			t.Fatal(err)
		}
		// This process has its own identity still, on every thread.
		if status, err := os.ReadFile("/proc/thread-self/status"); err != nil || !strings.Contains(string(status), "Uid:\t0\t0\t0\t0") {
			t.Errorf("%v\n%s", err, status)
		}
	})
}

func TestPolkit(t *testing.T) {
	guest.Each(t, func(t *testing.T, g *guest.Guest) {
		// Without a rule, and with nobody to ask for a password, polkit says no; with one it says yes.
		start := guest.Command{UID: guest.UserUID, Args: []string{"systemctl", "--no-ask-password", "start", "systemd-hostnamed.service"}}
		if r, err := g.Exec(t.Context(), start); err != nil || r.Code == 0 {
			t.Errorf("without a rule: %v\n%s", err, r)
		}
		rule := `polkit.addRule(function(a, s) { if (a.id == "org.freedesktop.systemd1.manage-units" && s.user == "op") return polkit.Result.YES; });`
		if err := g.WriteFile("/etc/polkit-1/rules.d/50-test.rules", []byte(rule), 0o644); err != nil {
			t.Fatal(err)
		}
		g.MustRun(t, "systemctl", "restart", "polkit.service")
		if r, err := g.Exec(t.Context(), start); err != nil || r.Code != 0 {
			t.Errorf("with a rule: %v\n%s", err, r)
		}
	})
}

func TestWaitUnitSeesFailure(t *testing.T) {
	guest.Require(t)
	t.Parallel()
	g := guest.Boot(t, guest.Trixie)
	g.MustRun(t, "systemd-run", "--unit=broken", "--no-block", "--property=Type=oneshot", "false")
	err := g.WaitUnit(t.Context(), "broken.service", "active")
	if err == nil || !strings.Contains(err.Error(), "it has failed") || !strings.Contains(err.Error(), "status=1/FAILURE") {
		t.Errorf("got %v", err)
	}
}

func TestCloseLeavesNothingBehind(t *testing.T) {
	guest.Require(t)
	t.Parallel()
	g, err := guest.Start(t.Context(), guest.Config{Image: guest.Bookworm})
	if err != nil {
		t.Fatal(err)
	}
	tr := traceOf(t, g.PID())
	g.MustRun(t, "systemd-run", "--unit=stubborn", "--property=TimeoutStopSec=1", "sh", "-c", "trap '' TERM; while :; do sleep 1; done")
	if _, err := g.Spawn(context.Background(), guest.Command{Args: []string{"sleep", "infinity"}}); err != nil {
		t.Fatal(err)
	}
	if err := g.Close(); err != nil {
		t.Fatal(err)
	}
	if err := g.Close(); err != nil {
		t.Errorf("close again: %v", err)
	}
	if got := tr.left(); len(got) > 0 {
		t.Errorf("left behind: %q", got)
	}
	if _, err := os.Stat(tr.cgroup); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("cgroup %s: %v", tr.cgroup, err)
	}
	if _, err := g.Run(t.Context(), "true"); err == nil {
		t.Error("a program ran in a guest that was closed")
	}
}

// trace is what identifies the remains of a guest.
type trace struct {
	namespaces []string // link targets, as "mnt:[4026532000]"
	cgroup     string   // directory on the host
}

func traceOf(t *testing.T, pid int) trace {
	t.Helper()
	var tr trace
	for _, ns := range []string{"mnt", "pid", "net"} {
		link, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/%s", pid, ns))
		if err != nil {
			t.Fatal(err)
		}
		tr.namespaces = append(tr.namespaces, link)
	}
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", pid))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(data)) {
		if path, ok := strings.CutPrefix(strings.TrimSpace(line), "0::"); ok {
			tr.cgroup = strings.TrimSuffix(path, "/init.scope")
		}
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(mounts)) {
		if strings.Contains(line, " - cgroup2 ") {
			tr.cgroup = filepath.Join(strings.Fields(line)[4], tr.cgroup)
			break
		}
	}
	if _, err := os.Stat(filepath.Join(tr.cgroup, "cgroup.procs")); err != nil || !strings.Contains(tr.cgroup, "zdt-guest.") {
		t.Fatalf("the guest's cgroup is not at %s: %v", tr.cgroup, err)
	}
	return tr
}

// left lists the processes that still are in one of the namespaces. Mounts live in the mount namespace, and that lives
// as long as one of its processes; the host's own mount table is looked at too.
func (tr trace) left() []string {
	var left []string
	tasks, _ := filepath.Glob("/proc/[0-9]*/task/[0-9]*") // threads: one of this process may have entered
	for _, task := range tasks {
		// A zombie is but an exit status that nobody has fetched. When its parent was killed that is up to the host's
		// init, and some take seconds.
		if stat, _ := os.ReadFile(filepath.Join(task, "stat")); strings.Contains(string(stat), ") Z ") {
			continue
		}
		for _, ns := range []string{"mnt", "pid", "net"} {
			link, err := os.Readlink(filepath.Join(task, "ns", ns))
			if err == nil && slices.Contains(tr.namespaces, link) {
				comm, _ := os.ReadFile(filepath.Join(task, "comm"))
				left = append(left, fmt.Sprintf("%s %s (%s)", task, link, strings.TrimSpace(string(comm))))
			}
		}
	}
	mounts, _ := os.ReadFile("/proc/self/mountinfo")
	for line := range strings.Lines(string(mounts)) {
		if strings.Contains(line, "zdt-guest") || strings.Contains(line, "mnt:[") {
			left = append(left, line)
		}
	}
	return left
}

// playVictim boots a guest with work in it, says so, and waits to be killed.
func playVictim() int {
	ctx := context.Background()
	g, err := guest.Start(ctx, guest.Config{Image: guest.Image(os.Args[1])})
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	for _, args := range [][]string{
		{"systemd-run", "--unit=work", "sh", "-c", "trap '' TERM; while :; do sleep 1; done"},
		{"systemctl", "daemon-reexec"}, // PDEATHSIG survives an exec
	} {
		if r, err := g.Run(ctx, args...); err != nil || r.Code != 0 {
			fmt.Fprintln(os.Stderr, err, r)
			return 1
		}
	}
	if _, err := g.Spawn(ctx, guest.Command{Args: []string{"sleep", "infinity"}}); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	fmt.Println(g.PID())
	select {}
}

func TestKilledProcessTakesItsGuestAlong(t *testing.T) {
	guest.Require(t)
	for _, image := range guest.Images() {
		t.Run(image.String(), func(t *testing.T) {
			t.Parallel()
			victim := exec.Command("/proc/self/exe", string(image))
			victim.Env = append(os.Environ(), roleEnv+"=victim")
			victim.Stderr = os.Stderr
			out, err := victim.StdoutPipe()
			if err != nil {
				t.Fatal(err)
			}
			if err := victim.Start(); err != nil {
				t.Fatal(err)
			}
			defer victim.Wait()
			defer victim.Process.Kill()
			line, err := bufio.NewReader(out).ReadString('\n')
			if err != nil {
				t.Fatalf("victim: %v", err)
			}
			pid, err := strconv.Atoi(strings.TrimSpace(line))
			if err != nil {
				t.Fatal(err)
			}
			tr := traceOf(t, pid)
			if len(tr.left()) == 0 {
				t.Fatal("the guest of the victim has no processes")
			}
			victim.Process.Kill()
			victim.Wait()
			deadline := time.Now().Add(10 * time.Second)
			for len(tr.left()) > 0 {
				if time.Now().After(deadline) {
					t.Fatalf("left behind: %q", tr.left())
				}
			}
			// Anybody's next guest sweeps the cgroup.
			guest.Boot(t, image)
			if _, err := os.Stat(tr.cgroup); !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("cgroup %s is still there: %v", tr.cgroup, err)
			}
		})
	}
}

// A boot that fails says why, and leaves nothing.
func TestFailedBoot(t *testing.T) {
	guest.Require(t)
	t.Parallel()
	ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
	defer cancel()
	if g, err := guest.Start(ctx, guest.Config{Image: guest.Bookworm}); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v, %v", g, err)
	}
	if g, err := guest.Start(t.Context(), guest.Config{Image: "potato"}); err == nil {
		t.Errorf("no such image: got %v", g)
	}
}

// Without root a system test says in one line why it did not run, unless it has to.
func TestNeedsRoot(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root to become somebody else")
	}
	t.Parallel()
	for _, tc := range []struct{ mode, want string }{
		{"", "--- SKIP"},
		{"off", "turned off by ZDT_SYSTEST=off"},
		{"require", "ZDT_SYSTEST=require is set, but booting systemd needs root"},
	} {
		cmd := exec.Command("/proc/self/exe", "-test.v", "-test.run=^TestBootsSystemd$")
		cmd.Env = append(os.Environ(), "ZDT_SYSTEST="+tc.mode)
		cmd.Dir = "/"
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
		out, err := cmd.CombinedOutput()
		if !strings.Contains(string(out), tc.want) || (err != nil) != (tc.mode == "require") {
			t.Errorf("ZDT_SYSTEST=%s: %v\n%s", tc.mode, err, out)
		}
	}
}
