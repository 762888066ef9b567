package systest

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/zdt-dev/zdt/handoffcheck"
	"github.com/zdt-dev/zdt/internal/guest"
	"github.com/zdt-dev/zdt/upgrade"
)

// checkFile is what zdt check finds with a new program in the guest, and checks that it is what is wanted: IDs.
func (s *service) checkFile(file, want string) []handoffcheck.Finding {
	s.t.Helper()
	r, err := s.g.Run(s.t.Context(), "zdt", "check", s.name, "--binary", file, "-o", "json")
	if err != nil {
		s.t.Fatal(err)
	}
	var doc struct {
		Findings []handoffcheck.Finding `json:"findings"`
		Unknown  []string               `json:"unknown"`
	}
	if err := json.Unmarshal([]byte(r.Stdout), &doc); err != nil || len(doc.Unknown) > 0 {
		s.t.Fatalf("%v\n%s", err, r)
	}
	var ids []string
	for _, f := range doc.Findings {
		ids = append(ids, f.ID)
	}
	if got := strings.Join(ids, " "); got != want {
		s.t.Fatalf("got %q, want %q:\n%s", got, want, r)
	}
	return doc.Findings
}

// helloDropIn has systemd read lines of [Service] and starts the service with them.
func (s *service) helloDropIn(name, text string) {
	s.t.Helper()
	s.writeUnit("/etc/systemd/system/hello.service.d/"+name, text)
	s.run("systemctl", "daemon-reload")
	s.run("systemctl", "restart", s.unit)
}

// What a program lacks is found before it is started in vain, for the service that it is for.
func TestCheckCandidate(t *testing.T) {
	t.Parallel()
	g := guest.Boot(t, guest.Trixie)
	t.Run("library", func(t *testing.T) {
		s := newService(t, g, options{init: []string{"--service-user", guest.User}})
		defer s.remove()

		// It lives, and is never READY.
		sleeper := build(t, "sleeper", func(out string) error { return goBuild(out, "./testdata/sleeper", false, "") })
		if err := g.Copy(sleeper, "/srv/sleeper/hello", 0o755); err != nil {
			t.Fatal(err)
		}
		s.checkFile("/srv/sleeper/hello", "ZDT050")
		r := s.upgradeFile("/srv/sleeper/hello", "--ready-timeout", "2s")
		r.mustBe(upgrade.RolledBack, 11)
		if !strings.Contains(r.exec.Stdout, "ZDT050") {
			t.Errorf("the report does not say it: %s", r.exec)
		}
		t.Logf("ZDT050: %s", r.Cause)

		// What the file may, the release may not.
		file := s.put(good(2))
		setCapability(t, g.Path(file), unix.CAP_NET_ADMIN)
		found := s.checkFile(file, "ZDT051")
		s.upgradeFile(file).mustBe(upgrade.Upgraded, 0)
		if got := s.capabilities(); got != 0 {
			t.Errorf("the release has capabilities: %x", got)
		}
		s.helloDropIn("mended.conf", found[0].DropIn)
		file = s.put(good(3))
		setCapability(t, g.Path(file), unix.CAP_NET_ADMIN)
		s.checkFile(file, "")
		s.upgradeFile(file).mustBe(upgrade.Upgraded, 0)
		if got := s.capabilities(); got != 1<<unix.CAP_NET_ADMIN {
			t.Errorf("with the drop-in the release has capabilities %x", got)
		}

		// The service cannot write to its own directory before its sandbox allows it.
		s.run("install", "-d", "-o", guest.User, "/srv/drop")
		s.run("install", "-o", guest.User, "-m", "755", s.put(good(4)), "/srv/drop/hello")
		s.checkFile("/srv/drop/hello", "")
		s.helloDropIn("writes.conf", "[Service]\nReadWritePaths=/srv/drop\n")
		s.checkFile("/srv/drop/hello", "ZDT049")
		s.run("nsenter", "-t", fmt.Sprint(s.mainPID()), "-m", "setpriv", "--reuid", guest.User, "--clear-groups",
			"cp", "-f", s.put(good(5)), "/srv/drop/hello")
		s.upgradeFile("/srv/drop/hello").mustBe(upgrade.Upgraded, 0)
		if got := s.answers(); got != version(5) {
			t.Errorf("%s answers: the service could not exchange the file", got)
		}
		s.checkFile(s.put(good(6)), "") // for root alone
	})
	t.Run("helper", func(t *testing.T) {
		s := newService(t, g, options{init: []string{"--runtime", "helper", "--service-user", guest.User}})
		defer s.remove()

		// A program of the guest whose library has another name.
		program, err := os.ReadFile(g.Path("/usr/bin/sleep"))
		if err != nil {
			t.Fatal(err)
		}
		if err := g.WriteFile("/srv/without/hello", bytes.ReplaceAll(program, []byte("libc.so.6"), []byte("libc.so.7")), 0o755); err != nil {
			t.Fatal(err)
		}
		found := s.checkFile("/srv/without/hello", "ZDT047")
		if !strings.Contains(found[0].Seen, "libc.so.7") {
			t.Errorf("got %+v", found)
		}
		if r := s.upgradeFile("/srv/without/hello"); r.exec.Code != 10 || !strings.Contains(r.Cause, "ZDT047") {
			t.Errorf("the upgrade is not refused: %s", r.exec)
		}
		r := s.upgradeFile("/srv/without/hello", "--accept-risk", "ZDT047")
		r.mustBe(upgrade.RolledBack, 11)
		if !strings.Contains(r.exec.Stdout, "error while loading shared libraries") {
			t.Errorf("the upgrade fails over something else: %s", r.exec)
		}
		s.run("sh", "-c", "ln -s libc.so.6 $(dirname $(ls /usr/lib/*/libc.so.6))/libc.so.7")
		s.checkFile("/srv/without/hello", "")
		s.run("/srv/without/hello", "0")

		// One that its PATH= does not lead to.
		if err := g.WriteFile("/srv/script/hello", []byte("#!/usr/bin/env hello-runner\n"), 0o755); err != nil {
			t.Fatal(err)
		}
		s.checkFile("/srv/script/hello", "ZDT046")
		r = s.upgradeFile("/srv/script/hello", "--accept-risk", "ZDT046")
		r.mustBe(upgrade.RolledBack, 11)
		if !strings.Contains(r.exec.Stdout, "hello-runner") {
			t.Errorf("the upgrade fails over something else: %s", r.exec)
		}
		s.must(10, "zdt", "stage", s.name, "--binary", "/srv/script/hello")
		s.run("ln", "-s", "/usr/bin/true", "/usr/local/bin/hello-runner")
		s.checkFile("/srv/script/hello", "")
		s.must(0, "zdt", "stage", s.name, "--binary", "/srv/script/hello")

		// What the host has, the service need not have.
		s.run("mkdir", "-p", "/srv/root")
		s.run("cp", "/usr/bin/sleep", "/srv/dynamic-hello")
		s.helloDropIn("root.conf", "[Service]\nRootDirectory=/srv/root\nMountAPIVFS=yes\nExecStopPost=\nBindReadOnlyPaths=/var/lib/zdt/hello /usr/local/bin\n")
		s.checkFile(s.put(good(2)), "")
		s.checkFile("/srv/dynamic-hello", "ZDT046")
		r = s.upgradeFile("/srv/dynamic-hello", "--accept-risk", "ZDT046")
		t.Logf("ZDT046: %d %s", r.exec.Code, r.Cause)
		r.mustBe(upgrade.RolledBack, 11)
		s.upgrade(good(2)).mustBe(upgrade.Upgraded, 0)
		s.helloDropIn("root.conf", "[Service]\nRootDirectory=/srv/root\nMountAPIVFS=yes\nExecStopPost=\nBindReadOnlyPaths=/var/lib/zdt/hello /usr /lib /lib64\n")
		s.checkFile("/srv/dynamic-hello", "")
	})
}

// setCapability gives a file of the guest a capability, as setcap(8) does.
func setCapability(t *testing.T, path string, number int) {
	t.Helper()
	data := make([]byte, 20) // struct vfs_cap_data, version 2, in effect
	data[0], data[3] = 1, 2
	data[4+number/8] = 1 << (number % 8)
	if err := unix.Setxattr(path, "security.capability", data, 0); err != nil {
		t.Fatal(err)
	}
}

// capabilities are those that the main process has in effect.
func (s *service) capabilities() (set uint64) {
	s.t.Helper()
	data, err := os.ReadFile(s.g.Path(fmt.Sprintf("/proc/%d/status", s.mainPID())))
	if err != nil {
		s.t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(data), "CapEff:")
	if _, err := fmt.Sscanf(rest, "%x", &set); err != nil {
		s.t.Fatal(err)
	}
	return set
}
