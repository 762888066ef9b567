package systest

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"aead.dev/minisign"

	"github.com/zdt-dev/zdt/internal/guest"
	"github.com/zdt-dev/zdt/upgrade"
)

// putArchive makes hello-N.tar.gz in the guest, with the program in bin/ and a file beside it, all in a directory with the
// version in its name.
func (s *service) putArchive(n int) string {
	s.t.Helper()
	program := s.put(good(n))
	root := "/srv/archive/hello-" + version(n)
	s.run("mkdir", "-p", root+"/bin", root+"/conf")
	s.run("cp", program, root+"/bin/hello")
	s.run("sh", "-c", "echo "+version(n)+" >"+root+"/conf/version")
	s.run("tar", "-C", "/srv/archive", "-czf", root+".tar.gz", "hello-"+version(n))
	return root + ".tar.gz"
}

// newArchived is a service whose first release is an archive.
func newArchived(t *testing.T, g *guest.Guest) *service {
	t.Helper()
	s := &service{t: t, g: g, name: "hello", unit: "hello.service", addr: "127.0.0.1:8080"}
	s.installZdt()
	s.run("zdt", "init", s.name, "--exec", s.putArchive(1), "--listen", s.addr+"=http", "--start", "--dynamic-user")
	s.mustRun(1)
	return s
}

// A release that is a whole directory is upgraded to, restarted and left as any other, and one that was staged earlier is
// used as it is.
func TestDirectoryReleases(t *testing.T) {
	t.Parallel()
	guest.Each(t, func(t *testing.T, g *guest.Guest) {
		// The first release may be one as well; a directory follows, and the way back leads to the archive again.
		s := newArchived(t, g)
		l := s.lightLoad()
		program := s.putArchive(6)
		s.upgradeFile(strings.TrimSuffix(program, ".tar.gz")).mustBe(upgrade.Upgraded, 0)
		s.mustRun(6)
		s.rollback().mustBe(upgrade.Upgraded, 0)
		s.mustRun(1)
		if got := strings.TrimSpace(s.run("cat", "/var/lib/zdt/hello/current/conf/version")); got != version(1) {
			t.Errorf("after the rollback current/conf/version says %s", got)
		}
		id := strings.TrimSpace(s.run("zdt", "stage", "-q", "hello", "--binary", s.putArchive(2), "-m", "for later"))
		s.mustRun(1)
		s.run("zdt", "upgrade", "hello", "--release", id[len(id)-12:], "--no-rehearse")
		s.mustRun(2)
		s.upgradeFile(s.putArchive(3)).mustBe(upgrade.Upgraded, 0)
		s.mustRun(3)
		s.upgradeFile("/srv/archive/hello-v0003").mustBe(upgrade.Unchanged, 0) // the directory itself
		s.rollback().mustBe(upgrade.Upgraded, 0)
		s.mustRun(2)
		mustLoseNothing(t, l.Stop())
		if st := s.status(); st.Current.ID != id {
			t.Errorf("current is %s, staged was %s", st.Current.ID, id)
		}

		// systemd starts it by way of current, and finds what belongs to it.
		s.run("systemctl", "restart", s.unit)
		s.await("an answer", func() bool { v, err := s.ask("/"); return err == nil && v == version(2) })
		if got := strings.TrimSpace(s.run("cat", "/var/lib/zdt/hello/current/conf/version")); got != version(2) {
			t.Errorf("current/conf/version says %s", got)
		}

		// What does not run and is nothing to go back to is deleted, nothing else.
		s.run("zdt", "prune", "hello", "--keep", "0")
		s.mustRun(2)
		s.mustUpgrade(good(4))
		s.rollback().mustBe(upgrade.Upgraded, 0)
		s.mustRun(2)
	})
}

// Where the unit asks for signatures, nothing is staged without one; nobody but root stages anything.
func TestSignedReleases(t *testing.T) {
	t.Parallel()
	guest.Each(t, func(t *testing.T, g *guest.Guest) {
		s := newService(t, g, options{})
		pub, priv, err := minisign.GenerateKey(nil)
		if err != nil {
			t.Fatal(err)
		}
		key, err := pub.MarshalText()
		if err != nil {
			t.Fatal(err)
		}
		s.run("mkdir", "-p", "/etc/zdt/keys", "/etc/systemd/system/hello.service.d")
		for path, text := range map[string]string{
			"/etc/zdt/keys/ci.pub": string(key), "/etc/systemd/system/hello.service.d/50-signed.conf": "[X-Zdt]\nRequireSignature=yes\n",
		} {
			if err := g.WriteFile(path, []byte(text), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		s.run("systemctl", "daemon-reload")
		stage := func(want int, say string, args ...string) {
			t.Helper()
			r, err := g.Run(t.Context(), args...)
			if err != nil || r.Code != want || !strings.Contains(r.Stdout+r.Stderr, say) {
				t.Errorf("%v, want %d and %q\n%s", err, want, say, r)
			}
		}
		file := s.put(good(2))
		stage(10, "not signed", "zdt", "stage", "hello", "--binary", file)
		program, err := os.ReadFile(good(2).file(t))
		if err != nil {
			t.Fatal(err)
		}
		if err := g.WriteFile(file+".minisig", minisign.Sign(priv, program), 0o644); err != nil {
			t.Fatal(err)
		}
		stage(0, "signed by ci.pub", "zdt", "stage", "hello", "--binary", file)
		stage(10, "is not of this file", "zdt", "stage", "hello", "--binary", s.put(good(3)), "--signature", file+".minisig")
		stage(77, "permission denied", "setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "zdt", "stage", "hello", "--binary", file)
		stage(0, "signed by ci.pub", "setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "zdt", "releases", "hello")
		// By the other tool, where the guest has it: the host signs, the guest verifies.
		if _, err := exec.LookPath("ssh-keygen"); err != nil {
			return
		}
		if r, err := g.Run(t.Context(), "sh", "-c", "command -v ssh-keygen"); err != nil || r.Code != 0 {
			return
		}
		dir := t.TempDir()
		sign := func(args ...string) {
			t.Helper()
			if out, err := exec.Command("ssh-keygen", args...).CombinedOutput(); err != nil {
				t.Fatalf("%v: %s", err, out)
			}
		}
		sign("-q", "-t", "ed25519", "-N", "", "-f", filepath.Join(dir, "key"))
		if err := os.WriteFile(filepath.Join(dir, "hello"), program, 0o644); err != nil {
			t.Fatal(err)
		}
		sign("-q", "-Y", "sign", "-n", "zdt", "-f", filepath.Join(dir, "key"), filepath.Join(dir, "hello"))
		signers, err := os.ReadFile(filepath.Join(dir, "key.pub"))
		if err != nil {
			t.Fatal(err)
		}
		if err := g.WriteFile("/etc/zdt/keys/allowed_signers", append([]byte("ops@example.com "), signers...), 0o644); err != nil {
			t.Fatal(err)
		}
		if err := g.Copy(filepath.Join(dir, "hello.sig"), "/srv/hello.sig", 0o644); err != nil {
			t.Fatal(err)
		}
		stage(0, "signed by ops@example.com", "zdt", "stage", "hello", "--binary", file, "--signature", "/srv/hello.sig")
	})
}
