package release

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"errors"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// file is a member of an archive with mode 0755.
func file(name, content string) *tar.Header {
	return &tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o755, Size: int64(len(content)), PAXRecords: map[string]string{"TEST.content": content}}
}

func dir(name string) *tar.Header {
	return &tar.Header{Typeflag: tar.TypeDir, Name: name, Mode: 0o2775}
}

func link(name, target string) *tar.Header {
	return &tar.Header{Typeflag: tar.TypeSymlink, Name: name, Linkname: target, Mode: 0o777}
}

func member0(kind byte, name string) *tar.Header {
	return &tar.Header{Typeflag: kind, Name: name, Mode: 0o644}
}

func data(name, content string) *tar.Header {
	h := file(name, content)
	h.Mode = 0o640
	return h
}

// makeTar returns an archive of the members.
func makeTar(t testing.TB, members ...*tar.Header) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, h := range members {
		c := *h
		content := c.PAXRecords["TEST.content"]
		c.PAXRecords = nil
		if caps, ok := h.PAXRecords["SCHILY.xattr.security.capability"]; ok {
			c.PAXRecords = map[string]string{"SCHILY.xattr.security.capability": caps}
		}
		if err := w.WriteHeader(&c); err != nil {
			t.Fatal(c.Name, err)
		}
		if _, err := w.Write([]byte(content)); err != nil {
			t.Fatal(c.Name, err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func gz(t testing.TB, data []byte) []byte {
	t.Helper()
	var b bytes.Buffer
	w := gzip.NewWriter(&b)
	if _, err := w.Write(data); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func writeBytes(t testing.TB, name string, data []byte) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, data, 0o644); err != nil {
		t.Fatal(err)
	}
	return path
}

const script = "#!/bin/sh\necho \"$0\"\n"

// app is a small program with what belongs to it.
func app() []*tar.Header {
	return []*tar.Header{
		dir("bin"), file("bin/web", script), data("conf/web.conf", "port 80\n"), dir("empty/deep"),
		link("lib", "conf"), link("bin/up", "../lib/../conf/web.conf"), data("na me\n\xff", ""),
	}
}

// writeApp writes the same into a directory.
func writeApp(t testing.TB) string {
	t.Helper()
	root := filepath.Join(t.TempDir(), "app")
	for _, err := range []error{
		os.MkdirAll(filepath.Join(root, "bin"), 0o700), os.MkdirAll(filepath.Join(root, "conf"), 0o777), os.MkdirAll(filepath.Join(root, "empty/deep"), 0o755),
		os.WriteFile(filepath.Join(root, "na me\n\xff"), nil, 0o600),
		os.WriteFile(filepath.Join(root, "conf/web.conf"), []byte("port 80\n"), 0o644),
		os.WriteFile(filepath.Join(root, "bin/web"), []byte(script), 0o700),
		os.Symlink("conf", filepath.Join(root, "lib")), os.Symlink("../lib/../conf/web.conf", filepath.Join(root, "bin/up")),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	return root
}

func TestStageTree(t *testing.T) {
	t.Parallel()
	s := newStore(t)
	src := writeBytes(t, "web-1.4.3.tar.gz", gz(t, makeTar(t, app()...)))
	r, err := s.Stage(t.Context(), src, StageOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if r.Tree == nil || r.Tree.Exec != "bin/web" || r.Tree.Entries != 10 || r.Schema != treeSchema || r.Size != int64(len(script)+8) ||
		r.Archive == nil || r.Archive.Format != "tar.gz" || r.Source != src || !strings.HasSuffix(r.ID, r.SHA256[:12]) {
		t.Errorf("release = %+v, %+v, %+v", r, r.Tree, r.Archive)
	}
	root := filepath.Dir(r.Path)
	for path, mode := range map[string]fs.FileMode{
		"": 0o755, "bin": 0o755, "bin/web": 0o555, "conf/web.conf": 0o444, "empty/deep": 0o755, recordFile: 0o444, manifestFile: 0o444,
	} {
		fi, err := os.Lstat(filepath.Join(root, path))
		if err != nil || fi.Mode().Perm() != mode || fi.Mode()&(fs.ModeSetgid|fs.ModeSetuid|fs.ModeSticky) != 0 {
			t.Errorf("%s: %v, %v, want %04o", path, fi, err, mode)
		}
	}
	if target, err := os.Readlink(r.Path); err != nil || target != "bin/web" {
		t.Errorf("%s -> %s, %v", r.Path, target, err)
	}
	mustFlip(t, s, r)
	if out, err := exec.Command(s.CurrentPath()).Output(); err != nil || string(out) != s.CurrentPath()+"\n" {
		t.Errorf("run: %q, %v", out, err)
	}
	if manifest, err := os.ReadFile(filepath.Join(root, manifestFile)); err != nil || digest(manifest) != r.SHA256 {
		t.Errorf("the manifest does not have the digest: %s, %v", manifest, err)
	}
	got, err := s.Get(r.ID)
	if err != nil || got.Path != r.Path || got.Tree == nil || *got.Tree != *r.Tree || *got.Archive != *r.Archive {
		t.Errorf("read back %+v, %v", got, err)
	}
	do(t, s.Verify(t.Context(), got))
	checkSound(t, s)
	checkTidy(t, s)
}

// The content decides, not the order, the times, the owners or the packing.
func TestTreeContentAddress(t *testing.T) {
	t.Parallel()
	s := newStore(t)
	first, err := s.Stage(t.Context(), writeApp(t), StageOptions{})
	do(t, err)
	before := snapshot(t, s.dir)
	reversed := app()
	slices.Reverse(reversed)
	for _, h := range reversed {
		h.ModTime, h.Uid, h.Uname = time.Unix(1e9, 0), 1234, "somebody"
		if h.Typeflag == tar.TypeReg {
			h.Mode |= 0o004
		}
	}
	var versioned, dotted []*tar.Header
	for _, h := range app() {
		v, d := *h, *h
		v.Name, d.Name = "web-1.4.3/"+h.Name, "./"+h.Name
		versioned, dotted = append(versioned, &v), append(dotted, &d)
	}
	for name, src := range map[string]string{
		"directory": writeApp(t),
		"tar":       writeBytes(t, "x", makeTar(t, app()...)),
		"tar.gz":    writeBytes(t, "x", gz(t, makeTar(t, app()...))),
		"reversed":  writeBytes(t, "x", makeTar(t, reversed...)),
		"versioned": writeBytes(t, "x", makeTar(t, append([]*tar.Header{dir("web-1.4.3/")}, versioned...)...)),
		"dotted":    writeBytes(t, "x", gz(t, makeTar(t, append([]*tar.Header{dir("./")}, dotted...)...))),
	} {
		r, err := s.Stage(t.Context(), src, StageOptions{})
		if err != nil || r.ID != first.ID {
			t.Errorf("%s: %s, %v, want %s", name, r.ID, err, first.ID)
		}
		if name == "directory" { // the checksum of a directory is that of its content
			if _, err := s.Stage(t.Context(), src, StageOptions{SHA256: first.SHA256}); err != nil {
				t.Error(err)
			}
		}
		var sum *ChecksumError
		if _, err := s.Stage(t.Context(), src, StageOptions{SHA256: sumOf("x")}); !errors.As(err, &sum) {
			t.Errorf("%s, another checksum: %v", name, err)
		}
	}
	if after := snapshot(t, s.dir); after != before {
		t.Errorf("changed the store:\n%s\nwas\n%s", after, before)
	}
	// The least difference makes another release.
	for name, change := range map[string]func(root string) error{
		"content": func(root string) error {
			return os.WriteFile(filepath.Join(root, "conf/web.conf"), []byte("port 81\n"), 0o644)
		},
		"mode":  func(root string) error { return os.Chmod(filepath.Join(root, "conf/web.conf"), 0o755) },
		"name":  func(root string) error { return os.Rename(filepath.Join(root, "lib"), filepath.Join(root, "lib2")) },
		"empty": func(root string) error { return os.Mkdir(filepath.Join(root, "empty2"), 0o755) },
		"link": func(root string) error {
			return errors.Join(os.Remove(filepath.Join(root, "lib")), os.Symlink("./conf", filepath.Join(root, "lib")))
		},
	} {
		root := writeApp(t)
		do(t, change(root))
		if r, err := s.Stage(t.Context(), root, StageOptions{}); name != "name" && (err != nil || r.SHA256 == first.SHA256) ||
			name == "name" && err != nil {
			t.Errorf("%s: %s, %v", name, r.ID, err)
		} else if r.SHA256 == first.SHA256 {
			t.Errorf("%s: the same release", name)
		}
	}
	checkTidy(t, s)
}

func TestTreeProgram(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		name    string
		members []*tar.Header
		exec    string
		want    string // Tree.Exec, or a part of the error
		link    string // of current/web, "" for a file
	}{
		{"at the top", []*tar.Header{file("web", script), data("x", "y")}, "", "web", ""},
		{"in the version's directory", []*tar.Header{file("web-1/web", script), data("web-1/x", "y")}, "", "web", ""},
		{"the service's directory", []*tar.Header{file("web/web", script), data("web/x", "y")}, "", "web", ""},
		{"the only one", []*tar.Header{file("a/b/web", script), data("x", "y")}, "", "a/b/web", "a/b/web"},
		{"a link of the archive", []*tar.Header{file("dist/web-1.4", script), link("web", "dist/web-1.4")}, "", "dist/web-1.4", "dist/web-1.4"},
		{"named", []*tar.Header{file("bin/server", script), file("bin/other", script), data("x", "y")}, "bin/server", "bin/server", "bin/server"},
		{"named in the version's directory", []*tar.Header{file("v1/bin/server", script), data("v1/x", "y")}, "bin/server", "bin/server", "bin/server"},
		{"named with the version's directory", []*tar.Header{file("v1/bin/server", script), data("v1/x", "y")}, "v1/bin/server", "v1/bin/server", "v1/bin/server"},
		{"not executable", []*tar.Header{data("web", script)}, "", "web", ""},
		{"two", []*tar.Header{file("a/web", script), file("b/web", script)}, "", "there are 2 files called", ""},
		{"none", []*tar.Header{file("server", script)}, "", `there is no program "web"`, ""},
		{"not there", []*tar.Header{file("web", script)}, "bin/web", `there is no program "bin/web"`, ""},
		{"a directory", []*tar.Header{dir("web"), data("x", "y")}, "", `there is no program "web"`, ""},
		{"in the way", []*tar.Header{dir("web"), file("bin/web", script)}, "", `the unit starts "web"`, ""},
		{"out", []*tar.Header{file("web", script)}, "../web", `".." in its path`, ""},
		{"empty program", []*tar.Header{file("web", ""), data("x", "y")}, "", "is empty", ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			s := newStore(t)
			before := snapshot(t, s.dir)
			r, err := s.Stage(t.Context(), writeBytes(t, "a.tar", makeTar(t, tc.members...)), StageOptions{Exec: tc.exec})
			if err != nil {
				if !strings.Contains(err.Error(), tc.want) {
					t.Errorf("error = %v, want %q", err, tc.want)
				}
				if after := snapshot(t, s.dir); after != before {
					t.Errorf("left behind:\n%s", after)
				}
				return
			}
			if r.Tree.Exec != tc.want {
				t.Errorf("program %s, want %s", r.Tree.Exec, tc.want)
			}
			if target, _ := os.Readlink(r.Path); target != tc.link {
				t.Errorf("leads to %q, want %q", target, tc.link)
			}
			if out, err := exec.Command(r.Path).CombinedOutput(); err != nil {
				t.Errorf("run: %v: %s", err, out)
			}
			checkSound(t, s)
			checkTidy(t, s)
		})
	}
}

func TestTreeRefuses(t *testing.T) {
	t.Parallel()
	setuid := file("web", script)
	setuid.Mode = 0o4755
	sparseTar, err := os.ReadFile("testdata/sparse.tar") // tar --sparse: 1 MiB of nothing
	do(t, err)
	many := []*tar.Header{file("web", script), dir(strings.Repeat("d/", maxDepth+1))}
	good := makeTar(t, file("web", script), data("z", strings.Repeat("\x00", 4096)))
	for _, tc := range []struct {
		name string
		data []byte
		want string
	}{
		{"absolute", makeTar(t, file("web", script), data("/etc/passwd", "x")), "absolute path"},
		{"dotdot", makeTar(t, file("web", script), data("a/../../x", "x")), `".." in its path`},
		{"link out", makeTar(t, file("web", script), link("l", "../x")), "leads out of the release"},
		{"absolute link", makeTar(t, file("web", script), link("l", "/etc/passwd")), "out of the release"},
		{"link out by way of a link", makeTar(t, file("web", script), link("d/s", "../a/b"), dir("a/b"), link("l", "d/s/../../../x")), "leads out of the release"},
		{"link up by way of a link", makeTar(t, file("web", script), link("d/s", ".."), link("d/l", "s/../x")), "leads out of the release"},
		{"circle", makeTar(t, file("web", script), link("a", "b"), link("b", "a")), "in a circle"},
		{"link to nothing", makeTar(t, file("web", script), member0(tar.TypeSymlink, "a")), "link to nothing"},
		{"through a link", makeTar(t, file("web", script), link("d", "."), data("d/x", "y")), "to be a directory"},
		{"through a file", makeTar(t, file("web", script), data("web/x", "y")), "to be a directory"},
		{"hard link out", makeTar(t, file("web", script), &tar.Header{Typeflag: tar.TypeLink, Name: "h", Linkname: "/etc/passwd"}), "absolute path"},
		{"hard link to nothing", makeTar(t, file("web", script), &tar.Header{Typeflag: tar.TypeLink, Name: "h", Linkname: "later"}), "no file before it"},
		{"hard link to a link", makeTar(t, file("web", script), link("l", "x"), &tar.Header{Typeflag: tar.TypeLink, Name: "h", Linkname: "l"}), "no file before it"},
		{"device", makeTar(t, file("web", script), member0(tar.TypeChar, "null")), "device"},
		{"block device", makeTar(t, file("web", script), member0(tar.TypeBlock, "sda")), "device"},
		{"fifo", makeTar(t, file("web", script), member0(tar.TypeFifo, "pipe")), "device"},
		{"set-uid", makeTar(t, setuid), "set-uid"},
		{"twice", makeTar(t, file("web", script), data("x", "y"), data("./x", "z")), "is there twice"},
		{"file and directory", makeTar(t, file("web", script), data("x", "y"), dir("x")), "to be a directory"},
		{"record", makeTar(t, file("web", script), data(recordFile, "{}")), "zdt uses itself"},
		{"manifest", makeTar(t, file("web", script), data("./"+manifestFile, "")), "zdt uses itself"},
		{"mark", makeTar(t, file("web", script), link(pinnedFile, "web")), "zdt uses itself"},
		{"record in the version's directory", makeTar(t, file("v/web", script), data("v/"+recordFile, "{}")), "zdt uses itself"},
		{"too deep", makeTar(t, many...), "directories deep"},
		{"no end", good[:len(good)-1024], "cut short"},
		{"cut in a file", good[:1500], "cut short"},
		{"cut gzip", gz(t, good)[:60], "cut short"},
		{"gzip of no tar", gz(t, []byte("hello, this is no archive")), "cut short"},
		{"damaged gzip", func() []byte { b := gz(t, good); b[len(b)-6] ^= 1; return b }(), "damaged"},
		{"behind the end", append(gz(t, good), "garbage"...), "cut short"},
		{"sparse", sparseTar, "sparse"},
		{"zstd", []byte("\x28\xb5\x2f\xfd...."), "zstd"},
		{"zip", []byte("PK\x03\x04...."), "zip"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			s := newStore(t)
			before := snapshot(t, s.dir)
			_, err := s.Stage(t.Context(), writeBytes(t, "x.tar", tc.data), StageOptions{})
			if err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("error = %v, want %q", err, tc.want)
			}
			if after := snapshot(t, s.dir); after != before {
				t.Errorf("left behind:\n%s", after)
			}
		})
	}
	for name, harm := range map[string]func(root string) error{
		"fifo":     func(root string) error { return unix.Mkfifo(filepath.Join(root, "conf/pipe"), 0o600) },
		"link out": func(root string) error { return os.Symlink("/etc", filepath.Join(root, "etc")) },
		"set-uid":  func(root string) error { return os.Chmod(filepath.Join(root, "bin/web"), 0o755|fs.ModeSetuid) },
		"record":   func(root string) error { return os.WriteFile(filepath.Join(root, recordFile), nil, 0o644) },
		"empty":    func(root string) error { return errors.Join(os.RemoveAll(root), os.Mkdir(root, 0o755)) },
	} {
		root := writeApp(t)
		do(t, harm(root))
		s := newStore(t)
		before := snapshot(t, s.dir)
		if _, err := s.Stage(t.Context(), root, StageOptions{}); err == nil {
			t.Errorf("directory with %s: staged", name)
		}
		if after := snapshot(t, s.dir); after != before {
			t.Errorf("directory with %s: left behind:\n%s", name, after)
		}
	}
	if _, err := newStore(t).Stage(t.Context(), writeSource(t, "v1"), StageOptions{Exec: "bin/web"}); err == nil || !strings.Contains(err.Error(), "--exec") {
		t.Errorf("--exec of a file: %v", err)
	}
}

// Hard links, a link that is not what it seems, and other things that are allowed.
func TestTreeAccepts(t *testing.T) {
	t.Parallel()
	s := newStore(t)
	caps := file("web", script)
	caps.PAXRecords["SCHILY.xattr.security.capability"] = "\x01\x00\x00\x02"
	r, err := s.Stage(t.Context(), writeBytes(t, "x", makeTar(t, caps, &tar.Header{Typeflag: tar.TypeLink, Name: "copy", Linkname: "./web"},
		link("a/up", "../gone"), link("a/self", "."), link("s", "a/self/self/../web"), dir("a"), dir("a"))), StageOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(r.Dropped, []string{"security.capability"}) {
		t.Errorf("dropped %q", r.Dropped)
	}
	if data, err := os.ReadFile(filepath.Join(filepath.Dir(r.Path), "s")); err != nil || string(data) != script {
		t.Errorf("through links: %q, %v", data, err)
	}
	do(t, s.Verify(t.Context(), r))
	// A program that gets its bit here has it under all its names.
	r, err = s.Stage(t.Context(), writeBytes(t, "x", makeTar(t, data("v2", "v2"), data("web", script), &tar.Header{Typeflag: tar.TypeLink, Name: "copy", Linkname: "web"})), StageOptions{})
	do(t, err)
	do(t, s.Verify(t.Context(), r))
}

// Whatever is done to a release that is a directory, it is told, and by name.
func TestTreeDamage(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		harm func(root string) error
		want string
	}{
		"content": {func(root string) error { return rewrite(filepath.Join(root, "conf/web.conf"), "port 81\n") }, "conf/web.conf"},
		"longer":  {func(root string) error { return rewrite(filepath.Join(root, "conf/web.conf"), "port 80\n\n") }, "conf/web.conf"},
		"added":   {func(root string) error { return os.WriteFile(filepath.Join(root, "conf/extra"), nil, 0o444) }, "conf/extra"},
		"removed": {func(root string) error { return os.Remove(filepath.Join(root, "conf/web.conf")) }, "conf/web.conf"},
		"mode":    {func(root string) error { return os.Chmod(filepath.Join(root, "conf/web.conf"), 0o555) }, "conf/web.conf"},
		"mode 2":  {func(root string) error { return os.Chmod(filepath.Join(root, "conf/web.conf"), 0o644) }, "0644"},
		"link": {func(root string) error {
			return errors.Join(os.Remove(filepath.Join(root, "lib")), os.Symlink("bin", filepath.Join(root, "lib")))
		}, "lib"},
		"program":      {func(root string) error { return rewrite(filepath.Join(root, "bin/web"), "#!/bin/sh\necho no \n") }, "bin/web"},
		"program gone": {func(root string) error { return os.Remove(filepath.Join(root, "bin/web")) }, "bin/web"},
		"program's link": {func(root string) error {
			return errors.Join(os.Remove(filepath.Join(root, "web")), os.Symlink("/bin/sh", filepath.Join(root, "web")))
		}, "is not bin/web"},
		"manifest": {func(root string) error {
			return errors.Join(os.Remove(filepath.Join(root, manifestFile)), rewrite(filepath.Join(root, "conf/web.conf"), "x"))
		}, "sha256"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newStore(t)
			r, err := s.Stage(t.Context(), writeApp(t), StageOptions{})
			do(t, err)
			do(t, tc.harm(filepath.Dir(r.Path)))
			if err := s.Verify(t.Context(), r); !errors.Is(err, ErrDamaged) || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("verify: %v, want %q", err, tc.want)
			}
			again, err := s.Stage(t.Context(), writeApp(t), StageOptions{})
			if err != nil || again.ID == r.ID {
				t.Errorf("staged again as %s, %v", again.ID, err)
			}
			do(t, s.Verify(t.Context(), again))
		})
	}
}

func rewrite(path, content string) error {
	fi, err := os.Stat(path)
	if err != nil {
		return err
	}
	return errors.Join(os.Remove(path), os.WriteFile(path, []byte(content), fi.Mode().Perm()), os.Chmod(path, fi.Mode().Perm()))
}

// A signature of an archive is of the bytes that are unpacked.
func TestTreeSignature(t *testing.T) {
	t.Parallel()
	who := newSigner(t)
	keys := mustKeys(t, keysDir(t, "k.pub", who.pub))
	s := newStore(t)
	src := writeBytes(t, "web.tar.gz", gz(t, makeTar(t, app()...)))
	o := StageOptions{Keys: keys, Require: RequireAny}
	if _, err := s.Stage(t.Context(), src, o); !errors.Is(err, ErrUnsigned) {
		t.Errorf("unsigned: %v", err)
	}
	plain, err := s.Stage(t.Context(), writeApp(t), StageOptions{}) // the same content, by somebody
	do(t, err)
	if _, err := s.Stage(t.Context(), src, o); !errors.Is(err, ErrUnsigned) {
		t.Errorf("unsigned, in the store: %v", err)
	}
	o.Signature = who.sign(t, src)
	r, err := s.Stage(t.Context(), src, o)
	if err != nil || r.ID != plain.ID || r.Signature == nil {
		t.Fatalf("%+v, %v", r, err)
	}
	if r, err = s.Get(r.ID); err != nil || r.Signature == nil || r.Signature.KeyName != "k.pub" {
		t.Errorf("recorded %+v, %v", r.Signature, err)
	}
	// Replaced after it was verified.
	other := gz(t, makeTar(t, append(app(), data("evil", "x"))...))
	src2 := writeBytes(t, "web.tar.gz", gz(t, makeTar(t, append(app(), data("v2", "x"))...)))
	s.step = func(label string, f func() error) error {
		if label == "stage: make temporary directory" {
			f, err := os.OpenFile(src2, os.O_WRONLY|unix.O_NONBLOCK, 0)
			if err == nil {
				f.Close()
				t.Error("could be opened for writing")
			}
			do(t, os.WriteFile(src2+".new", other, 0o644))
			do(t, os.Rename(src2+".new", src2))
		}
		return f()
	}
	o.Signature = who.sign(t, src2)
	before := snapshot(t, s.dir)
	if _, err := s.Stage(t.Context(), src2, o); err == nil || !strings.Contains(err.Error(), "changed") {
		t.Errorf("replaced: %v", err)
	}
	if after := snapshot(t, s.dir); after != before {
		t.Errorf("left behind:\n%s", after)
	}
}

// What is unpacked must be what was verified, also when nothing else tells.
func TestTreeUnpacksWhatWasHashed(t *testing.T) {
	t.Parallel()
	s := newStore(t)
	in, err := openSource(t.Context(), writeBytes(t, "x", makeTar(t, app()...)))
	do(t, err)
	defer in.Close()
	d, err := os.Open(t.TempDir())
	do(t, err)
	defer d.Close()
	g := &staging{Store: s, in: in}
	err = g.fill(t.Context(), newTreeWriter(d), &Archive{SHA256: sumOf("another")})
	if err == nil || !strings.Contains(err.Error(), "changed") {
		t.Errorf("error = %v", err)
	}
}

// The copy is changed behind the back of the staging: it is read again as a whole.
func TestTreeIsReadAgain(t *testing.T) {
	t.Parallel()
	for name, harm := range map[string]func(root string) error{
		"content": func(root string) error { return rewrite(filepath.Join(root, "conf/web.conf"), "port 81\n") },
		"added":   func(root string) error { return os.WriteFile(filepath.Join(root, "conf/new"), nil, 0o444) },
		"mode":    func(root string) error { return os.Chmod(filepath.Join(root, "conf/web.conf"), 0o555) },
		"owner":   func(root string) error { return os.Chmod(filepath.Join(root, "conf"), 0o777) },
	} {
		s := newStore(t)
		s.step = func(label string, f func() error) error {
			if label == "stage: re-hash" {
				found, err := filepath.Glob(filepath.Join(s.dir, releasesDir, tempPrefix+"*"))
				if err != nil || len(found) != 1 {
					t.Fatal(found, err)
				}
				do(t, harm(found[0]))
			}
			return f()
		}
		before := snapshot(t, s.dir)
		if r, err := s.Stage(t.Context(), writeApp(t), StageOptions{}); err == nil {
			t.Errorf("%s: staged %+v", name, r)
		}
		if after := snapshot(t, s.dir); after != before {
			t.Errorf("%s: left behind:\n%s", name, after)
		}
	}
}

// A program that runs from deep within a release keeps all of it.
func TestPruneKeepsTreeThatRuns(t *testing.T) {
	t.Parallel()
	sleep, err := exec.LookPath("sleep")
	if err != nil {
		t.Skip("no sleep(1)")
	}
	elf, err := os.ReadFile(sleep)
	do(t, err)
	root := writeApp(t)
	do(t, os.Remove(filepath.Join(root, "bin/web")))
	do(t, os.WriteFile(filepath.Join(root, "bin/web"), elf, 0o755))
	s := newStore(t)
	r, err := s.Stage(t.Context(), root, StageOptions{})
	do(t, err)
	cmd := exec.Command(r.Path, "60")
	cmd.Args[0] = "sleep"
	do(t, cmd.Start())
	removed, err := pruneFor(t, s, 0)
	do(t, cmd.Process.Kill())
	_ = cmd.Wait()
	if err != nil || len(removed) != 0 {
		t.Errorf("removed what runs: %v, %v", removed, err)
	}
	if removed, err := pruneFor(t, s, 0); err != nil || len(removed) != 1 {
		t.Errorf("removed %v, %v", removed, err)
	}
	checkTidy(t, s)
}

// The release by a path of its own is the release, and no copy of its program.
func TestStageOwnPath(t *testing.T) {
	t.Parallel()
	s := newStore(t)
	tree, err := s.Stage(t.Context(), writeApp(t), StageOptions{})
	do(t, err)
	plain := mustStage(t, s, "v1")
	mustFlip(t, s, tree)
	before := snapshot(t, s.dir)
	for _, tc := range []struct{ path, want string }{
		{tree.Path, tree.ID}, {s.CurrentPath(), tree.ID}, {filepath.Join(s.dir, "current/bin/web"), tree.ID}, {plain.Path, plain.ID},
	} {
		if r, err := s.Stage(t.Context(), tc.path, StageOptions{}); err != nil || r.ID != tc.want {
			t.Errorf("%s: %s, %v, want %s", tc.path, r.ID, err, tc.want)
		}
	}
	var sum *ChecksumError
	if _, err := s.Stage(t.Context(), plain.Path, StageOptions{SHA256: sumOf("other")}); !errors.As(err, &sum) {
		t.Errorf("checksum: %v", err)
	}
	if after := snapshot(t, s.dir); after != before {
		t.Errorf("changed:\n%s", after)
	}
	do(t, rewrite(plain.Path, "v2"))
	if _, err := s.Stage(t.Context(), plain.Path, StageOptions{}); !errors.Is(err, ErrDamaged) {
		t.Errorf("damaged: %v", err)
	}
}

// Whatever an archive says, nothing is written outside, and what is staged is sound.
func FuzzUnpack(f *testing.F) {
	f.Add(makeTar(f, app()...))
	f.Add(makeTar(f, file("web", script), link("d", ".."), data("d/x", "y")))
	f.Add(gz(f, makeTar(f, file("web", script), link("a", "b/../.."), dir("b"))))
	f.Fuzz(func(t *testing.T, data []byte) {
		if format, err := sniff(data[:min(512, len(data))]); format == "" || err != nil || len(data) > 1<<20 {
			return
		}
		if z, err := gzip.NewReader(bytes.NewReader(data)); err == nil {
			if n, _ := io.Copy(io.Discard, io.LimitReader(z, 8<<20)); n == 8<<20 {
				return // a bomb: it takes its time
			}
		}
		// Where nothing waits for a disk, if there is such a place.
		base, err := os.MkdirTemp("/dev/shm", "zdt-fuzz-")
		if err != nil {
			base = t.TempDir()
		}
		defer os.RemoveAll(base)
		s, err := Create(filepath.Join(base, "store"), Options{Program: testProgram})
		if err != nil {
			t.Fatal(err)
		}
		defer s.Close()
		src := filepath.Join(base, "src")
		if err := os.WriteFile(src, data, 0o644); err != nil {
			t.Fatal(err)
		}
		r, err := s.Stage(t.Context(), src, StageOptions{})
		if names, _ := filepath.Glob(filepath.Join(base, "*")); len(names) != 2 {
			t.Errorf("written outside: %q", names)
		}
		if err != nil {
			if list, _ := filepath.Glob(filepath.Join(base, "store/releases/*")); len(list) != 0 {
				t.Errorf("left behind: %q", list)
			}
			return
		}
		if err := s.Verify(t.Context(), r); err != nil {
			t.Error(err)
		}
		root := filepath.Dir(r.Path)
		_ = filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
			if d.Type()&fs.ModeSymlink != 0 {
				if real, err := filepath.EvalSymlinks(path); err == nil && !strings.HasPrefix(real+"/", root+"/") {
					t.Errorf("%s leads to %s", path, real)
				}
			}
			return nil
		})
	})
}
