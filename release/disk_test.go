package release

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

const mountsEnv = "ZDT_RELEASE_TEST_MOUNTS"

// inOwnMounts runs the calling test again in a process with a mount namespace
// of its own, so that nothing stays mounted however the test ends. It returns
// true there, and false to the caller outside, which then is done.
func inOwnMounts(t *testing.T) bool {
	t.Helper()
	if os.Getenv(mountsEnv) != "" {
		if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
			t.Fatal(err)
		}
		return true
	}
	if os.Geteuid() != 0 {
		t.Skip("needs root: mounts small file systems")
	}
	self, err := os.Executable()
	do(t, err)
	cmd := exec.CommandContext(t.Context(), self, "-test.run=^"+t.Name()+"$", "-test.v")
	cmd.Env = append(os.Environ(), mountsEnv+"=1")
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNS}
	out, err := cmd.CombinedOutput()
	if errors.Is(err, unix.EPERM) {
		t.Skip("needs the right to make mount namespaces")
	}
	if err != nil || !strings.Contains(string(out), "--- PASS: "+t.Name()) {
		t.Errorf("%v\n%s", err, out)
	}
	return false
}

func TestDiskFull(t *testing.T) {
	if !inOwnMounts(t) {
		return
	}
	for _, kind := range []struct{ name, options string }{
		{"no space", "mode=755,size=256k"},
		{"no inodes", "mode=755,size=16m,nr_inodes=16"},
	} {
		t.Run(kind.name, func(t *testing.T) {
			disk := t.TempDir()
			do(t, unix.Mount("tmpfs", disk, "tmpfs", 0, kind.options))
			defer func() { _ = unix.Unmount(disk, unix.MNT_DETACH) }()
			s := createStore(t, disk)
			v0, v1 := mustStage(t, s, "v0"), mustStage(t, s, "v1")
			mustFlip(t, s, v1)
			mustAppend(t, s, Entry{TxID: testTxID(1), To: v1.ID, Committed: true})
			full := func(what string, err error) {
				t.Helper()
				var h interface{ Hint() string }
				if !errors.Is(err, unix.ENOSPC) || !errors.As(err, &h) || !strings.Contains(h.Hint(), "full") {
					t.Errorf("%s: %v", what, err)
				}
			}

			src := writeSource(t, "v2")
			if kind.name == "no space" {
				src = writeSource(t, bigContent('b', 1<<20))
			} else {
				fillInodes(t, disk)
			}
			before := snapshot(t, disk)
			_, err := s.Stage(t.Context(), src, StageOptions{})
			full("stage", err)
			if after := snapshot(t, disk); after != before {
				t.Errorf("left behind:\n%s\nwas\n%s", after, before)
			}

			// Whole directories, and archives.
			root := writeApp(t)
			writeFile(t, filepath.Join(root, "large"), bigContent('c', 1<<20), 0o644)
			for i := range 20 {
				writeFile(t, filepath.Join(root, "small"+strconv.Itoa(i)), "", 0o644)
			}
			for what, src := range map[string]string{"directory": root,
				"archive": writeBytes(t, "x", makeTar(t, file("web", script), data("large", bigContent('c', 1<<20)), data("a", ""), dir("b"), dir("c"), dir("d")))} {
				_, err := s.Stage(t.Context(), src, StageOptions{})
				full("stage "+what, err)
				if after := snapshot(t, disk); after != before {
					t.Errorf("%s left behind:\n%s\nwas\n%s", what, after, before)
				}
			}
			full("pin", fillAndPin(t, s, v1, disk))

			if kind.name == "no space" {
				before = snapshot(t, disk)
				full("stage on a full disk", func() error {
					_, err := s.Stage(t.Context(), src, StageOptions{})
					return err
				}())
				// So long that it does not fit into the last block.
				long := Entry{TxID: testTxID(2), Why: strings.Repeat("y", 64<<10)}
				full("history", s.AppendHistory(long))
			}
			full("txn", s.WriteTxn(Txn{TxID: testTxID(2), Phase: PhaseStage, Why: strings.Repeat("z", 8<<10)}))
			if _, err := s.ReadTxn(); !errors.Is(err, ErrNoTxn) {
				t.Errorf("txn: %v", err)
			}
			h, err := s.History()
			if err != nil || len(h.Entries) != 1 || len(h.Damage) != 0 {
				t.Errorf("history: %+v, %v", h, err)
			}
			if cur, err := s.Current(); err != nil || cur.ID != v1.ID {
				t.Errorf("current: %+v, %v", cur, err)
			}
			checkSound(t, s)
			checkTidy(t, s)

			// What makes room must not need any.
			if removed, err := pruneFor(t, s, 0); err != nil || len(removed) != 1 || removed[0].ID != v0.ID {
				t.Errorf("prune: %+v, %v", removed, err)
			}
			checkTidy(t, s)
			mustStage(t, s, "v2")
		})
	}
}

// fillAndPin pins a release when nothing at all fits any more.
func fillAndPin(t *testing.T, s *Store, r Release, disk string) error {
	t.Helper()
	ballast := filepath.Join(disk, "ballast")
	if f, err := os.OpenFile(ballast, os.O_CREATE|os.O_WRONLY, 0o644); err == nil {
		f.Close()
		fill(t, ballast)
	}
	err := s.Pin(t.Context(), r.ID, Pinned{})
	if got, _ := s.Get(r.ID); got.Pinned != nil {
		t.Error("pinned all the same")
	}
	return err
}

// fill writes until nothing fits any more.
func fill(t *testing.T, path string) {
	t.Helper()
	f, err := os.Create(path)
	do(t, err)
	defer f.Close()
	buf := make([]byte, 512)
	for err == nil {
		_, err = f.Write(buf)
	}
	if !errors.Is(err, unix.ENOSPC) {
		t.Fatal(err)
	}
}

func fillInodes(t *testing.T, dir string) {
	t.Helper()
	for i := 0; ; i++ {
		f, err := os.Create(filepath.Join(dir, "inode"+strings.Repeat("x", i)))
		if errors.Is(err, unix.ENOSPC) {
			return
		}
		do(t, err)
		f.Close()
	}
}

func TestMountOptions(t *testing.T) {
	if !inOwnMounts(t) {
		return
	}
	dir := t.TempDir()
	do(t, unix.Mount("tmpfs", dir, "tmpfs", unix.MS_NOEXEC, "mode=755,size=4m"))
	defer func() { _ = unix.Unmount(dir, unix.MNT_DETACH) }()
	s := createStore(t, dir)
	before := snapshot(t, dir)
	_, err := s.Stage(t.Context(), writeSource(t, "v1"), StageOptions{})
	if err == nil || !strings.Contains(err.Error(), "noexec") {
		t.Errorf("noexec: %v", err)
	}
	if after := snapshot(t, dir); after != before {
		t.Errorf("left behind:\n%s", after)
	}
	do(t, unix.Mount("", dir, "", unix.MS_REMOUNT, "mode=755,size=4m"))
	v0, v1 := mustStage(t, s, "v0"), mustStage(t, s, "v1")
	mustFlip(t, s, v1)

	// Read-only: everything can still be read, and writing says why it fails.
	do(t, unix.Mount("", dir, "", unix.MS_REMOUNT|unix.MS_RDONLY, "mode=755,size=4m"))
	if cur, err := s.Current(); err != nil || cur.ID != v1.ID {
		t.Errorf("current: %v", err)
	}
	_, err = s.Stage(t.Context(), writeSource(t, "v2"), StageOptions{})
	for what, err := range map[string]error{
		"stage":   err,
		"txn":     s.WriteTxn(Txn{TxID: testTxID(1), Phase: PhaseStage}),
		"history": s.AppendHistory(Entry{TxID: testTxID(1)}),
		"pin":     s.Pin(t.Context(), v1.ID, Pinned{}),
		"fail":    s.MarkFailed(v0.ID, Failed{TxID: testTxID(1)}),
		"prune":   func() error { _, err := pruneFor(t, s, 0); return err }(),
		"tree":    func() error { _, err := s.Stage(t.Context(), writeApp(t), StageOptions{}); return err }(),
	} {
		var h interface{ Hint() string }
		if !errors.Is(err, unix.EROFS) || !errors.As(err, &h) || !strings.Contains(h.Hint(), "read-only") {
			t.Errorf("%s: %v", what, err)
		}
	}
}

// Containers and the test guests keep everything on an overlay.
func TestOverlay(t *testing.T) {
	if !inOwnMounts(t) {
		return
	}
	sleep, err := exec.LookPath("sleep")
	if err != nil {
		t.Skip("no sleep(1)")
	}
	base := t.TempDir()
	do(t, unix.Mount("tmpfs", base, "tmpfs", 0, "mode=755,size=16m"))
	defer func() { _ = unix.Unmount(base, unix.MNT_DETACH) }()
	dir := func(name string) string { return filepath.Join(base, name) }
	for _, d := range []string{"lower", "upper", "work", "merged"} {
		do(t, os.Mkdir(dir(d), 0o755))
	}
	data, err := os.ReadFile(sleep)
	do(t, err)
	writeFile(t, filepath.Join(dir("lower"), "program"), string(data), 0o755)
	err = unix.Mount("overlay", dir("merged"), "overlay", 0,
		"lowerdir="+dir("lower")+",upperdir="+dir("upper")+",workdir="+dir("work"))
	if err != nil {
		t.Skipf("no overlay here: %v", err)
	}
	s := createStore(t, filepath.Join(dir("merged"), "zdt"))
	r, err := s.Stage(t.Context(), filepath.Join(dir("merged"), "program"), StageOptions{})
	do(t, err)
	cmd := exec.Command(r.Path, "60")
	cmd.Args[0] = "sleep"
	do(t, cmd.Start())
	removed, err := pruneFor(t, s, 0)
	do(t, cmd.Process.Kill())
	_ = cmd.Wait()
	if err != nil || len(removed) != 0 {
		t.Errorf("removed what runs: %+v, %v", removed, err)
	}
	if removed, err := pruneFor(t, s, 0); err != nil || len(removed) != 1 {
		t.Errorf("removed %+v, %v", removed, err)
	}
}
