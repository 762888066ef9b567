package handoff

import (
	"context"
	"syscall"
	"testing"

	"github.com/zdt-dev/zdt/handoff/control"
)

// Whoever asks for an abort while the service stops, with the candidate still ending, gets no service back from the dead.
func TestAbortWhileStopping(t *testing.T) {
	for _, how := range []string{"over the control socket", "by signal"} {
		t.Run(how, func(t *testing.T) {
			t.Parallel()
			s := newStage(t, quick(serviceConfig{DrainTimeout: patience, IdleGrace: patience}))
			s.startReady()
			st := s.hold("t1")
			// A request that the candidate works on keeps it alive until the abort was asked for.
			c := s.connectTo(st.Handoff.Candidate)
			defer c.Close()
			if _, err := c.Write([]byte("POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\n\r\n")); err != nil {
				t.Fatal(err)
			}
			s.signal(st.PID, syscall.SIGTERM)
			s.await("stopping", func(st control.Status) bool { return st.Phase == control.Stopping })
			if how == "by signal" {
				s.signal(st.PID, syscall.SIGUSR1)
			} else if _, err := s.ask(func(ctx context.Context, c *control.Client) (control.Status, error) {
				return c.Abort(ctx, "t1", "")
			}); err != nil {
				t.Error(err)
			}
			if st := s.mustStatus(); st.Phase != control.Stopping {
				t.Errorf("phase %s after the abort, want %s", st.Phase, control.Stopping)
			}
			c.Close()
			s.awaitExit(st.PID, "exited 0")
			s.awaitEmpty()
		})
	}
}
