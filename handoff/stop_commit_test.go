package handoff

import (
	"net"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/zdt-dev/zdt/handoff/control"
)

// The service is stopped just when systemd has heard of its new main process
// and before that process has heard of its commit: both generations end.
func TestStopBetweenMainPIDAndCommit(t *testing.T) {
	for _, tt := range []struct {
		name             string
		oldConn, newConn bool // what is open, in the incumbent and in the new main process
		everybody        bool // SIGTERM to both, as with KillMode=control-group
	}{
		{name: "the new main process ends at once"},
		{name: "the new main process still drains", newConn: true},
		{name: "the incumbent still drains", oldConn: true},
		{name: "both still drain", oldConn: true, newConn: true},
		{name: "both are told", oldConn: true, newConn: true, everybody: true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			s := newStage(t, quick(serviceConfig{DrainTimeout: patience, IdleGrace: patience}))
			first := s.startReady().PID
			if tt.oldConn {
				c := s.idleConnection()
				defer c.Close()
				s.await("connected", func(st control.Status) bool { return st.Connections.Idle == 1 })
			}
			s.flip("service-next")
			s.systemd.setDeaf(true)
			s.signal(first, syscall.SIGUSR2)
			eventually(t, "systemd has a new main process", func() bool { return s.systemd.mainPID() != first })
			second := s.systemd.mainPID()
			var late net.Conn
			if tt.newConn {
				c := s.connectTo(second)
				defer c.Close()
				if _, err := c.Write([]byte("POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\n\r\n")); err != nil {
					t.Fatal(err)
				}
				late = c
			}
			s.signal(second, syscall.SIGTERM)
			if tt.everybody {
				s.signal(first, syscall.SIGTERM)
			}
			if late == nil {
				eventually(t, "the new main process has ended", func() bool {
					for _, pid := range s.processes() {
						if pid == second {
							return false
						}
					}
					return true
				})
			}
			s.systemd.setDeaf(false) // now the barrier is answered, and the commit goes on
			if late != nil {
				if _, err := late.Write([]byte("x")); err != nil {
					t.Errorf("finish the request: %v", err)
				}
			}
			s.awaitExit(first, "exited 0")
			s.awaitEmpty()
			s.checkExit(second, "exited 0")
		})
	}
}

// setDeaf makes systemd answer no barrier, or all that wait for an answer.
func (f *fakeSystemd) setDeaf(deaf bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.deaf = deaf
	if !deaf {
		for _, fd := range f.held {
			unix.Close(fd)
		}
		f.held = nil
	}
}
