package release

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func TestIdentify(t *testing.T) {
	t.Parallel()
	n := func(u uint32) *uint32 { return &u }
	name := func(uid int) string { return map[int]string{0: "root", 7: "seven"}[uid] }
	for _, tc := range []struct {
		name                     string
		uid                      int
		loginuid, sudoUser, host string
		want                     Who
		text                     string
	}{
		{"sudo", 0, "1000\n", "ann", "h", Who{UID: 0, User: "root", LoginUID: n(1000), SudoUser: "ann", Host: "h"}, "ann as root, login uid 1000"},
		{"boot", 0, "4294967295", "", "", Who{UID: 0, User: "root"}, "root"},
		{"no audit", 7, "", "", "", Who{UID: 7, User: "seven"}, "seven"},
		{"login", 7, "7", "seven", "", Who{UID: 7, User: "seven", LoginUID: n(7), SudoUser: "seven"}, "seven"},
		{"root logged in", 0, "0", "", "", Who{UID: 0, User: "root", LoginUID: n(0)}, "root"},
		{"no name", 99, "junk", "", "", Who{UID: 99}, "uid 99"},
		{"terminal codes", 0, "", "\x1b[2Jeve\r\n\u202e", "", Who{UID: 0, User: "root", SudoUser: "[2Jeve"}, "[2Jeve as root"},
		{"long", 0, "", strings.Repeat("é", 100), "", Who{UID: 0, User: "root", SudoUser: strings.Repeat("é", 64)}, strings.Repeat("é", 64) + " as root"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			got := identify(tc.uid, tc.loginuid, tc.sudoUser, tc.host, name)
			if !reflect.DeepEqual(got, tc.want) {
				t.Errorf("got %+v, want %+v", got, tc.want)
			}
			if got.String() != tc.text {
				t.Errorf("text %q, want %q", got, tc.text)
			}
		})
	}
	if w := Identify(); w.UID != os.Getuid() {
		t.Errorf("identify = %+v", w)
	}
}

func TestTxID(t *testing.T) {
	t.Parallel()
	at := time.Date(2026, 11, 22, 13, 40, 5, 7_999_999, time.FixedZone("x", 3600))
	id := txID(at, [4]byte{0xde, 0xad, 0, 1})
	if id != "20261122T124005007Z-dead0001" || !ValidTxID(id) {
		t.Errorf("id = %q", id)
	}
	if later := txID(at.Add(time.Millisecond), [4]byte{}); later <= id {
		t.Errorf("%q does not sort behind %q", later, id)
	}
	seen := make(map[string]bool)
	for range 100 {
		id, err := NewTxID()
		if err != nil || !ValidTxID(id) || seen[id] {
			t.Fatalf("id = %q, %v", id, err)
		}
		seen[id] = true
	}
	for _, bad := range []string{"", "-", "20261122T124005007Z-", "20261122T124005007Z-dead000", "20261122T124005007Z-DEAD0001",
		"20261122T124005Z-dead0001", "20261122T1240050070-dead0001", "20261322T124005007Z-dead0001", "20261122T124005x07Z-dead0001",
		"20261122T124005007Z-dead0001/..", rid("1")} {
		if ValidTxID(bad) {
			t.Errorf("%q is valid", bad)
		}
	}
}

func TestProc(t *testing.T) {
	t.Parallel()
	self, err := ProcOf(os.Getpid())
	if err != nil || !self.Alive() || self.Start == 0 {
		t.Errorf("self = %+v, %v", self, err)
	}
	if (Proc{PID: self.PID, Start: self.Start + 1}).Alive() {
		t.Error("a reused pid is alive")
	}
	for _, pid := range []int{0, -1, 1 << 30} {
		if p, err := ProcOf(pid); err == nil || p.Alive() {
			t.Errorf("pid %d: %+v", pid, p)
		}
	}
	cmd := exec.Command("sleep", "60")
	do(t, cmd.Start())
	p, err := ProcOf(cmd.Process.Pid)
	if err != nil || !p.Alive() {
		t.Errorf("child: %+v, %v", p, err)
	}
	do(t, cmd.Process.Kill())
	waitFor(t, "the zombie to count as dead", func() bool { return !p.Alive() })
	_ = cmd.Wait()
	if p.Alive() {
		t.Error("alive after wait")
	}

	start, state, err := parseStat([]byte("5 (evil) S 1 (x) R 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 4711 20"))
	if err != nil || start != 4711 || state != 'R' {
		t.Errorf("start %d, state %c, %v", start, state, err)
	}
	for _, bad := range []string{"", "5 (x", "5 (x) S", ") S 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 x 20"} {
		if _, _, err := parseStat([]byte(bad)); err == nil {
			t.Errorf("%q accepted", bad)
		}
	}
}

func waitFor(t *testing.T, what string, cond func() bool) {
	t.Helper()
	deadline := time.Now().Add(10 * time.Second)
	for !cond() {
		if time.Now().After(deadline) {
			t.Fatalf("waited in vain for %s", what)
		}
		time.Sleep(time.Millisecond)
	}
}

// A release that a process still executes is kept, whatever the records say.
func TestPruneKeepsWhatRuns(t *testing.T) {
	t.Parallel()
	sleep, err := exec.LookPath("sleep")
	if err != nil {
		t.Skip("no sleep(1)")
	}
	s := newStore(t)
	running, err := s.Stage(t.Context(), sleep, StageOptions{})
	do(t, err)
	idle := mustStage(t, s, "idle")
	cmd := exec.Command(running.Path, "60")
	cmd.Args[0] = "sleep" // for multi-call programs
	do(t, cmd.Start())
	removed, err := pruneFor(t, s, 0)
	do(t, cmd.Process.Kill())
	_ = cmd.Wait()
	if err != nil || len(removed) != 1 || removed[0].ID != idle.ID {
		t.Errorf("removed %+v, %v", removed, err)
	}
	removed, err = pruneFor(t, s, 0)
	if err != nil || len(removed) != 1 || removed[0].ID != running.ID {
		t.Errorf("removed %+v, %v", removed, err)
	}
	if list, err := os.ReadDir(filepath.Join(s.dir, releasesDir)); err != nil || len(list) != 0 {
		t.Errorf("left: %v, %v", list, err)
	}
}

// The way without leases.
func TestExecuting(t *testing.T) {
	t.Parallel()
	s := newStore(t)
	rel, err := s.openReleases(false)
	do(t, err)
	defer rel.Close()
	self, err := statInode(unix.AT_FDCWD, "/proc/self/exe", 0, unix.STATX_INO)
	do(t, err)
	running, err := executing(rel)
	if errors.Is(err, unix.EACCES) || errors.Is(err, unix.EPERM) {
		t.Skipf("this host hides processes even from root: %v", err)
	}
	if err != nil || !running[self] {
		t.Errorf("this test does not run: %v", err)
	}
}
