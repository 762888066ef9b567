package upgrade

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/zdt-dev/zdt/release"
)

// faultyStore runs a hook in front of and behind each step that changes the
// store; a hook's error in front of it is the step's.
type faultyStore struct {
	*release.Store
	hook func(step string) error
}

func (s faultyStore) do(step string, f func() error) error {
	if err := s.hook("before " + step); err != nil {
		return err
	}
	err := f()
	if err == nil {
		s.hook("after " + step)
	}
	return err
}

func (s faultyStore) Stage(ctx context.Context, src string, o release.StageOptions) (rel release.Release, err error) {
	err = s.do("stage", func() error { rel, err = s.Store.Stage(ctx, src, o); return err })
	return rel, err
}

func (s faultyStore) WriteTxn(t release.Txn) error {
	step := "record " + string(t.Phase)
	if t.Undo {
		step = "record undo"
	}
	return s.do(step, func() error { return s.Store.WriteTxn(t) })
}

func (s faultyStore) Flip(r release.Release) error {
	return s.do("flip", func() error { return s.Store.Flip(r) })
}

func (s faultyStore) AppendHistory(e release.Entry) error {
	return s.do("history", func() error { return s.Store.AppendHistory(e) })
}

func (s faultyStore) Prune(ctx context.Context, o release.PruneOptions) (p release.Pruned, err error) {
	err = s.do("prune", func() error { p, err = s.Store.Prune(ctx, o); return err })
	return p, err
}

func (s faultyStore) ClearTxn() error { return s.do("clear", s.Store.ClearTxn) }

func dialBus(ctx context.Context, dir string) (net.Conn, error) {
	var d net.Dialer
	return d.DialContext(ctx, "unix", filepath.Join(dir, "bus"))
}

// zdtMain is a zdt that is killed at the step named in its last argument.
func zdtMain() error {
	dir, binary, at := os.Args[1], os.Args[2], os.Args[3]
	die := func(step string) error {
		if step == at {
			unix.Kill(os.Getpid(), unix.SIGKILL)
			select {}
		}
		return nil
	}
	store, err := release.Open(filepath.Join(dir, "store"), release.Options{Program: "web"})
	if err != nil {
		return err
	}
	host := busHost(dir)
	signal := host.Signal
	host.Signal = func(ctx context.Context, sig syscall.Signal) error {
		die("before signal")
		if err := signal(ctx, sig); err != nil {
			return err
		}
		return die("after signal")
	}
	reload := host.Reload
	host.Reload = func(ctx context.Context) error {
		die("before reload")
		return reload(ctx)
	}
	e := engineFor(dir, faultyStore{store, die}, host, binary, nil)
	if binary == "" {
		e.Options.Kind = release.KindRollback
	}
	rep := e.Run(context.Background())
	fmt.Println(asJSON(rep))
	return fmt.Errorf("never came to %q", at)
}

// A zdt is killed at every step, and the next one finds out what became of it.
func TestKilled(t *testing.T) {
	steps := []struct {
		at      string
		outcome Outcome // "": there was no record yet, or the history was complete
		history []Outcome
	}{
		{"before stage", "", []Outcome{Upgraded}},
		{"after stage", "", []Outcome{Upgraded}},
		{"before record trigger", "", []Outcome{Upgraded}},
		{"after record trigger", Interrupted, nil},
		{"before signal", Interrupted, nil}, // armed
		{"after signal", Interrupted, nil},
		{"before record listen", Interrupted, nil},
		{"after record listen", Interrupted, nil},
		{"after record bake", Interrupted, nil},
		{"before record commit", Interrupted, nil},
		{"after record commit", Interrupted, nil},
		{"before record drain", Upgraded, nil},
		{"after record drain", Upgraded, nil},
		{"after record exit", Upgraded, nil},
		{"after record record", Upgraded, nil},
		{"before flip", Upgraded, nil},
		{"after flip", Upgraded, nil},
		{"before history", Upgraded, nil},
		{"after history", "", []Outcome{Upgraded, Upgraded}},
		{"before clear", "", []Outcome{Upgraded, Upgraded}},
		{"after clear", "", []Outcome{Upgraded, Upgraded}},
		{"before prune", "", []Outcome{Upgraded, Upgraded}},
		{"after prune", "", []Outcome{Upgraded, Upgraded}},
	}
	for _, tt := range steps {
		t.Run(tt.at, func(t *testing.T) {
			w := newWorld(t)
			w.killed(program(t, "good", "v2"), tt.at)
			history := tt.history
			if history == nil {
				history = []Outcome{tt.outcome, Upgraded}
			}
			rep := w.upgrade(program(t, "good", "v3"))
			w.want(rep, Upgraded, "", "")
			w.wantServing("v3")
			w.wantSmooth(rep)
			for _, u := range w.observed {
				if u.Text == "armed for another handoff" {
					t.Error("waited until the dead zdt's arming had expired")
				}
			}
			entries := w.wantHistory(history...)
			told := strings.Join(rep.Warnings, "\n")
			switch tt.outcome {
			case Interrupted:
				wantText(t, "warnings", told, "before its commit; it is undone")
			case Upgraded:
				wantText(t, "warnings", told, "it is finished now")
			default:
				if strings.Contains(told, "cut short") {
					t.Errorf("warnings %q", told)
				}
				return
			}
			if entries[0].Reason != reasonZdtDied {
				t.Errorf("history %+v", entries[0])
			}
			if (tt.outcome == Upgraded) != (entries[1].From == entries[0].To) {
				t.Errorf("history %+v", entries)
			}
		})
	}
}

// A zdt is killed while it undoes a failed upgrade.
func TestKilledInTheRollback(t *testing.T) {
	for _, at := range []string{"before record undo", "after record undo", "before history", "after history"} {
		t.Run(at, func(t *testing.T) {
			w := newWorld(t)
			w.killed(program(t, "crash", "v2"), at)
			w.wantOld()
			rep := w.upgrade(program(t, "good", "v3"))
			w.want(rep, Upgraded, "", "")
			if at == "after history" {
				w.wantHistory(RolledBack, Upgraded)
			} else {
				w.wantHistory(Interrupted, Upgraded)
			}
		})
	}
}

func (w *world) killed(binary, at string) {
	w.t.Helper()
	cmd := exec.Command("/proc/self/exe", w.dir, binary, at)
	cmd.Env = append(os.Environ(), envRole+"=zdt")
	out, err := cmd.CombinedOutput()
	if ws, ok := cmd.ProcessState.Sys().(syscall.WaitStatus); !ok || ws.Signal() != syscall.SIGKILL {
		w.t.Fatalf("zdt ended with %v and said:\n%s", err, out)
	}
}

// The record is of an earlier boot: nobody whom it names is alive.
func TestRecordOfAnEarlierBoot(t *testing.T) {
	for _, tt := range []struct {
		name    string
		phase   release.Phase
		toRuns  bool
		outcome Outcome
		told    string
	}{
		{"before the commit", release.PhaseBake, false, Interrupted, "before its commit; it is undone"},
		{"committed, not recorded", release.PhaseDrain, false, Interrupted, "the service was started again since, from release"},
		{"recorded", release.PhaseRecord, true, Upgraded, "it is finished now"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w := newWorld(t)
			v2, err := w.store.Stage(t.Context(), program(t, "good", "v2"), release.StageOptions{})
			if err != nil {
				t.Fatal(err)
			}
			txid, err := release.NewTxID()
			if err != nil {
				t.Fatal(err)
			}
			old := release.Txn{TxID: txid, Kind: release.KindUpgrade, Phase: tt.phase, BootID: "another", From: w.v1.ID, To: v2.ID,
				Runner: release.Proc{PID: os.Getpid(), Start: 1}, Incumbent: release.Proc{PID: w.systemd.mainPID(), Start: 1}}
			if tt.toRuns {
				old.From, old.To = v2.ID, w.v1.ID
			}
			if err := w.store.WriteTxn(old); err != nil {
				t.Fatal(err)
			}
			rep := w.upgrade(program(t, "good", "v3"))
			w.want(rep, Upgraded, "", "")
			wantText(t, "warnings", strings.Join(rep.Warnings, "\n"), tt.told)
			w.wantHistory(tt.outcome, Upgraded)
		})
	}
}

func TestDamagedRecord(t *testing.T) {
	w := newWorld(t)
	if err := os.WriteFile(filepath.Join(w.dir, "store/txn.json"), []byte("{"), 0o644); err != nil {
		t.Fatal(err)
	}
	rep := w.upgrade(program(t, "good", "v2"))
	if rep.Outcome != Refused || rep.Hint == "" {
		t.Fatalf("report %s", asJSON(rep))
	}
	w.wantOld()
}

// The disk is full at each step that writes.
func TestDiskFull(t *testing.T) {
	full := func(steps ...string) func(string) error {
		return func(step string) error {
			for _, s := range steps {
				if step == "before "+s {
					return fmt.Errorf("%s: %w", s, unix.ENOSPC)
				}
			}
			return nil
		}
	}
	for _, tt := range []struct {
		at      []string
		outcome Outcome
		phase   Phase
		reason  string
		open    bool // the record is still there
		next    []Outcome
	}{
		{[]string{"stage"}, Refused, Stage, "", false, []Outcome{Upgraded}},
		{[]string{"record trigger"}, Refused, Trigger, reasonRecord, false, []Outcome{Refused, Upgraded}},
		{[]string{"record listen"}, RolledBack, Listen, reasonRecord, false, []Outcome{RolledBack, Upgraded}},
		{[]string{"record listen", "record undo"}, RolledBack, Listen, reasonRecord, false, []Outcome{RolledBack, Upgraded}},
		{[]string{"record bake"}, RolledBack, Bake, reasonRecord, false, []Outcome{RolledBack, Upgraded}},
		{[]string{"record commit"}, RolledBack, Commit, reasonRecord, false, []Outcome{RolledBack, Upgraded}},
		{[]string{"record drain", "record exit", "record record"}, Upgraded, "", "", false, []Outcome{Upgraded, Upgraded}},
		{[]string{"flip"}, NotRestored, Record, reasonRecord, true, []Outcome{Upgraded, Upgraded}},
		{[]string{"flip", "history"}, NotRestored, Record, reasonRecord, true, []Outcome{Upgraded, Upgraded}},
		{[]string{"history"}, Upgraded, "", "", true, []Outcome{Upgraded, Upgraded}},
		{[]string{"clear"}, Upgraded, "", "", true, []Outcome{Upgraded, Upgraded}},
		{[]string{"prune"}, Upgraded, "", "", false, []Outcome{Upgraded, Upgraded}},
	} {
		t.Run(strings.Join(tt.at, " and "), func(t *testing.T) {
			w := newWorld(t)
			e := w.engine(program(t, "good", "v2"))
			e.Store = faultyStore{w.store, full(tt.at...)}
			rep := e.Run(t.Context())
			if rep.Outcome != tt.outcome || rep.Phase != tt.phase || rep.Reason != tt.reason || rep.ExitCode != exitCode(rep) {
				t.Fatalf("report %s", asJSON(rep))
			}
			if _, err := w.store.ReadTxn(); errors.Is(err, release.ErrNoTxn) == tt.open {
				t.Errorf("record: %v", err)
			}
			version := "v1"
			if tt.phase == Record || tt.outcome == Upgraded {
				version = "v2"
			}
			w.wantServing(version)
			if rep.Changed != (version == "v2") {
				t.Errorf("changed=%t, and %s serves", rep.Changed, version)
			}
			told := rep.Cause + strings.Join(rep.Warnings, "\n")
			wantText(t, "cause and warnings", told, "no space left on device")
			if tt.phase == Record {
				wantText(t, "cause", rep.Cause, "the new release serves, but a restart would start the old one")
			}
			w.wantNextWorks()
			w.wantHistory(tt.next...)
		})
	}
}
