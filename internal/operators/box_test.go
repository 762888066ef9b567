package operators

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

const (
	ann, bob = 12345, 12346
	group    = 12345
)

// box is the box of web, and its path. It needs root: files have to be given to others.
func box(t *testing.T) (*Box, string) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root, to make files of others")
	}
	path := filepath.Join(t.TempDir(), "spool", "web")
	if err := Make(path, group); err != nil {
		t.Fatal(err)
	}
	b, err := Open(path, "web")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(b.Close)
	return b, path
}

// drop puts a file into incoming as a user would have.
func drop(t *testing.T, path, name, content string, uid int) string {
	t.Helper()
	at := filepath.Join(path, incoming, name)
	if err := os.WriteFile(at, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Chown(at, uid, group); err != nil {
		t.Fatal(err)
	}
	return at
}

const id = "0123456789abcdef0123456789abcdef"

func TestMake(t *testing.T) {
	_, path := box(t)
	for name, mode := range map[string]fs.FileMode{"": 0o750, incoming: 0o730 | fs.ModeSetgid | fs.ModeSticky, answers: 0o750, taken: 0o700} {
		fi, err := os.Stat(filepath.Join(path, name))
		if err != nil || fi.Mode() != mode|fs.ModeDir {
			t.Errorf("%q: %v, %v", name, fi.Mode(), err)
		}
	}
	if missing, err := Missing(path, group); err != nil || len(missing) > 0 {
		t.Error(missing, err)
	}
	if missing, err := Missing(path, group+1); err != nil || len(missing) != 3 { // taken is root's
		t.Error(missing, err)
	}
	// Somebody has changed it.
	for _, name := range []string{"", incoming, answers, taken} {
		at := filepath.Join(path, name)
		if err := os.Chmod(at, 0o755); err != nil {
			t.Fatal(err)
		}
		if b, err := Open(path, "web"); err == nil || !strings.Contains(err.Error(), at) {
			t.Errorf("%q: %v", name, err)
			if err == nil {
				b.Close()
			}
		}
		if err := Make(path, group); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := Open(path+"x", "web"); !errors.Is(err, fs.ErrNotExist) {
		t.Error(err)
	}
	if err := os.RemoveAll(filepath.Join(path, answers)); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("/etc", filepath.Join(path, answers)); err != nil {
		t.Fatal(err)
	}
	if err := Make(path, group); err == nil {
		t.Error("made through a link")
	}
}

func TestTake(t *testing.T) {
	const good = `{"schema":"zdt.request/1","service":"web","do":"rollback"}`
	b, path := box(t)
	secret := filepath.Join(filepath.Dir(path), "secret")
	if err := os.WriteFile(secret, []byte(good), 0o600); err != nil {
		t.Fatal(err)
	}
	name := id + requestSuffix
	at := filepath.Join(path, incoming, name)
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	for _, tt := range []struct {
		what string
		make func()
		want string // "": taken
		now  time.Duration
	}{
		{"a good one", func() { drop(t, path, name, good, ann) }, "", 0},
		{"readable for others", func() { must(os.Chmod(drop(t, path, name, good, ann), 0o644)) }, "", 0},
		{"a symbolic link", func() { must(os.Symlink(secret, at)) }, "symbolic link", 0},
		{"a dangling link", func() { must(os.Symlink("/nowhere", at)) }, "symbolic link", 0},
		{"a hard link", func() { must(os.Link(secret, at)) }, "hard links", 0},
		{"a hard link of one's own", func() { must(os.Link(drop(t, path, "x", good, ann), at)) }, "hard links", 0},
		{"a fifo", func() { must(unix.Mkfifo(at, 0o600)); must(os.Chown(at, ann, group)) }, "not a regular file", 0},
		{"a device", func() { must(unix.Mknod(at, unix.S_IFCHR|0o600, int(unix.Mkdev(1, 5)))) }, "not a regular file", 0},
		{"root's", func() { drop(t, path, name, good, 0) }, "belongs to root", 0},
		{"moved here", func() { must(os.Chown(drop(t, path, name, good, ann), ann, group+1)) }, "was not made here", 0},
		{"writable for the group", func() { must(os.Chmod(drop(t, path, name, good, ann), 0o660)) }, "written by others", 0},
		{"writable for all", func() { must(os.Chmod(drop(t, path, name, good, ann), 0o602)) }, "written by others", 0},
		{"empty", func() { drop(t, path, name, "", ann) }, "is empty", 0},
		{"huge", func() { must(os.Truncate(drop(t, path, name, good, ann), maxRequest+1)) }, "bytes, at most", 0},
		{"nonsense", func() { drop(t, path, name, "{", ann) }, "not a request", 0},
		{"old", func() { drop(t, path, name, good, ann) }, "old", MaxAge + time.Minute},
		{"of the future", func() { drop(t, path, name, good, ann) }, "old", -MaxAge - time.Minute},
	} {
		tt.make()
		r, err := b.Take(id, time.Now().Add(tt.now))
		if tt.want == "" && (err != nil || r.UID != ann || r.Request.Do != Rollback) || tt.want != "" && (err == nil || !strings.Contains(err.Error(), tt.want)) {
			t.Errorf("%s: %+v, %v; want %q", tt.what, r, err, tt.want)
		}
		if _, err := os.Lstat(at); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s: it is still there (%v)", tt.what, err)
			os.Remove(at)
		}
		os.Remove(filepath.Join(path, incoming, "x"))
	}
	if data, err := os.ReadFile(secret); err != nil || string(data) != good {
		t.Error("what was linked to was touched")
	}
	// A directory cannot be taken away; nothing is asked by it, either.
	must(os.Mkdir(at, 0o777))
	if _, err := b.Take(id, time.Now()); err == nil {
		t.Error("a directory was taken")
	}
}

func TestCopy(t *testing.T) {
	const txid = "20261122T124005123Z-4f2a91c0"
	b, path := box(t)
	take := Taken{ID: id, UID: ann, Request: Request{Program: &Program{Name: "web", SHA256: sum, Signed: true}}}
	drop(t, path, id+programSuffix, "program", ann)
	drop(t, path, id+signatureSuffix, "signature", ann)
	program, signature, err := b.Copy(t.Context(), take, txid)
	if err != nil {
		t.Fatal(err)
	}
	for at, want := range map[string]string{program: "program", signature: "signature"} {
		data, err := os.ReadFile(at)
		fi, serr := os.Stat(at)
		if err != nil || serr != nil || string(data) != want || fi.Mode().Perm()&0o077 != 0 {
			t.Errorf("%s: %q, %v", at, data, err)
		}
	}
	if left, _ := os.ReadDir(filepath.Join(path, incoming)); len(left) > 0 {
		t.Errorf("left in incoming: %v", left)
	}
	if err := b.Clear(func(string) bool { return true }); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(program); err != nil {
		t.Error("cleared while it runs")
	}
	if err := b.Clear(func(name string) bool { return name != txid }); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(filepath.Dir(program)); !errors.Is(err, fs.ErrNotExist) {
		t.Error("not cleared")
	}

	take.Request.Program.Signed = false
	for what, make := range map[string]func(){
		"belongs to uid":     func() { drop(t, path, id+programSuffix, "x", bob) },
		"symbolic link":      func() { os.Symlink("/etc/shadow", filepath.Join(path, incoming, id+programSuffix)) },
		"hard links":         func() { os.Link(drop(t, path, "x", "x", ann), filepath.Join(path, incoming, id+programSuffix)) },
		"not a regular file": func() { unix.Mkfifo(filepath.Join(path, incoming, id+programSuffix), 0o600) },
		"at most": func() {
			os.Truncate(drop(t, path, id+programSuffix, "x", ann), MaxProgram+1)
		},
		"no such file": func() {},
	} {
		make()
		if _, _, err := b.Copy(t.Context(), take, txid); err == nil || !strings.Contains(err.Error(), what) {
			t.Errorf("%s: %v", what, err)
		}
		if left, err := os.ReadDir(filepath.Join(path, taken)); err != nil || len(left) > 0 {
			t.Errorf("%s: left %v, %v", what, left, err)
		}
		os.Remove(filepath.Join(path, incoming, "x"))
		os.Remove(filepath.Join(path, incoming, id+programSuffix))
	}
	for _, bad := range []string{"", "..", "../x", "20261122T124005123Z-4f2a91c0/../../x"} {
		if _, _, err := b.Copy(t.Context(), take, bad); err == nil {
			t.Errorf("%q is the ID of an upgrade", bad)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	drop(t, path, id+programSuffix, "program", ann)
	if _, _, err := b.Copy(ctx, take, txid); !errors.Is(err, context.Canceled) {
		t.Error(err) // a clone would have been too quick for that
	}
}

// A request that is refused takes nothing of anybody else's with it.
func TestDrop(t *testing.T) {
	b, path := box(t)
	drop(t, path, id+programSuffix, "ann's", ann)
	drop(t, path, id+signatureSuffix, "bob's", bob)
	b.Drop(id, bob)
	entries, err := os.ReadDir(filepath.Join(path, incoming))
	if err != nil || len(entries) != 1 || entries[0].Name() != id+programSuffix {
		t.Errorf("%v, %v", entries, err)
	}
}

// A directory with a request's name is none: it could not be taken away, and would be asked for again and again.
func TestDirectoryIsNoRequest(t *testing.T) {
	b, path := box(t)
	if err := os.MkdirAll(filepath.Join(path, incoming, id+requestSuffix, "full"), 0o755); err != nil {
		t.Fatal(err)
	}
	if ids, err := b.Waiting(); err != nil || len(ids) > 0 {
		t.Errorf("%q wait, %v", ids, err)
	}
}

func TestSweep(t *testing.T) {
	b, path := box(t)
	for _, name := range []string{id + requestSuffix, id + draftSuffix, id + programSuffix, id + signatureSuffix, "notes.txt", "x" + requestSuffix} {
		drop(t, path, name, "x", ann)
	}
	left := func(want int) {
		t.Helper()
		if entries, err := os.ReadDir(filepath.Join(path, incoming)); err != nil || len(entries) != want {
			t.Errorf("%v, %v; want %d", entries, err, want)
		}
	}
	if err := b.Sweep(time.Now(), false); err != nil {
		t.Error(err)
	}
	left(6)
	if ids, err := b.Waiting(); err != nil || len(ids) != 1 || ids[0] != id {
		t.Error(ids, err)
	}
	if err := b.Sweep(time.Now().Add(leftover+time.Minute), false); err != nil {
		t.Error(err)
	}
	left(2)
	drop(t, path, id+requestSuffix, "x", ann)
	if err := os.MkdirAll(filepath.Join(path, incoming, "in", "the", "way"), 0o755); err != nil {
		t.Fatal(err)
	}
	outside := filepath.Join(t.TempDir(), "kept")
	if err := os.WriteFile(outside, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(filepath.Dir(outside), filepath.Join(path, incoming, "link")); err != nil {
		t.Fatal(err)
	}
	if err := b.Sweep(time.Now(), true); err != nil {
		t.Error(err)
	}
	left(0)
	if _, err := os.Stat(outside); err != nil {
		t.Errorf("a link was followed: %v", err)
	}
}

func TestAnswer(t *testing.T) {
	b, path := box(t)
	for range maxAnswers + 5 {
		id, err := NewID()
		if err != nil {
			t.Fatal(err)
		}
		f, err := b.Answer(id)
		if err != nil {
			t.Fatal(err)
		}
		f.Close()
		if _, err := b.Answer(id); !errors.Is(err, fs.ErrExist) {
			t.Errorf("a second answer to one request: %v", err)
		}
	}
	entries, err := os.ReadDir(filepath.Join(path, answers))
	if err != nil || len(entries) != maxAnswers+5 {
		t.Errorf("%d answers, %v: nobody has had the time to read them", len(entries), err)
	}
	old := time.Now().Add(-2 * MaxAge)
	for _, e := range entries {
		if err := os.Chtimes(filepath.Join(path, answers, e.Name()), old, old); err != nil {
			t.Fatal(err)
		}
	}
	f, err := b.Answer(id)
	if err != nil {
		t.Fatal(err)
	}
	f.Close()
	entries, err = os.ReadDir(filepath.Join(path, answers))
	if err != nil || len(entries) > maxAnswers {
		t.Errorf("%d answers, %v", len(entries), err)
	}
	for _, e := range entries {
		fi, err := e.Info()
		if err != nil || fi.Mode() != 0o640 {
			t.Error(fi.Mode(), err)
		}
	}
}

// Who waits for an answer finds it by its name, and can read it from the moment on in which it is there.
func TestAnswerIsReadable(t *testing.T) {
	b, path := box(t)
	id, err := NewID()
	if err != nil {
		t.Fatal(err)
	}
	name := filepath.Join(path, answers, id+answerSuffix)
	stop, done := make(chan struct{}), make(chan struct{})
	var unreadable fs.FileMode
	go func() {
		defer close(done)
		for {
			select {
			case <-stop:
				return
			default:
			}
			if fi, err := os.Stat(name); err == nil && fi.Mode() != 0o640 {
				unreadable = fi.Mode()
			}
		}
	}()
	for range 300 {
		f, err := b.Answer(id)
		if err != nil {
			t.Fatal(err)
		}
		f.Close()
		if err := os.Remove(name); err != nil {
			t.Fatal(err)
		}
	}
	close(stop)
	<-done
	if unreadable != 0 {
		t.Errorf("for a moment it had the mode %04o", unreadable)
	}
	if left, err := os.ReadDir(filepath.Dir(name)); err != nil || len(left) > 0 {
		t.Errorf("%v is left, %v", left, err)
	}
}

// What Post puts there is what Box takes. As root the owner has to be changed in between.
func TestPost(t *testing.T) {
	b, path := box(t)
	file := filepath.Join(t.TempDir(), "web-1")
	if err := os.WriteFile(file, []byte("program"), 0o644); err != nil {
		t.Fatal(err)
	}
	p, err := NewPost(path)
	if err != nil {
		t.Fatal(err)
	}
	defer p.Withdraw()
	if err := MayPost(path); err != nil {
		t.Error(err)
	}
	if err := MayPost(path + "x"); !errors.Is(err, fs.ErrNotExist) {
		t.Error(err)
	}
	sum, err := p.Program(t.Context(), file)
	if err != nil {
		t.Fatal(err)
	}
	if err := p.Again(); err != nil {
		t.Fatal(err)
	}
	if err := p.Send(Request{Service: "web", Do: Upgrade, Program: &Program{Name: "web-1", SHA256: sum}}); err != nil {
		t.Fatal(err)
	}
	for _, suffix := range []string{requestSuffix, programSuffix} {
		if err := os.Chown(filepath.Join(path, incoming, p.ID+suffix), ann, -1); err != nil {
			t.Fatal(err)
		}
	}
	taken, err := b.Take(p.ID, time.Now())
	if err != nil || taken.UID != ann || taken.Request.Program.SHA256 != sum {
		t.Fatalf("%+v, %v", taken, err)
	}
	if p.Recall() {
		t.Error("what was taken is called back")
	}
	if _, _, err := b.Copy(t.Context(), taken, "20261122T124005123Z-4f2a91c0"); err != nil {
		t.Error(err)
	}
	for _, bad := range []string{filepath.Dir(file), "/dev/null", "/absent"} {
		if err := p.Signature(t.Context(), bad); err == nil {
			t.Errorf("%s was taken", bad)
		}
	}
	if err := p.Send(Request{Service: "web", Do: "hold"}); err == nil {
		t.Error("sent what cannot be asked for")
	}
	p.Withdraw()
	if entries, err := os.ReadDir(filepath.Join(path, incoming)); err != nil || len(entries) > 0 {
		t.Error(entries, err)
	}
}
