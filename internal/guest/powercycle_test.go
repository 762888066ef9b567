package guest

import "testing"

func TestPowerCycle(t *testing.T) {
	Each(t, func(t *testing.T, g *Guest) {
		g.MustRun(t, "sh", "-c", "echo kept >/srv/file; echo gone >/run/file; rm -r /usr/share/dbus-1/services; mkdir /opt/dir; chown 5:6 /opt/dir")
		before := g.MustRun(t, "cat", "/etc/machine-id", "/proc/sys/kernel/random/boot_id")
		g = PowerCycle(t, g)
		if got := g.MustRun(t, "sh", "-c", "cat /srv/file; stat -c %u:%g /opt/dir; ls /run/file /usr/share/dbus-1/services 2>/dev/null || true"); got != "kept\n5:6" {
			t.Errorf("after the power came back: %q", got)
		}
		after := g.MustRun(t, "cat", "/etc/machine-id", "/proc/sys/kernel/random/boot_id")
		if after[:32] != before[:32] || after[33:] == before[33:] {
			t.Errorf("machine and boot: %q, before: %q", after, before)
		}
	})
}
