package release

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// startCopy copies sleep to path and runs it there.
func startCopy(t *testing.T, path string) (Proc, []byte) {
	t.Helper()
	sleep, err := exec.LookPath("sleep")
	if err != nil {
		t.Skip("no sleep(1)")
	}
	elf, err := os.ReadFile(sleep)
	do(t, err)
	if _, err := os.Stat(path); err != nil {
		writeFile(t, path, string(elf), 0o755)
	}
	return startAt(t, path), elf
}

// startAt runs a copy of sleep; in the background of a shell's exec nothing else is it.
func startAt(t *testing.T, path string) Proc {
	t.Helper()
	cmd := exec.Command(path, "60")
	cmd.Args[0] = "sleep"
	// Others fork all the time, and hold the file open for writing until they exec.
	waitFor(t, "the program to start", func() bool {
		err := cmd.Start()
		if errors.Is(err, unix.ETXTBSY) {
			cmd = exec.Command(path, "60")
			cmd.Args[0] = "sleep"
			return false
		}
		do(t, err)
		return true
	})
	t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	p, err := ProcOf(cmd.Process.Pid)
	do(t, err)
	return p
}

func TestRecover(t *testing.T) {
	t.Parallel()
	for name, harm := range map[string]func(path string) error{
		"as it is": func(path string) error { return nil },
		"deleted":  os.Remove,
		"replaced": func(path string) error {
			return errors.Join(os.WriteFile(path+".new", []byte("new"), 0o755), os.Rename(path+".new", path))
		},
		"renamed": func(path string) error { return os.Rename(path, path+"-old") },
		"written to": func(path string) error { // which the kernel refuses
			if f, err := os.OpenFile(path, os.O_WRONLY, 0); !errors.Is(err, unix.ETXTBSY) {
				f.Close()
				return errors.New("the running program could be written to")
			}
			return nil
		},
		"directory removed": func(path string) error { return os.RemoveAll(filepath.Dir(path)) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newStore(t)
			path := filepath.Join(t.TempDir(), "opt", "web-1.4.3")
			do(t, os.Mkdir(filepath.Dir(path), 0o755))
			p, elf := startCopy(t, path)
			do(t, harm(path))
			r, err := s.Recover(t.Context(), p, StageOptions{Why: "before the upgrade"})
			if err != nil {
				t.Fatal(err)
			}
			gone := name != "as it is" && name != "renamed" && name != "written to"
			want := path
			if name == "renamed" {
				want = path + "-old"
			}
			if r.Recovered == nil || r.Recovered.PID != p.PID || r.Recovered.Deleted != gone || r.Source != want || r.Why == "" {
				t.Errorf("release = %+v, %+v", r, r.Recovered)
			}
			if data, err := os.ReadFile(r.Path); err != nil || !bytes.Equal(data, elf) {
				t.Errorf("other bytes, %v", err)
			}
			if got, err := s.Get(r.ID); err != nil || got.Recovered == nil || *got.Recovered != *r.Recovered {
				t.Errorf("read back %+v, %v", got.Recovered, err)
			}
			// It can be run, and what runs then is the release.
			q := startAt(t, r.Path)
			before := snapshot(t, s.dir)
			for _, p := range []Proc{p, q} {
				if again, err := s.Recover(t.Context(), p, StageOptions{}); err != nil || again.ID != r.ID {
					t.Errorf("again: %s, %v, want %s", again.ID, err, r.ID)
				}
			}
			if after := snapshot(t, s.dir); after != before {
				t.Errorf("changed:\n%s", after)
			}
			checkSound(t, s)
			checkTidy(t, s)
		})
	}
}

// The release that runs was damaged, or removed as a whole: it comes back.
func TestRecoverRelease(t *testing.T) {
	t.Parallel()
	for name, harm := range map[string]func(r Release) error{
		"removed":  func(r Release) error { return os.RemoveAll(filepath.Dir(r.Path)) },
		"replaced": func(r Release) error { return rewrite(r.Path, "another") },
	} {
		s := newStore(t)
		src := filepath.Join(t.TempDir(), "web")
		startCopy(t, src)
		r, err := s.Stage(t.Context(), src, StageOptions{})
		do(t, err)
		p := startAt(t, r.Path)
		do(t, harm(r))
		got, err := s.Recover(t.Context(), p, StageOptions{})
		if err != nil || got.SHA256 != r.SHA256 || got.Recovered == nil || !got.Recovered.Deleted {
			t.Errorf("%s: %+v, %v", name, got, err)
		}
		do(t, s.Verify(t.Context(), got))
	}
}

func TestRecoverTree(t *testing.T) {
	t.Parallel()
	s := newStore(t)
	root := filepath.Join(t.TempDir(), "app")
	do(t, os.MkdirAll(filepath.Join(root, "bin"), 0o755))
	startCopy(t, filepath.Join(root, "bin/web"))
	r, err := s.Stage(t.Context(), root, StageOptions{})
	do(t, err)
	p := startAt(t, r.Path)
	if got, err := s.Recover(t.Context(), p, StageOptions{}); err != nil || got.ID != r.ID {
		t.Errorf("%s, %v, want %s", got.ID, err, r.ID)
	}
	do(t, os.RemoveAll(filepath.Dir(r.Path)))
	if got, err := s.Recover(t.Context(), p, StageOptions{}); err == nil || !strings.Contains(err.Error(), "was a directory") {
		t.Errorf("%+v, %v", got, err)
	}
}

func TestRecoverRefuses(t *testing.T) {
	t.Parallel()
	s := newStore(t)
	before := snapshot(t, s.dir)
	path := filepath.Join(t.TempDir(), "other")
	p, _ := startCopy(t, path)
	script := filepath.Join(t.TempDir(), "web")
	writeFile(t, script, "#!/bin/sh\nread x\n", 0o755)
	interpreted := exec.Command("/bin/sh", script)
	stdin, err := interpreted.StdinPipe()
	do(t, err)
	do(t, interpreted.Start())
	defer func() { stdin.Close(); _ = interpreted.Wait() }()
	sh, err := ProcOf(interpreted.Process.Pid)
	do(t, err)
	ended := exec.Command("/bin/true")
	do(t, ended.Start())
	zombie, err := ProcOf(ended.Process.Pid)
	do(t, err)
	waitFor(t, "its end", func() bool { return !zombie.Alive() })
	for name, tc := range map[string]struct {
		p    Proc
		o    StageOptions
		is   error
		want string
	}{
		"another program":    {p: p, want: "which is not web"},
		"a script":           {p: sh, want: "which is not web"},
		"another's number":   {p: Proc{PID: p.PID, Start: p.Start + 1}, is: fs.ErrNotExist},
		"no process":         {p: Proc{PID: 1 << 30, Start: 1}, is: fs.ErrNotExist},
		"nothing":            {p: Proc{}, is: fs.ErrNotExist},
		"a zombie":           {p: zombie, is: fs.ErrNotExist},
		"no checksum at all": {p: p, o: StageOptions{SHA256: "x"}, want: "not a SHA-256"},
	} {
		if r, err := s.Recover(t.Context(), tc.p, tc.o); err == nil || tc.is != nil && !errors.Is(err, tc.is) || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: %+v, %v", name, r, err)
		}
	}
	_ = ended.Wait()
	if after := snapshot(t, s.dir); after != before {
		t.Errorf("left behind:\n%s", after)
	}
	// It is the service's program, and not the one that was expected.
	web := filepath.Join(t.TempDir(), "web")
	q, _ := startCopy(t, web)
	var sum *ChecksumError
	if _, err := s.Recover(t.Context(), q, StageOptions{SHA256: sumOf("x")}); !errors.As(err, &sum) {
		t.Errorf("checksum: %v", err)
	}
}
