package systest

import (
	"strings"
	"testing"

	"github.com/zdt-dev/zdt/internal/guest"
	"github.com/zdt-dev/zdt/internal/load"
)

// A program that has bound its port itself is replaced by zdt run with the same program, and no client is refused: systemd keeps
// the listening socket between the two. Without that step clients are refused.
func TestKeepSockets(t *testing.T) {
	t.Parallel()
	guest.Each(t, func(t *testing.T, g *guest.Guest) {
		s := &service{t: t, g: g, name: "hello", unit: "hello.service", addr: "127.0.0.1:8080"}
		s.installZdt()
		program := s.put(good(1))
		const fragment, adopted, moment = "/etc/systemd/system/hello.service", "/etc/systemd/system/hello.service.d/50-adopted.conf",
			"/run/systemd/system/hello.service.d/99-moment.conf"
		plain := func(kept bool) load.Report {
			s.writeUnit(fragment, "[Service]\nExecStart="+program+" -listen "+s.addr+"\n")
			s.run("systemctl", "daemon-reload")
			s.run("systemctl", "restart", s.unit)
			s.await("the plain program serves", func() bool { _, err := s.ask("/"); return err == nil })
			l := s.load(load.Config{Fresh: 4, Failures: 100000})
			s.flows(l)
			s.writeUnit(adopted, "[Service]\nType=notify\nFileDescriptorStoreMax=4\nRuntimeDirectory=zdt/hello\nRestart=always\nRestartSec=100ms\nExecStart=\n"+
				"ExecStart=/usr/local/bin/zdt run --listen "+s.addr+"=http -- "+program+" -listen "+s.addr+"\n")
			if kept {
				s.writeUnit(moment, "[Service]\nNotifyAccess=exec\nExecReload=\nExecReload=+/usr/local/bin/zdt keep-sockets http=tcp:"+s.addr+"\n")
			}
			s.run("systemctl", "daemon-reload")
			if kept {
				s.run("systemctl", "reload", s.unit)
				if n := s.show("NFileDescriptorStore"); strings.TrimSpace(n) != "1" {
					t.Errorf("systemd keeps %s sockets", n)
				}
			}
			s.run("systemctl", "restart", s.unit)
			s.flows(l)
			if kept {
				s.run("rm", moment)
				s.run("systemctl", "daemon-reload")
				if n := s.show("NFileDescriptorStore"); strings.TrimSpace(n) != "1" {
					t.Errorf("systemd keeps %s sockets in the end", n)
				}
				s.run("systemctl", "kill", "--signal=KILL", s.unit) // all of it crashes, and the sockets are kept
				s.await("it is started again", func() bool { return strings.TrimSpace(s.show("NRestarts")) == "1" })
				s.flows(l)
			}
			report := l.Stop()
			s.run("systemctl", "stop", s.unit)
			s.run("rm", adopted)
			return report
		}
		if r := plain(false); r.Refused == 0 {
			t.Errorf("nobody is refused without the sockets being kept, so this shows nothing: %+v", r)
		}
		if r := plain(true); r.Refused > 0 {
			t.Errorf("clients are refused: %+v", r)
		}
	})
}
