package systest

import (
	"strings"
	"testing"

	"github.com/zdt-dev/zdt/handoffcheck"
	"github.com/zdt-dev/zdt/internal/guest"
	"github.com/zdt-dev/zdt/upgrade"
)

// What the unit forbids by now, and what the process that serves was started with, are two things: each is found, an upgrade fails over
// each, and succeeds with the fix that is printed.
func TestCheckSandbox(t *testing.T) {
	t.Parallel()
	g := guest.Boot(t, guest.Trixie)
	if r, err := g.Run(t.Context(), "sh", "-c", "mkdir -p /var/lib/zdt && mount -t tmpfs -o size=256m,mode=755 tmpfs /var/lib/zdt"); err != nil || r.Code != 0 {
		t.Fatal(err, r)
	}
	for _, runtime := range []string{"library", "helper"} {
		t.Run(runtime, func(t *testing.T) {
			s := newService(t, g, options{init: []string{"--runtime", runtime, "--service-user", guest.User}})
			defer s.remove()
			b := confinedService{service: s, release: 1}

			// A unit that was mended does not help the process that is there.
			b.restart("NoExecPaths=/var/lib/zdt\nExecPaths=/var/lib/zdt/hello/current")
			b.write("")
			b.mend(b.mustFail("ZDT075", "permission denied"))
			if runtime == "helper" {
				b.restart("PrivateUsers=yes")
				b.write("")
				b.mend(b.mustFail("ZDT075", ""))
			}
			if runtime == "library" { // to these the runtime makes no difference
				b.restart("TemporaryFileSystem=/var/lib/zdt\nBindReadOnlyPaths=/var/lib/zdt/hello/current")
				b.write("TemporaryFileSystem=/var/lib/zdt\nBindReadOnlyPaths=/var/lib/zdt/hello")
				b.mend(b.mustFail("ZDT022", ""))
				// The shorter path allows it, and the longer one counts.
				b.restart("NoExecPaths=/var/lib/zdt/hello\nExecPaths=/ /var/lib/zdt/hello/current")
				b.mend(b.mustFail("ZDT023", "permission denied"))
				b.restart("SystemCallFilter=~sendmsg")
				s.await("zdt has taken down what the unit says", func() bool { // which it cannot of a file that is as young as the load
					b.run("sh", "-c", "systemctl daemon-reload; zdt plan hello; true")
					r, err := g.Run(t.Context(), "grep", "-q", "SystemCallFilter=~sendmsg", "/var/lib/zdt/hello/units.json")
					return err == nil && r.Code == 0
				})
				b.write("")
				b.mend(b.mustFail("ZDT075", "operation not permitted"))
				b.restart("")
				s.run("mount", "-o", "remount,noexec", "/var/lib/zdt")
				f := b.mustFail("ZDT048", "mounted noexec")
				f.Fix, _, _ = strings.Cut(f.Fix, ", and")
				b.mend(f)
			}
		})
	}
}

// confinedService is a service whose unit is changed.
type confinedService struct {
	*service
	release int
}

const helloDropIns = "/etc/systemd/system/hello.service.d/"

// write has systemd read lines of [Service] in place of those before.
func (b *confinedService) write(lines string) {
	b.t.Helper()
	b.run("rm", "-rf", helloDropIns)
	if lines != "" {
		b.writeUnit(helloDropIns+"a-defect.conf", "[Service]\n"+lines+"\n")
	}
	b.run("systemctl", "daemon-reload")
}

// restart starts the service with such lines.
func (b *confinedService) restart(lines string) {
	b.t.Helper()
	b.write(lines)
	b.run("systemctl", "restart", b.unit)
}

// mustFail checks that the one finding has the ID, that an upgrade is refused for it, and that one that was made in spite of it fails
// with the cause, and returns it.
func (b *confinedService) mustFail(id, cause string) handoffcheck.Finding {
	b.t.Helper()
	found := b.check(10)
	if len(found) != 1 || found[0].ID != id {
		b.t.Fatalf("got %+v, want %s", found, id)
	}
	b.release++
	if r := b.upgrade(good(b.release)); r.exec.Code != 10 || !strings.Contains(r.Cause, id) {
		b.t.Errorf("%s: the upgrade is not refused: %s", id, r.exec)
	}
	r := b.upgrade(good(b.release), "--accept-risk", id)
	b.t.Logf("%s: %s: %s", id, found[0].Seen, r.Cause)
	if r.exec.Code != 10 && r.exec.Code != 11 || r.Phase == upgrade.Preflight || !strings.Contains(r.Cause, cause) {
		b.t.Errorf("%s: the upgrade does not fail over it: %s", id, r.exec)
	}
	return found[0]
}

// mend applies a fix, after which nothing is found and an upgrade succeeds.
func (b *confinedService) mend(f handoffcheck.Finding) {
	b.t.Helper()
	if f.DropIn != "" {
		b.writeUnit(helloDropIns+"b-mended.conf", f.DropIn)
		b.run("systemctl", "daemon-reload")
		b.run("systemctl", "restart", b.unit)
	} else {
		b.run("sh", "-c", f.Fix)
	}
	if left := b.check(0); len(left) > 0 {
		b.t.Errorf("%s: the fix leaves %+v", f.ID, left)
	}
	b.release++
	b.upgrade(good(b.release)).mustBe(upgrade.Upgraded, 0)
}
