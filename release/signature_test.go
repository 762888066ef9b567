package release

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"aead.dev/minisign"
)

// By minisign 0.11: its key, and its signatures of "a program\n" in both formats.
const (
	toolKey    = "untrusted comment: minisign public key F9DD75AD802CE93A\nRWQ66SyArXXd+X+Bl/AmnCTySh9FU890N46fbaQWAGgpEn/BjcFoXnRL\n"
	toolSigned = "a program\n"
	toolLegacy = "untrusted comment: signature from minisign secret key\n" +
		"RWQ66SyArXXd+cM362mU97iD0a20WQN3f7ZF952uo42gHHr5uS9crMlVoC4LBJQ6WmksvhS99hsaV46MP+6lb+w1Vm6ujHWGDQs=\n" +
		"trusted comment: file:prog 1.4.3\n" +
		"9XpiFHDmek0LhJt5SPM9pLh5EMKvQQVSp6QtrYBDB55byf1Skmu4WvbZtfExvbc1B+D3rmmnva6fi4SXeb59AA==\n"
	toolHashed = "untrusted comment: signature from minisign secret key\n" +
		"RUQ66SyArXXd+Rs0h6zdzNat2329ZQSsQpuOBJn8aPxYaDqh8xn/1bL1QhO4KIyAld3/gKTtPQzpRynvoHJ6F6dXT9XCk0uqQQE=\n" +
		"trusted comment: file:prog 1.4.3\n" +
		"jyWZBgfZtcBLs0undc8wILAguUvYTpQvcK5FKz0EylWdHq7PfeFeZ5qjU50wUfcwT57IUPWMwsaQ+J7xXy3GCQ==\n"
)

// keysDir makes a directory of keys from names and contents.
func keysDir(t *testing.T, files ...string) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "keys")
	do(t, os.Mkdir(dir, 0o755))
	for i := 0; i < len(files); i += 2 {
		writeFile(t, filepath.Join(dir, files[i]), files[i+1], 0o644)
	}
	return dir
}

func mustKeys(t *testing.T, dir string) Keys {
	t.Helper()
	k, err := ReadKeys(dir)
	do(t, err)
	return k
}

// signer makes minisign signatures by a new key.
type signer struct {
	pub  string
	priv minisign.PrivateKey
}

func newSigner(t *testing.T) signer {
	t.Helper()
	pub, priv, err := minisign.GenerateKey(nil)
	do(t, err)
	text, err := pub.MarshalText()
	do(t, err)
	return signer{string(text), priv}
}

// sign writes the signature of the file at path, hashed, and returns its path.
func (s signer) sign(t *testing.T, path string) string {
	t.Helper()
	f, err := os.Open(path)
	do(t, err)
	defer f.Close()
	r := minisign.NewReader(f)
	buf := make([]byte, 4096)
	for err == nil {
		_, err = r.Read(buf)
	}
	sig := filepath.Join(t.TempDir(), "file.minisig")
	writeFile(t, sig, string(r.Sign(s.priv)), 0o644)
	return sig
}

func writeSig(t *testing.T, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "sig")
	writeFile(t, path, text, 0o644)
	return path
}

func TestMinisign(t *testing.T) {
	t.Parallel()
	keys := mustKeys(t, keysDir(t, "ci.pub", toolKey, "README", "no key"))
	for format, text := range map[string]string{"legacy": toolLegacy, "hashed": toolHashed} {
		s := newStore(t)
		src := writeSource(t, toolSigned)
		r, err := s.Stage(t.Context(), src, StageOptions{Keys: keys, Signature: writeSig(t, text), Require: RequireMinisign})
		if err != nil {
			t.Errorf("%s: %v", format, err)
			continue
		}
		r, err = s.Get(r.ID)
		do(t, err)
		if g := r.Signature; g == nil || g.Format != FormatMinisign || g.KeyName != "ci.pub" || g.Comment != "file:prog 1.4.3" || g.VerifiedAt.IsZero() {
			t.Errorf("%s: recorded %+v", format, g)
		}
		if err := keys.Believe(r, RequireAny); err != nil {
			t.Error(err)
		}
		// Staged again without a signature: it is known.
		if again, err := s.Stage(t.Context(), src, StageOptions{Keys: keys, Require: RequireAny}); err != nil || again.ID != r.ID {
			t.Errorf("%s again: %v, %v", format, again.ID, err)
		}
		// The key was taken away: not believed any more.
		if err := mustKeys(t, keysDir(t)).Believe(r, RequireAny); !errors.Is(err, ErrUnsigned) || !strings.Contains(err.Error(), "any more") {
			t.Errorf("%s without the key: %v", format, err)
		}
	}
}

func TestMinisignRefuses(t *testing.T) {
	t.Parallel()
	keys := mustKeys(t, keysDir(t, "ci.pub", toolKey))
	other := newSigner(t)
	good := writeSource(t, toolSigned)
	flip := func(text string, line int) string {
		lines := strings.Split(text, "\n")
		b := []byte(lines[line])
		b[len(b)/2] ^= 1 // another letter of base64, or of the comment
		lines[line] = string(b)
		return strings.Join(lines, "\n")
	}
	for _, tc := range []struct{ name, src, sig, want string }{
		{"another file", writeSource(t, "a program"), writeSig(t, toolHashed), "is not of this file"},
		{"another file, legacy", writeSource(t, "a program!"), writeSig(t, toolLegacy), "is not of this file"},
		{"signature changed", good, writeSig(t, flip(toolHashed, 1)), "signature"},
		{"comment changed", good, writeSig(t, strings.Replace(toolHashed, "1.4.3", "1.4.4", 1)), "is not of this file"},
		{"comment's signature changed", good, writeSig(t, flip(toolHashed, 3)), "is not of this file"},
		{"another key", good, other.sign(t, good), "which is not in"},
		{"cut short", good, writeSig(t, toolHashed[:90]), "is not one of minisign"},
		{"not a signature", good, good, "no format that zdt knows"},
		{"missing", good, filepath.Join(t.TempDir(), "none"), "no such file"},
		{"a directory", good, t.TempDir(), "not a regular file"},
		{"too large", good, writeSig(t, "untrusted comment: "+strings.Repeat("x", maxSignature)), "too large"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s := newStore(t)
			before := snapshot(t, s.dir)
			_, err := s.Stage(t.Context(), tc.src, StageOptions{Keys: keys, Signature: tc.sig})
			var bad *SignatureError
			if !errors.As(err, &bad) || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("error = %v, want %q", err, tc.want)
			}
			if after := snapshot(t, s.dir); after != before {
				t.Errorf("left behind:\n%s", after)
			}
		})
	}
}

// A legacy signature of 64 bytes must not pass for a hashed one of the file whose
// hash they are.
func TestMinisignFormatsAreNotMixed(t *testing.T) {
	t.Parallel()
	who := newSigner(t)
	keys := mustKeys(t, keysDir(t, "k.pub", who.pub))
	src := writeSource(t, "evil")
	sig := who.sign(t, src)
	text, err := os.ReadFile(sig)
	do(t, err)
	var parsed minisign.Signature
	do(t, parsed.UnmarshalText(text))
	parsed.Algorithm = minisign.EdDSA // as if the hash had been signed as a file
	text, err = parsed.MarshalText()
	do(t, err)
	if _, err := newStore(t).Stage(t.Context(), src, StageOptions{Keys: keys, Signature: writeSig(t, string(text))}); err == nil {
		t.Error("accepted")
	}
}

func TestRequireSignature(t *testing.T) {
	t.Parallel()
	who := newSigner(t)
	keys := mustKeys(t, keysDir(t, "k.pub", who.pub))
	s := newStore(t)
	src := writeSource(t, "v1")
	// In the store, and unsigned: not believed.
	plain, err := s.Stage(t.Context(), src, StageOptions{})
	do(t, err)
	before := snapshot(t, s.dir)
	for what, src := range map[string]string{"staged before": src, "new": writeSource(t, "v2"), "by its path": plain.Path, "directory": filepath.Dir(src)} {
		for _, q := range []Require{RequireAny, RequireMinisign, RequireSSH} {
			_, err := s.Stage(t.Context(), src, StageOptions{Keys: keys, Require: q})
			var h interface{ Hint() string }
			if !errors.Is(err, ErrUnsigned) || !errors.As(err, &h) {
				t.Errorf("%s, %s: %v", what, q, err)
			}
		}
	}
	if err := keys.Believe(plain, RequireAny); !errors.Is(err, ErrUnsigned) {
		t.Errorf("believed: %v", err)
	}
	if err := keys.Believe(plain, RequireNone); err != nil {
		t.Error(err)
	}
	if after := snapshot(t, s.dir); after != before {
		t.Errorf("changed:\n%s", after)
	}
	// With its signature it is the same release, and believed from now on.
	r, err := s.Stage(t.Context(), src, StageOptions{Keys: keys, Require: RequireAny, Signature: who.sign(t, src)})
	if err != nil || r.ID != plain.ID || r.Signature == nil {
		t.Fatalf("%+v, %v", r, err)
	}
	if r, err = s.Stage(t.Context(), r.Path, StageOptions{Keys: keys, Require: RequireAny}); err != nil || r.ID != plain.ID {
		t.Errorf("by its path: %+v, %v", r, err)
	}
	if err := keys.Believe(r, RequireSSH); !errors.Is(err, ErrUnsigned) {
		t.Errorf("believed as ssh: %v", err)
	}
	if _, err := s.Stage(t.Context(), src, StageOptions{Keys: keys, Require: RequireSSH, Signature: who.sign(t, src)}); err == nil {
		t.Error("a signature of the wrong format")
	}
	checkTidy(t, s)
	checkSound(t, s)
}

func TestReadKeys(t *testing.T) {
	t.Parallel()
	if k, err := ReadKeys(filepath.Join(t.TempDir(), "none")); err != nil || !k.Empty() {
		t.Errorf("none: %+v, %v", k, err)
	}
	for name, tc := range map[string]struct {
		dir  func(t *testing.T) string
		want error
	}{
		"writable key": {func(t *testing.T) string {
			dir := keysDir(t, "k.pub", toolKey)
			do(t, os.Chmod(filepath.Join(dir, "k.pub"), 0o666))
			return dir
		}, ErrUntrusted},
		"writable directory": {func(t *testing.T) string {
			dir := keysDir(t, "k.pub", toolKey)
			do(t, os.Chmod(dir, 0o777))
			return dir
		}, ErrUntrusted},
		"link": {func(t *testing.T) string {
			dir := keysDir(t, "k", toolKey)
			do(t, os.Symlink("k", filepath.Join(dir, "k.pub")))
			return dir
		}, ErrUntrusted},
		"linked directory": {func(t *testing.T) string {
			dir := keysDir(t, "k.pub", toolKey)
			do(t, os.Symlink(dir, dir+"2"))
			return dir + "2"
		}, ErrUntrusted},
		"ssh key": {func(t *testing.T) string { return keysDir(t, "id_ed25519.pub", "ssh-ed25519 AAAA me") }, nil},
		"foreign": {func(t *testing.T) string {
			needRoot(t)
			dir := keysDir(t, "allowed_signers", "x")
			do(t, os.Chown(filepath.Join(dir, "allowed_signers"), nobody, nobody))
			return dir
		}, ErrUntrusted},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := ReadKeys(tc.dir(t))
			if err == nil || tc.want != nil && !errors.Is(err, tc.want) {
				t.Errorf("error = %v, want %v", err, tc.want)
			}
		})
	}
}

// sshKey makes a key with ssh-keygen and returns its path and its public half.
func sshKey(t *testing.T) (path, pub string) {
	t.Helper()
	if _, err := exec.LookPath("ssh-keygen"); err != nil {
		if os.Getenv("ZDT_SYSTEST") == "require" {
			t.Fatal(err)
		}
		t.Skip("no ssh-keygen")
	}
	path = filepath.Join(t.TempDir(), "key")
	out, err := exec.Command("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "a comment", "-f", path).CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	data, err := os.ReadFile(path + ".pub")
	do(t, err)
	return path, strings.TrimSpace(string(data))
}

func sshSign(t *testing.T, key, namespace, file string) string {
	t.Helper()
	f, err := os.Open(file)
	do(t, err)
	defer f.Close()
	cmd := exec.Command("ssh-keygen", "-q", "-Y", "sign", "-n", namespace, "-f", key)
	cmd.Stdin = f
	out, err := cmd.Output()
	do(t, err)
	return writeSig(t, string(out))
}

func TestSSHSignature(t *testing.T) {
	t.Parallel()
	key, pub := sshKey(t)
	stranger, _ := sshKey(t)
	dir := keysDir(t, "allowed_signers", "# who may\nops@example.com,ci namespaces=\"zdt\" "+pub+"\n")
	keys := mustKeys(t, dir)
	src := writeSource(t, bigContent('a', 3<<20))
	s := newStore(t)
	r, err := s.Stage(t.Context(), src, StageOptions{Keys: keys, Require: RequireSSH, Signature: sshSign(t, key, "zdt", src)})
	if err != nil {
		t.Fatal(err)
	}
	if g := r.Signature; g.Format != FormatSSH || g.KeyName != "ops@example.com" || !strings.HasPrefix(g.Key, "SHA256:") {
		t.Errorf("recorded %+v", g)
	}
	if err := keys.Believe(r, RequireSSH); err != nil {
		t.Error(err)
	}
	if err := mustKeys(t, keysDir(t, "allowed_signers", "someone "+strings.Replace(pub, "AAAAC3", "AAAAC4", 1))).Believe(r, RequireAny); !errors.Is(err, ErrUnsigned) {
		t.Errorf("without the key: %v", err)
	}
	for name, tc := range map[string]struct {
		keys      Keys
		sig, want string
	}{
		"another file":      {keys, sshSign(t, key, "zdt", writeSource(t, "x")), "is not of this file"},
		"another namespace": {keys, sshSign(t, key, "git", src), "made for something else"},
		"a stranger":        {keys, sshSign(t, stranger, "zdt", src), "is by nobody that"},
		"no signers":        {mustKeys(t, keysDir(t, "k.pub", toolKey)), sshSign(t, key, "zdt", src), "there is no"},
		"garbage":           {keys, writeSig(t, "-----BEGIN SSH SIGNATURE-----\nU1NIU0lH\n"), "is by nobody"},
	} {
		s := newStore(t)
		_, err := s.Stage(t.Context(), src, StageOptions{Keys: tc.keys, Signature: tc.sig})
		var bad *SignatureError
		if !errors.As(err, &bad) || !strings.Contains(err.Error(), tc.want) || bad.Hint() == "" {
			t.Errorf("%s: %v, want %q", name, err, tc.want)
		}
		if list, err := s.List(); err != nil || len(list) != 0 {
			t.Errorf("%s: staged %v, %v", name, list, err)
		}
	}
}

// The copy is changed behind the back of the staging, before it is verified.
func TestSignatureIsOfTheCopy(t *testing.T) {
	t.Parallel()
	who := newSigner(t)
	keys := mustKeys(t, keysDir(t, "k.pub", who.pub))
	s := newStore(t)
	src := writeSource(t, "good")
	s.step = func(label string, f func() error) error {
		if label == "stage: re-hash" {
			found, err := filepath.Glob(filepath.Join(s.dir, releasesDir, tempPrefix+"*", testProgram))
			if err != nil || len(found) != 1 {
				t.Fatal(found, err)
			}
			do(t, os.Chmod(found[0], 0o755))
			writeFile(t, found[0], "evil", 0o555)
		}
		return f()
	}
	if _, err := s.Stage(t.Context(), src, StageOptions{Keys: keys, Signature: who.sign(t, src)}); err == nil {
		t.Error("staged what was not verified")
	}
	checkTidy(t, s)
}

func FuzzSignature(f *testing.F) {
	f.Add([]byte(toolLegacy))
	f.Add([]byte(toolHashed))
	f.Add([]byte("untrusted comment: \n\ntrusted comment: \n"))
	dir := filepath.Join(f.TempDir(), "keys")
	if err := errors.Join(os.Mkdir(dir, 0o755), os.WriteFile(filepath.Join(dir, "k.pub"), []byte(toolKey), 0o644)); err != nil {
		f.Fatal(err)
	}
	keys, err := ReadKeys(dir)
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		d := detached{path: "sig", format: FormatMinisign, text: text}
		if sig, err := keys.verifyMinisign(d, strings.NewReader(toolSigned), int64(len(toolSigned))); err == nil && sig.Comment != "file:prog 1.4.3" {
			t.Errorf("believed %q", text)
		}
	})
}
