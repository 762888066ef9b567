package handoff

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/zdt-dev/zdt/handoff/control"
	"github.com/zdt-dev/zdt/journal"
)

// A candidate that is undone takes with it what it has started: its children
// hold copies of the listening sockets and might go on to accept.
func TestUndoneCandidateLeavesNoChildren(t *testing.T) {
	s := stand(t, quick(serviceConfig{}))
	st := s.mustStatus()
	script := filepath.Join(s.dir, "prefork")
	if err := os.WriteFile(script, []byte("#!/bin/sh\ntrap '' TERM\nsleep 1000 &\nsleep 1000 &\necho started > "+s.dir+"/started\nwait\nwait\nsleep 1000\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	s.armAndSignal(st.PID, control.Arm{TxID: "t1", Exe: script, ReadyTimeout: 500 * time.Millisecond})
	eventually(t, "the candidate has started its children", func() bool { return readFile(s.dir+"/started") != "" })
	s.awaitFailure(string(journal.ReasonReadyTimeout))
	s.await("the candidate is gone", func(st control.Status) bool { return st.Phase == control.Idle })
	eventually(t, "its children are gone", func() bool {
		for _, pid := range s.processes() {
			if strings.Contains(readFile(filepath.Join("/proc", strconv.Itoa(pid), "cmdline")), "sleep") {
				return false
			}
		}
		return true
	})
	s.nextWorks()
}
