package systest

import (
	"fmt"
	"strings"
	"testing"

	"github.com/zdt-dev/zdt/internal/guest"
	"github.com/zdt-dev/zdt/upgrade"
)

// Limits that have room for one program and not for two are found, and are not any more with the drop-in that is printed. How an
// upgrade ends that meets one is up to who needs the last descriptor first: with a limit one above what is open, zdt waits in vain
// for the runtime to accept its connection. What the controllers of memory and tasks limit is left out: a guest may have neither.
// So is LimitNPROC=, up to which a Go program now takes a thread more, now less: two above, a candidate died when it needed one.
func TestCheckResources(t *testing.T) {
	t.Parallel()
	g := guest.Boot(t, guest.Trixie)
	if r, err := g.Run(t.Context(), "sh", "-c", "mkdir -p /var/lib/zdt && mount -t tmpfs -o size=128m,mode=755 tmpfs /var/lib/zdt"); err != nil || r.Code != 0 {
		t.Fatal(err, r)
	}
	s := newService(t, g, options{init: []string{"--service-user", guest.User}})
	const dir = "/etc/systemd/system/hello.service.d/"
	s.writeUnit(dir+"a-defect.conf", fmt.Sprintf("[Service]\nLimitNOFILE=%d\n", 2*len(s.descriptors())-1))
	s.run("systemctl", "daemon-reload")
	s.run("systemctl", "restart", s.unit)
	found := s.check(0)
	if len(found) != 1 || found[0].ID != "ZDT028" {
		t.Fatalf("of a limit of descriptors: %+v", found)
	}
	t.Log(found[0].Seen)
	s.writeUnit(dir+"b-mended.conf", found[0].DropIn)
	s.run("systemctl", "daemon-reload")
	s.run("systemctl", "restart", s.unit)
	if left := s.check(0); len(left) > 0 {
		t.Errorf("the drop-in leaves %+v", left)
	}
	s.upgrade(good(2)).mustBe(upgrade.Upgraded, 0)

	s.run("sh", "-c", "dd if=/dev/zero of=/var/lib/zdt/.ballast bs=64k 2>/dev/null; true")
	if found := s.check(0); len(found) != 1 || found[0].ID != "ZDT030" {
		t.Errorf("of a full disk: %+v", found)
	}
	s.upgrade(good(3)).mustBe(upgrade.Refused, 10)
	s.run("rm", "/var/lib/zdt/.ballast")
	if found := s.check(0); len(found) > 0 {
		t.Errorf("with room again: %+v", found)
	}
	s.upgrade(good(3)).mustBe(upgrade.Upgraded, 0)
	if r := s.must(0, "zdt", "doctor"); !strings.Contains(r.Stdout, "1 service, nothing to do") {
		t.Errorf("the doctor says:\n%s", r)
	}
}
