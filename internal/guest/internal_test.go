package guest

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func TestPickMirror(t *testing.T) {
	const (
		good     = "Packages|Debian|Debian|main|http://mirror.example/debian/\n"
		security = "Packages|Debian|Debian-Security|main|http://mirror.example/debian-security/\n"
		cdrom    = "Packages|Debian|Debian|main|cdrom://disc/\n"
		contrib  = "Packages|Debian|Debian|contrib|http://mirror.example/other/\n"
		appdata  = "DEP-11|Debian|Debian|main|http://mirror.example/other/\n"
		ubuntu   = "Packages|Ubuntu|Ubuntu|main|http://mirror.example/ubuntu/\n"
		local    = "Packages|Debian|Debian|main|file:/srv/mirror/\n"
	)
	for _, tc := range []struct{ name, targets, want string }{
		{"nothing", "", ""},
		{"garbage", "E: what?\n", ""},
		{"only the main archive will do", security + appdata + contrib + cdrom + good, "http://mirror.example/debian/"},
		{"another distribution", ubuntu, ""},
		{"local copy", cdrom + local + good, "file:/srv/mirror/"},
	} {
		if got := pickMirror(tc.targets); got != tc.want {
			t.Errorf("%s: got %q, want %q", tc.name, got, tc.want)
		}
	}
}

func TestCgroup2Mount(t *testing.T) {
	const (
		unified = "30 24 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n"
		v1      = "31 30 0:27 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n"
		hybrid  = "32 30 0:28 / /sys/fs/cgroup/unified rw - cgroup2 none rw\n"
	)
	for _, tc := range []struct{ name, mountinfo, want string }{
		{"unified", unified, "/sys/fs/cgroup"},
		{"hybrid", v1 + hybrid, "/sys/fs/cgroup/unified"},
		{"legacy", v1, ""},
		{"empty", "", ""},
	} {
		if got := cgroup2Mount(tc.mountinfo); got != tc.want {
			t.Errorf("%s: got %q, want %q", tc.name, got, tc.want)
		}
	}
}

func FuzzParseCgroupName(f *testing.F) {
	f.Add(owner{pidns: 4026531836, pid: 1234, start: 99}.cgroupName("0123456789abcdef"))
	f.Add("zdt-guest.1.2.3")
	f.Add("zdt-guest.1.-2.3.x")
	f.Fuzz(func(t *testing.T, name string) {
		o, ok := parseCgroupName(name)
		if !ok {
			return
		}
		if o.pid <= 0 {
			t.Errorf("%q has pid %d", name, o.pid)
		}
		if again, ok := parseCgroupName(o.cgroupName("x")); !ok || again != o {
			t.Errorf("%q is %v, then %v", name, o, again)
		}
	})
}

func TestStartTime(t *testing.T) {
	// A command name may look like the end of the field.
	script := filepath.Join(t.TempDir(), "a) S 1 2 (b")
	if err := os.WriteFile(script, []byte("#!/bin/sh\nread x\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(script)
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer cmd.Wait()
	defer stdin.Close()
	mine, err := startTime(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	if got, err := startTime(cmd.Process.Pid); err != nil || got < mine {
		t.Errorf("got %d, %v; this process has %d", got, err, mine)
	}
}

func TestSweepSparesTheLiving(t *testing.T) {
	me, err := self()
	if err != nil {
		t.Fatal(err)
	}
	dead := me
	dead.start-- // a process of that pid and start time does not exist any more
	elsewhere := dead
	elsewhere.pidns++
	root := t.TempDir() // plain directories: a sweep only reads cgroup.events and calls rmdir
	name := func(o owner, id string) string { return filepath.Join(root, o.cgroupName(id)) }
	for dir, spared := range map[string]bool{
		name(me, "mine"):                     true,
		name(elsewhere, "elsewhere"):         true,
		name(dead, "dead"):                   false,
		filepath.Join(root, "zdt-guest.odd"): true,
		filepath.Join(root, "system.slice"):  true,
	} {
		if err := os.MkdirAll(filepath.Join(dir, "a", "b"), 0o755); err != nil {
			t.Fatal(err)
		}
		sweepCgroups(root, me)
		if _, err := os.Stat(dir); (err == nil) != spared {
			t.Errorf("%s: spared is %v, want %v", filepath.Base(dir), err == nil, spared)
		}
	}
	kept := name(dead, "kept")
	if err := os.Mkdir(kept, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(kept, "cgroup.events"), []byte("populated 1\nfrozen 0\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	if sweepCgroups(root, me); !populated(kept) {
		t.Error("swept a cgroup with processes")
	}
}

func TestLastLines(t *testing.T) {
	var b strings.Builder
	for i := range 10 {
		fmt.Fprintln(&b, i)
	}
	if got, want := lastLines(b.String(), 2), "[8 lines cut]\n8\n9"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	if got, want := lastLines("a\nb\n", 2), "a\nb"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

// What a failed test prints has the unit's status and its last words.
func TestReport(t *testing.T) {
	Require(t)
	t.Parallel()
	g := Boot(t, Bookworm)
	g.MustRun(t, "systemd-run", "--unit=broken", "--wait", "--property=SuccessExitStatus=0", "sh", "-c", "true")
	r, err := g.Run(t.Context(), "systemd-run", "--unit=unlucky", "--wait", "sh", "-c", "echo last words; exit 9")
	if err != nil || r.Code != 9 {
		t.Fatalf("%v\n%s", err, r)
	}
	got := g.report()
	for _, want := range []string{"unlucky.service", "status=9", "last words"} {
		if !strings.Contains(got, want) {
			t.Errorf("report lacks %q:\n%s", want, got)
		}
	}
}

func TestKeptGuestSurvivesClose(t *testing.T) {
	Require(t)
	t.Parallel()
	g, err := Start(t.Context(), Config{Image: Trixie, Keep: true})
	if err != nil {
		t.Fatal(err)
	}
	if err := g.Close(); err != nil {
		t.Fatal(err)
	}
	if r, err := g.Run(t.Context(), "systemctl", "is-system-running"); err != nil || r.Stdout != "running\n" {
		t.Errorf("after Close: %v\n%s", err, r)
	}
	if err := g.stop(); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(g.cgroup); !os.IsNotExist(err) {
		t.Errorf("cgroup: %v", err)
	}
}

func TestBootSlots(t *testing.T) {
	dir := t.TempDir()
	first, err := lockSlot(t.Context(), dir, 2)
	if err != nil {
		t.Fatal(err)
	}
	second, err := lockSlot(t.Context(), dir, 2)
	if err != nil {
		t.Fatal(err)
	}
	third := make(chan func(), 1)
	go func() {
		unlock, err := lockSlot(t.Context(), dir, 2)
		if err != nil {
			t.Error(err)
		}
		third <- unlock
	}()
	select {
	case <-third:
		t.Fatal("three of two slots are taken")
	case <-time.After(50 * time.Millisecond): // it cannot be shown that something never happens
	}
	first()
	(<-third)()
	second()
}

// A gate that closes unopened ends the guest's first process: so it goes when its creator dies too early for PDEATHSIG.
func TestClosedGateEndsTheGuest(t *testing.T) {
	Require(t)
	t.Parallel()
	root, err := Store{Dir: DefaultDir()}.Ensure(t.Context(), Bookworm)
	if err != nil {
		t.Fatal(err)
	}
	g := newGuest(Config{Image: Bookworm})
	if err := g.makeCgroup(); err != nil {
		t.Fatal(err)
	}
	gate, err := g.startInit(root, filepath.Join(DefaultDir(), "mnt"))
	if err != nil {
		t.Fatal(err)
	}
	gate.Close()
	select {
	case <-g.ended:
	case <-time.After(10 * time.Second):
		t.Error("still waiting at the gate")
		g.signal(unix.SIGKILL)
	}
	if err := g.stop(); err != nil {
		t.Error(err)
	}
}
