package release

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func sumOf(content string) string {
	sum := sha256.Sum256([]byte(content))
	return hex.EncodeToString(sum[:])
}

func TestStage(t *testing.T) {
	t.Parallel()
	s := newStore(t)
	src := writeSource(t, "#!/bin/sh\nexit 0\n")
	want := sumOf("#!/bin/sh\nexit 0\n")
	r, err := s.Stage(t.Context(), src, StageOptions{SHA256: "sha256:" + strings.ToUpper(want)})
	if err != nil {
		t.Fatal(err)
	}
	if r.SHA256 != want || !ValidID(r.ID) || !strings.HasSuffix(r.ID, want[:12]) || r.Size != 17 || r.Source != src {
		t.Errorf("release = %+v", r)
	}
	if want := filepath.Join(s.Dir(), "releases", r.ID, testProgram); r.Path != want {
		t.Errorf("path = %s, want %s", r.Path, want)
	}
	for path, mode := range map[string]fs.FileMode{
		s.Dir():                            0o755,
		filepath.Join(s.Dir(), "releases"): 0o755,
		filepath.Dir(r.Path):               0o755,
		r.Path:                             0o555,
		filepath.Join(filepath.Dir(r.Path), recordFile): 0o444,
		filepath.Join(s.Dir(), lockFile):                0o600,
	} {
		fi, err := os.Lstat(path)
		if err != nil {
			t.Fatal(err)
		}
		if fi.Mode().Perm() != mode {
			t.Errorf("%s has mode %04o, want %04o", path, fi.Mode().Perm(), mode)
		}
	}
	got, err := s.Get(r.ID)
	if err != nil {
		t.Fatal(err)
	}
	if got.Path != r.Path || got.SHA256 != r.SHA256 || !got.StagedAt.Equal(r.StagedAt) || got.Source != r.Source {
		t.Errorf("read back %+v, staged %+v", got, r)
	}
	if err := exec.Command(r.Path).Run(); err != nil {
		t.Errorf("run the release: %v", err)
	}
	checkTidy(t, s)
}

// The mask of the caller must not decide who can run the program.
func TestStageUmask(t *testing.T) {
	old := syscall.Umask(0o077)
	defer syscall.Umask(old)
	base := t.TempDir()
	if err := os.Chmod(base, 0o755); err != nil {
		t.Fatal(err)
	}
	s := createStore(t, filepath.Join(base, "a", "b"))
	r := mustStage(t, s, "program")
	mustFlip(t, s, r)
	mustAppend(t, s, Entry{})
	if err := s.WriteTxn(Txn{TxID: testTxID(1), Phase: PhaseStage}); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{filepath.Join(base, "a"), s.dir, filepath.Dir(r.Path), r.Path,
		filepath.Join(s.dir, historyFile), filepath.Join(s.dir, txnFile)} {
		fi, err := os.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		if fi.Mode()&0o004 == 0 {
			t.Errorf("%s is closed to others: %s", path, fi.Mode())
		}
	}
}

func TestStageSameContentAgain(t *testing.T) {
	t.Parallel()
	s := newStore(t)
	first := stageAt(t, s, "v1", time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC))
	other := mustStage(t, s, "v2") // same size
	before := snapshot(t, s.dir)
	again := mustStage(t, s, "v1")
	if again.ID != first.ID || again.Path != first.Path {
		t.Errorf("staged again as %s, was %s", again.ID, first.ID)
	}
	if other.ID == first.ID {
		t.Error("other content, same release")
	}
	if after := snapshot(t, s.dir); after != before {
		t.Errorf("staging again changed the store:\n%s\nwas\n%s", after, before)
	}
	// The checksum is checked on this way too.
	var sumErr *ChecksumError
	_, err := s.Stage(t.Context(), writeSource(t, "v1"), StageOptions{SHA256: sumOf("v2")})
	if !errors.As(err, &sumErr) || sumErr.Got != sumOf("v1") {
		t.Errorf("error = %v", err)
	}
}

// A release that was tampered with must not be returned for good content.
func TestStageDoesNotTrustADamagedRelease(t *testing.T) {
	t.Parallel()
	now := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	s := newStore(t)
	bad := stageAt(t, s, "v1", now)
	if err := os.Chmod(bad.Path, 0o755); err != nil {
		t.Fatal(err)
	}
	writeFile(t, bad.Path, "vX", 0o555)
	if err := s.Verify(t.Context(), bad); !errors.Is(err, ErrDamaged) {
		t.Errorf("verify: %v", err)
	}
	good := stageAt(t, s, "v1", now) // the same second: the name is taken
	if good.ID == bad.ID {
		t.Fatal("got the damaged release")
	}
	if err := s.Verify(t.Context(), good); err != nil {
		t.Error(err)
	}
}

func TestStageRefuses(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	fifo := filepath.Join(dir, "fifo")
	if err := unix.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	empty := filepath.Join(dir, "empty")
	writeFile(t, empty, "", 0o755)
	good := filepath.Join(dir, "good")
	writeFile(t, good, "good", 0o755)
	busy := filepath.Join(dir, "busy")
	writeFile(t, busy, "half of it", 0o755)
	writer, err := os.OpenFile(busy, os.O_WRONLY|os.O_APPEND, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer writer.Close()

	for _, tc := range []struct {
		name, src, sum, want string
		is                   error
	}{
		{name: "missing", src: filepath.Join(dir, "no"), is: fs.ErrNotExist, want: "open source"},
		{name: "directory", src: dir, want: "is being written"},
		{name: "fifo", src: fifo, want: "not a regular file"},
		{name: "device", src: "/dev/null", want: "not a regular file"},
		{name: "empty", src: empty, want: "is empty"},
		{name: "proc", src: "/proc/self/status", want: "is empty"},
		{name: "being written", src: busy, want: "being written"},
		{name: "checksum", src: good, sum: sumOf("other"), want: "sha256 of"},
		{name: "no checksum", src: good, sum: "abc", want: "not a SHA-256"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s := newStore(t)
			before := snapshot(t, s.dir)
			_, err := s.Stage(t.Context(), tc.src, StageOptions{SHA256: tc.sum})
			if err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("error = %v, want %q", err, tc.want)
			}
			if tc.is != nil && !errors.Is(err, tc.is) {
				t.Errorf("error = %v, want %v", err, tc.is)
			}
			if after := snapshot(t, s.dir); after != before {
				t.Errorf("left behind:\n%s", after)
			}
		})
	}
}

func TestStageFollowsTheOperatorsLink(t *testing.T) {
	t.Parallel()
	s := newStore(t)
	src := writeSource(t, "linked")
	link := filepath.Join(t.TempDir(), "latest")
	if err := os.Symlink(src, link); err != nil {
		t.Fatal(err)
	}
	r, err := s.Stage(t.Context(), link, StageOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if r.Source != src {
		t.Errorf("source = %s, want %s", r.Source, src)
	}
}

// Whatever happens to the path or the file once it is open, the release holds
// the file that was opened, or there is none.
func TestStageSourceChanges(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		name   string
		at     string
		change func(src string) error
	}{
		{"replaced", "stage: copy", func(src string) error {
			if err := os.WriteFile(src+".new", []byte("evil!"), 0o755); err != nil {
				return err
			}
			return os.Rename(src+".new", src)
		}},
		{"touched", "stage: source unchanged", func(src string) error {
			return os.Chtimes(src, time.Time{}, time.Unix(1, 0))
		}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s := newStore(t)
			src := writeSource(t, "good!")
			s.step = func(label string, f func() error) error {
				if label == tc.at {
					if err := tc.change(src); err != nil {
						return err
					}
				}
				return f()
			}
			before := snapshot(t, s.dir)
			_, err := s.Stage(t.Context(), src, StageOptions{})
			if err == nil || !strings.Contains(err.Error(), "changed while") {
				t.Errorf("error = %v", err)
			}
			if after := snapshot(t, s.dir); after != before {
				t.Errorf("left behind:\n%s", after)
			}
		})
	}
}

// While the copy runs, a writer waits: it cannot get its bytes into it.
func TestStageKeepsWritersOut(t *testing.T) {
	t.Parallel()
	s := newStore(t)
	src := writeSource(t, "good!")
	s.step = func(label string, f func() error) error {
		if label == "stage: copy" {
			fd, err := unix.Open(src, unix.O_WRONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
			if err == nil {
				unix.Close(fd)
			}
			if !errors.Is(err, unix.EWOULDBLOCK) {
				t.Errorf("open for writing: %v, want %v", err, unix.EWOULDBLOCK)
			}
		}
		return f()
	}
	if _, err := s.Stage(t.Context(), src, StageOptions{}); err != nil {
		t.Fatal(err)
	}
	// And not a moment longer.
	f, err := os.OpenFile(src, os.O_WRONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	f.Close()
}

func TestStageCancelled(t *testing.T) {
	t.Parallel()
	s := newStore(t)
	ctx, cancel := context.WithCancel(t.Context())
	s.step = func(label string, f func() error) error {
		if label == "stage: copy" {
			cancel()
		}
		return f()
	}
	before := snapshot(t, s.dir)
	_, err := s.Stage(ctx, writeSource(t, bigContent('a', 4*copyChunk)), StageOptions{})
	if !errors.Is(err, context.Canceled) {
		t.Errorf("error = %v", err)
	}
	if after := snapshot(t, s.dir); after != before {
		t.Errorf("left behind:\n%s", after)
	}
}

func TestStageConcurrently(t *testing.T) {
	t.Parallel()
	s := newStore(t)
	src := writeSource(t, bigContent('a', 1<<20))
	const n = 8
	ids := make([]string, n)
	var wg sync.WaitGroup
	for i := range n {
		wg.Go(func() {
			own, err := Open(s.dir, Options{Program: testProgram}) // as another process would
			if err != nil {
				t.Error(err)
				return
			}
			defer own.Close()
			r, err := own.Stage(t.Context(), src, StageOptions{})
			if err != nil {
				t.Error(err)
			}
			ids[i] = r.ID
		})
	}
	wg.Wait()
	for _, id := range ids {
		if id != ids[0] {
			t.Errorf("releases %q", ids)
			break
		}
	}
	list, err := s.List()
	if err != nil || len(list) != 1 {
		t.Errorf("%d releases, error %v", len(list), err)
	}
	checkSound(t, s)
	checkTidy(t, s)
}

func TestStageSweeps(t *testing.T) {
	t.Parallel()
	s := newStore(t)
	outside := filepath.Join(t.TempDir(), "precious")
	writeFile(t, outside, "data", 0o644)
	left := filepath.Join(s.dir, releasesDir, ".tmp-0011223344556677")
	if err := os.MkdirAll(filepath.Join(left, "deep", "er"), 0o700); err != nil {
		t.Fatal(err)
	}
	writeFile(t, filepath.Join(left, "deep", "file"), "x", 0o400)
	if err := os.Symlink(filepath.Dir(outside), filepath.Join(left, "link")); err != nil {
		t.Fatal(err)
	}
	mustStage(t, s, "v1")
	checkTidy(t, s)
	if _, err := os.Stat(outside); err != nil {
		t.Errorf("swept through a link: %v", err)
	}
}

func TestStageBuildInfo(t *testing.T) {
	t.Parallel()
	s := newStore(t)
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	r, err := s.Stage(t.Context(), self, StageOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if r.Build == nil || r.Build.GoVersion == "" || r.Build.GOARCH == "" {
		t.Errorf("build = %+v", r.Build)
	}
	got, err := s.Get(r.ID)
	if err != nil || got.Build == nil || *got.Build != *r.Build {
		t.Errorf("read back %+v, %v", got.Build, err)
	}
	if r := mustStage(t, s, "#!/bin/sh\n"); r.Build != nil {
		t.Errorf("build of a script = %+v", r.Build)
	}
}

// A program must be runnable at once, though others fork all the time.
func TestStageRunsAtOnce(t *testing.T) {
	t.Parallel()
	s := newStore(t)
	trueBin, err := exec.LookPath("true")
	if err != nil {
		t.Skip("no true(1)")
	}
	elf, err := os.ReadFile(trueBin)
	if err != nil {
		t.Fatal(err)
	}
	stop := make(chan struct{})
	var wg sync.WaitGroup
	for range 2 {
		wg.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				if err := exec.Command(trueBin).Run(); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	defer wg.Wait()
	defer close(stop)
	for i := range 20 {
		// Bytes behind the end of an ELF file do not matter.
		r := mustStage(t, s, string(elf)+string(rune('a'+i)))
		if err := exec.Command(r.Path).Run(); err != nil {
			t.Fatalf("run %d: %v", i, err)
		}
	}
}

func TestValidID(t *testing.T) {
	t.Parallel()
	at := time.Date(2026, 11, 22, 13, 40, 5, 999, time.FixedZone("x", 3600))
	if id := newID(at, sumOf("v1")); id != "20261122T124005Z-"+sumOf("v1")[:12] || !ValidID(id) {
		t.Errorf("id = %q", id)
	}
	for _, bad := range []string{
		"", ".", "..", "current", "20261122T124005Z", "20261122T124005Z-", "20261122T124005Z-0123456789a",
		"20261122T124005Z-0123456789abc", "20261122T124005Z-0123456789aG", "20261322T124005Z-0123456789ab",
		"../../22T124005Z-0123456789ab", "20261122T124005Z-0123456789ab/", ".tmp-20261122T124005Z-0123456789ab",
		"20261122T124005Z-0123456789AB",
	} {
		if ValidID(bad) {
			t.Errorf("%q is valid", bad)
		}
	}
}
