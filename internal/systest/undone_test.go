package systest

import (
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/zdt-dev/zdt/handoff/control"
	"github.com/zdt-dev/zdt/internal/guest"
	"github.com/zdt-dev/zdt/journal"
)

// A handoff that is undone while the new process serves already gives the connections back that it had accepted, and
// their clients notice as little as those of the old one.
func TestUndoneGivesBack(t *testing.T) {
	t.Parallel()
	rounds := max(2, soak(t)/10)
	eachExample(t, func(t *testing.T, s *service, e example) {
		before := s.footprint()
		old := s.load(e.load)
		s.busy(old, 50)
		incumbent, file := s.mainPID(), s.putFile(e.file(t, 3), 3)
		for range rounds {
			candidate := s.hold(file)
			taken := s.load(e.load) // by the candidate: the other one accepts nothing
			s.busy(taken, 50)
			s.tell(control.Request{Op: control.OpAbort, TxID: heldTxID})
			s.await("the candidate ends", func() bool { r := s.runtime(); return r != nil && r.Phase == control.Idle })
			if got := s.exitCounts(candidate); got.Moved == 0 || got.Cut+got.Closed > 0 {
				t.Errorf("connections at the candidate's end: %+v", got)
			}
			s.busy(taken, 50)
			report := taken.Stop()
			mustLoseNothing(t, report)
			if e.name == "hello" && (report.Versions[version(3)] == 0 || report.Versions[version(2)] == 0) {
				t.Errorf("want answers of the candidate and of the incumbent: %s", report)
			}
		}
		s.mustTake(e.verify)
		if pid := s.settled().Unit.MainPID; pid != incumbent {
			t.Errorf("pid %d serves, want %d", pid, incumbent)
		}
		s.mustMove(file)
		mustLoseNothing(t, old.Stop())
		s.mustLeaveNothing(before)
	})
}

const heldTxID = "20260101T000000Z-held"

// hold starts a handoff to a file of the guest that nobody decides, and returns the candidate.
func (s *service) hold(file string) int {
	s.t.Helper()
	s.tell(control.Request{Op: control.OpArm, Arm: &control.Arm{TxID: heldTxID, Exe: file, Hold: true}})
	s.run("kill", "-USR2", pid(s.mainPID()))
	candidate := 0
	s.await("the candidate is held", func() bool {
		r := s.runtime()
		if r == nil || r.Phase != control.Held {
			return false
		}
		candidate = r.Handoff.Candidate
		return true
	})
	return candidate
}

// exitCounts are the connections of a generation that has ended, as its exit event tells.
func (s *service) exitCounts(pid int) control.Counts {
	s.t.Helper()
	var c control.Counts
	s.await("the exit event", func() bool {
		log := s.journalOf("-o", "export", fmt.Sprintf("%s=%d", journal.FieldPID, pid), "MESSAGE_ID="+journal.Exit.ID())
		for line := range strings.Lines(log) {
			name, value, _ := strings.Cut(strings.TrimSpace(line), "=")
			n, _ := strconv.Atoi(value)
			switch name {
			case journal.FieldConnsMoved:
				c.Moved = n
			case journal.FieldConnsClosed:
				c.Closed = n
			case journal.FieldConnsCut:
				c.Cut = n
			}
		}
		return log != ""
	})
	return c
}

// A new process that is killed while connections move to it: each of them serves on in the old one, on the same
// connection, or was the new one's and is counted as lost. The sum is right whenever the kill comes.
func TestKilledWhileConnectionsMove(t *testing.T) {
	t.Parallel()
	const clients = 1000
	guest.Each(t, func(t *testing.T, g *guest.Guest) {
		s := startService(t, g, "http", good(1).file(t))
		var lost []string
		for i, share := range []int{0, 1, 50} { // percent of the connections that have come when the kill does
			n := i + 1
			resting := s.keptAlive(clients)
			finish := s.hangingRequest() // without it, the old process might be done before the kill
			incumbent, others := s.mainPID(), s.hostPIDs()
			s.hold(s.putFile(good(n+1).file(t), n+1))
			others = slices.DeleteFunc(s.hostPIDs(), func(pid int) bool { return slices.Contains(others, pid) })
			if len(others) != 1 {
				t.Fatalf("there are the processes %d beside the old one, want the candidate", others)
			}
			victim, before := others[0], openFiles(others[0])
			if share == 0 { // it gets what it cannot take any more
				syscall.Kill(victim, syscall.SIGSTOP)
			}
			s.tell(control.Request{Op: control.OpCommit, TxID: heldTxID})
			for end := time.Now().Add(patience); openFiles(victim)-before < clients*share/100; {
				if time.Now().After(end) {
					t.Fatal("the connections do not come")
				}
			}
			syscall.Kill(victim, syscall.SIGKILL)

			var r *control.Status
			s.await("the old process serves again", func() bool { r = s.runtime(); return r != nil && r.Phase == control.Idle && r.PID == incumbent })
			alive := s.mustServeOn(resting, version(n))
			finish(version(n))
			if r.Last == nil || r.Last.Lost+alive != clients || share == 0 && alive != clients {
				t.Fatalf("%d of %d connections serve on, the runtime says: %+v", alive, clients, r.Last)
			}
			t.Logf("killed when %d %% had come: %d lost, %d serve on", share, r.Last.Lost, alive)
			lost = append(lost, fmt.Sprintf("%s=%d", journal.FieldConnsLost, r.Last.Lost))
			s.mustMove(s.putFile(good(n+1).file(t), n+1)) // which also tells systemd 252 whose service it is
			s.settled()
		}
		var told []string
		for line := range strings.Lines(s.journalOf("-o", "export", "MESSAGE_ID="+journal.Abort.ID())) {
			if strings.HasPrefix(line, journal.FieldConnsLost+"=") {
				told = append(told, strings.TrimSpace(line))
			}
		}
		if !slices.Equal(told, lost) {
			t.Errorf("the journal tells %q, want %q", told, lost)
		}
	})
}

// mustServeOn asks on each connection, closes it, and returns how many were answered, all by the given version. The
// others must have ended: a client must not wait for ever.
func (s *service) mustServeOn(clients []keptAlive, version string) (alive int) {
	s.t.Helper()
	for _, c := range clients {
		v, err := c.ask()
		c.Close()
		switch {
		case err == nil && v == version:
			alive++
		case err == nil:
			s.t.Errorf("%s answers, want %s", v, version)
		case !errors.Is(err, io.ErrUnexpectedEOF) && !errors.Is(err, io.EOF) && !errors.Is(err, syscall.ECONNRESET) && !errors.Is(err, syscall.EPIPE):
			s.t.Errorf("a connection neither lives nor has ended: %v", err)
		}
	}
	return alive
}

// hostPIDs are the unit's processes as the host counts: a kill from here takes microseconds.
func (s *service) hostPIDs() []int {
	s.t.Helper()
	data, err := os.ReadFile(s.g.Path("/sys/fs/cgroup/system.slice/" + s.unit + "/cgroup.procs"))
	if err != nil {
		s.t.Fatal(err)
	}
	var pids []int
	for _, field := range strings.Fields(string(data)) {
		pid, err := strconv.Atoi(field)
		if err != nil {
			s.t.Fatal(err)
		}
		pids = append(pids, pid)
	}
	return pids
}

// openFiles counts a process's descriptors.
func openFiles(hostPID int) int {
	entries, _ := os.ReadDir(fmt.Sprintf("/proc/%d/fd", hostPID))
	return len(entries)
}
