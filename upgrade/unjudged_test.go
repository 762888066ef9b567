package upgrade

import (
	"errors"
	"os"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/zdt-dev/zdt/journal"
	"github.com/zdt-dev/zdt/release"
)

// zdt dies in a restart whose release nobody has judged, or was found wanting: it runs, and is not kept for that.
func TestUnjudgedRestart(t *testing.T) {
	for _, tt := range []struct {
		at, reason string
		failed     bool // its release is marked
	}{
		{"before record bake", reasonZdtDied, false},
		{"before record undo", reasonZdtDied, false},
		{"after record undo", string(journal.ReasonHealth), true},
		{"before history", string(journal.ReasonHealth), true},
	} {
		for _, next := range []string{"resume", "abort", "upgrade", "boot"} {
			t.Run(tt.at+"/"+next, func(t *testing.T) {
				w := newWorld(t)
				e := w.engine(program(t, "good", "v2"))
				var g testGates
				e.Options.Strategy, e.Options.Bake = StrategyRestart, 10*time.Second
				e.Gates = g.gates(time.Second)
				g.failed <- errors.New("503")
				e.Store = faultyStore{e.Store.(*release.Store), func(step string) error {
					if step == tt.at {
						runtime.Goexit() // what follows never happens; the kernel drops the lock of the dead, as the defers do here
					}
					return nil
				}}
				ended := make(chan struct{})
				go func() { defer close(ended); e.Run(t.Context()); t.Error("it came to its end") }()
				<-ended
				if next == "boot" {
					if err := w.systemd.restartJob(t.Context()); err != nil {
						t.Fatal(err)
					}
				}
				outcome, order := Interrupted, Finish
				if next == "abort" {
					outcome, order = Aborted, Abort
				}
				if next == "upgrade" {
					w.want(w.upgrade(program(t, "good", "v3")), Upgraded, "", "")
					w.want(w.rollback(""), Upgraded, "", "") // not to the one that nobody has judged
				} else if rep := w.engine("").Settle(t.Context(), order); rep.Outcome != outcome || rep.Cause != "" {
					t.Fatalf("report %s", asJSON(rep))
				}
				w.wantOld()
				h, err := w.store.History()
				if err != nil {
					t.Fatal(err)
				}
				first := h.Entries[0]
				reason := tt.reason
				if next == "abort" {
					reason = string(journal.ReasonRequested)
				}
				if first.Outcome != string(outcome) || first.Committed || first.Reason != reason {
					t.Errorf("history says %s", asJSON(first))
				}
				if failed := markedFailed(t, w, first.To); failed != tt.failed {
					t.Errorf("its release is marked as failed: %v", failed)
				}
				w.wantNextWorks()
			})
		}
	}
}

func markedFailed(t *testing.T, w *world, id string) bool {
	t.Helper()
	rel, err := w.store.Get(id)
	if err != nil {
		t.Fatal(err)
	}
	return rel.Failed != nil
}

// The release that ran before was deleted by hand: what committed last takes its place, and nobody is stuck.
func TestUnjudgedWithoutFrom(t *testing.T) {
	w := newWorld(t)
	w.want(w.upgrade(program(t, "good", "v2")), Upgraded, "", "")
	v3, err := w.store.Stage(t.Context(), program(t, "good", "v3"), release.StageOptions{})
	if err == nil {
		err = w.store.Flip(v3)
	}
	if err == nil {
		err = w.systemd.restartJob(t.Context())
	}
	txid, terr := release.NewTxID()
	if err == nil && terr == nil {
		err = w.store.WriteTxn(release.Txn{TxID: txid, Kind: release.KindUpgrade, Restart: true, Phase: release.PhaseBake,
			From: "20260101T000000Z-0123456789ab", To: v3.ID, Runner: release.Proc{PID: os.Getpid(), Start: 1}})
	}
	if err != nil || terr != nil {
		t.Fatal(err, terr)
	}
	rep := w.engine("").Settle(t.Context(), Abort)
	if rep.Outcome != Aborted || rep.Cause != "" {
		t.Fatalf("report %s", asJSON(rep))
	}
	wantText(t, "warnings", strings.Join(rep.Warnings, "\n"), "release 20260101T000000Z-0123456789ab is not there any more")
	w.wantServing("v2")
	w.wantNextWorks()
}
