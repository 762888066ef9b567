package upgrade

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/zdt-dev/zdt/handoff/control"
	"github.com/zdt-dev/zdt/journal"
	"github.com/zdt-dev/zdt/release"
)

// world is a host with one service, release v1 of which runs.
type world struct {
	t       *testing.T
	dir     string
	systemd *systemd
	store   *release.Store
	host    Host
	v1      release.Release

	mu       sync.Mutex
	observed []Update
	on       func(Update) // runs on the transaction's goroutine
}

// programs writes each program once for all tests; the file is large.
type programs struct {
	once sync.Once
	self []byte
	err  error
}

var theProgram programs

// program writes a program that behaves as role says, unlike any other version.
func program(t testing.TB, role, version string) string {
	t.Helper()
	theProgram.once.Do(func() { theProgram.self, theProgram.err = os.ReadFile("/proc/self/exe") })
	if theProgram.err != nil {
		t.Fatal(theProgram.err)
	}
	path := filepath.Join(t.TempDir(), "web-"+version)
	if err := os.WriteFile(path, append(slices.Clip(theProgram.self), trailer(role, version)...), 0o755); err != nil {
		t.Fatal(err)
	}
	return path
}

// noLeaks fails the test if goroutines or descriptors are left at its end.
func noLeaks(t *testing.T) {
	t.Helper()
	fds := func() int { entries, _ := os.ReadDir("/proc/self/fd"); return len(entries) }
	goroutines, descriptors := runtime.NumGoroutine(), fds()
	t.Cleanup(func() {
		deadline := time.Now().Add(5 * time.Second)
		for runtime.NumGoroutine() > goroutines || fds() > descriptors {
			if time.Now().After(deadline) {
				stacks := make([]byte, 1<<20)
				t.Errorf("left over: %d goroutines, were %d; %d descriptors, were %d\n%s", runtime.NumGoroutine(), goroutines,
					fds(), descriptors, stacks[:runtime.Stack(stacks, true)])
				return
			}
			pause(context.Background(), poll)
		}
	})
}

// newWorld makes a host on which v1 of the service runs. env are variables of
// the unit.
func newWorld(t *testing.T, env ...string) *world {
	t.Helper()
	program(t, "good", "warm") // what is read once is no leak
	http.DefaultClient.CloseIdleConnections()
	noLeaks(t)
	dir, err := os.MkdirTemp(memory(), "zu") // short: paths of sockets have 108 bytes
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	store, err := release.Create(filepath.Join(dir, "store"), release.Options{Program: "web"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { store.Close() })
	w := &world{t: t, dir: dir, store: store}
	w.v1, err = store.Stage(t.Context(), program(t, "good", "v1"), release.StageOptions{})
	if err == nil {
		err = store.Flip(w.v1)
	}
	if err != nil {
		t.Fatal(err)
	}
	w.systemd = newSystemd(t, dir, store.CurrentPath(), append([]string{"ZDT_IDLE_GRACE=50ms", "ZDT_READY_TIMEOUT=10s"}, env...)...)
	if slices.Contains(env, helped) {
		w.systemd.underHelper()
	}
	w.systemd.start()
	w.host = w.newHost()
	return w
}

// memory is a directory without a disk behind it, where there is one: the
// store syncs several times an upgrade. What fsync is for is tested in release.
func memory() string {
	const dir = "/dev/shm"
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil || st.Type != unix.TMPFS_MAGIC || st.Flags&unix.ST_NOEXEC != 0 || st.Bavail*uint64(st.Bsize) < 1<<30 {
		return ""
	}
	return dir
}

func (w *world) newHost() Host {
	s := w.systemd
	h := processHost(w.dir, s.mainPID)
	h.Unit = func(context.Context) (Unit, error) { u, _, err := s.state(); return u, err }
	h.WatchUnit = s.watch
	h.Reclaim, h.Reload, h.Restart, h.Stop = s.reclaim, s.reload, s.restartJob, s.stopJob
	return h
}

var errNoJournal = errors.New("no journal here")

// processHost is what a Host needs besides systemd.
func processHost(dir string, mainPID func() int) Host {
	return Host{
		Signal: func(_ context.Context, sig syscall.Signal) error { return unix.Kill(mainPID(), sig) },
		Control: func(ctx context.Context) (*control.Client, error) {
			return control.Dial(ctx, filepath.Join(dir, "control.sock"))
		},
		Exe: func(pid int) (string, error) { return os.Readlink(fmt.Sprintf("/proc/%d/exe", pid)) },
		InUnit: func(pid int, _ Unit) (bool, error) {
			// A process has no environment for a moment in the middle of exec(2), after its parent has been told.
			for range 50 {
				if env, err := os.ReadFile(fmt.Sprintf("/proc/%d/environ", pid)); err != nil || len(env) > 0 {
					break
				}
				pause(context.Background(), poll/10)
			}
			return ofUnit(pid, dir), nil
		},
		Cursor: func(context.Context) (string, error) { return "", errNoJournal },
		Write:  func(journal.Event) {},
		Now:    time.Now,
	}
}

// busHost is the Host of a zdt in a process of its own.
func busHost(dir string) Host {
	watch := func(ctx context.Context) (<-chan Unit, error) {
		c, err := dialBus(ctx, dir)
		if err != nil {
			return nil, err
		}
		out := make(chan Unit)
		context.AfterFunc(ctx, func() { c.Close() })
		go func() {
			defer close(out)
			dec := json.NewDecoder(c)
			for {
				var u Unit
				if dec.Decode(&u) != nil {
					return
				}
				select {
				case out <- u:
				case <-ctx.Done():
					return
				}
			}
		}()
		return out, nil
	}
	unit := func(ctx context.Context) (Unit, error) {
		ctx, cancel := context.WithCancel(ctx)
		defer cancel()
		units, err := watch(ctx)
		if err != nil {
			return Unit{}, err
		}
		u, ok := <-units
		if !ok {
			return Unit{}, errors.New("no answer from the bus")
		}
		return u, nil
	}
	h := processHost(dir, func() int { u, _ := unit(context.Background()); return u.MainPID })
	h.Unit, h.WatchUnit = unit, watch
	h.Reload = func(ctx context.Context) error {
		c, err := dialBus(ctx, dir)
		if err != nil {
			return err
		}
		defer c.Close()
		defer context.AfterFunc(ctx, func() { c.Close() })()
		if _, err := c.Write([]byte("r")); err != nil {
			return err
		}
		io.Copy(io.Discard, c) // to the end of the reload
		return nil
	}
	return h
}

// engine is an upgrade to the file binary.
func (w *world) engine(binary string) Engine {
	w.observed = nil
	return engineFor(w.dir, w.store, w.host, binary, w.observe)
}

func engineFor(dir string, store Store, host Host, binary string, observe func(Update)) Engine {
	return Engine{
		Options:  Options{Service: "web", Binary: binary, ReadyTimeout: 10 * time.Second, DrainTimeout: 10 * time.Second, Retain: &Retention{Keep: 5, KeepFailed: 3}},
		Host:     host,
		Store:    store,
		LockPath: filepath.Join(dir, "lock"),
		Check:    func(string) error { return nil },
		Observe:  observe,
		ExitCode: exitCode,
	}
}

// exitCode is the table of DESIGN §7, which package cmd owns.
func exitCode(r Report) int {
	return map[Outcome]int{Upgraded: 0, Unchanged: 0, Refused: 10, RolledBack: 11, NotRestored: 12, Interrupted: 13, Locked: 75, Frozen: 14, Aborted: 11}[r.Outcome]
}

func (w *world) observe(u Update) {
	w.mu.Lock()
	w.observed = append(w.observed, u)
	on := w.on
	w.mu.Unlock()
	if on != nil {
		on(u)
	}
}

// at runs f once, at the beginning of a phase.
func (w *world) at(p Phase, f func()) {
	var once sync.Once
	w.on = func(u Update) {
		if u.Phase == p && u.State == Running {
			once.Do(f)
		}
	}
}

func (w *world) upgrade(binary string) Report { return w.engine(binary).Run(w.t.Context()) }

// want holds the report, the store and the service against the verdict.
func (w *world) want(rep Report, outcome Outcome, phase Phase, reason string) {
	w.t.Helper()
	if rep.Outcome != outcome || rep.Phase != phase || rep.Reason != reason {
		w.t.Fatalf("outcome %s, phase %q, reason %q; want %s, %q, %q\n%s", rep.Outcome, rep.Phase, rep.Reason, outcome, phase, reason, asJSON(rep))
	}
	if rep.ExitCode != exitCode(rep) {
		w.t.Errorf("exit code %d of outcome %s", rep.ExitCode, rep.Outcome)
	}
	good := outcome == Upgraded || outcome == Unchanged
	if good != (rep.Cause == "") {
		w.t.Errorf("%s with cause %q", outcome, rep.Cause)
	}
	if !good && rep.Hint == "" {
		w.t.Errorf("%s (%s) without a hint", outcome, rep.Cause)
	}
	if rep.Changed != (outcome == Upgraded) {
		w.t.Errorf("%s with changed=%t", outcome, rep.Changed)
	}
	if (outcome == RolledBack) && rep.Action == "" {
		w.t.Error("rolled back without saying what was done")
	}
	if _, err := w.store.ReadTxn(); !errors.Is(err, release.ErrNoTxn) {
		w.t.Errorf("the record is still there (%v)", err)
	}
	current, err := w.store.Current()
	if err != nil {
		w.t.Fatal(err)
	}
	if outcome == Upgraded && current.ID != rep.To.ID {
		w.t.Errorf("upgraded, and current is %s", current.ID)
	}
	for _, u := range w.observed {
		if u.State == Done && u.Phase == Record && outcome != Upgraded {
			w.t.Errorf("%s after a record phase", outcome)
		}
	}
}

// wantHistory holds the history against the outcomes of all transactions.
func (w *world) wantHistory(outcomes ...Outcome) []release.Entry {
	w.t.Helper()
	h, err := w.store.History()
	if err != nil {
		w.t.Fatal(err)
	}
	var got []Outcome
	for _, e := range h.Entries {
		got = append(got, Outcome(e.Outcome))
		if e.Committed != (e.Outcome == string(Upgraded)) || e.ExitCode != exitCode(Report{Outcome: Outcome(e.Outcome)}) {
			w.t.Errorf("history line %+v", e)
		}
	}
	if !slices.Equal(got, outcomes) || len(h.Damage) > 0 {
		w.t.Fatalf("history %v (damage %v), want %v", got, h.Damage, outcomes)
	}
	return h.Entries
}

// wantServing asks the service for its version, over a connection of its own.
func (w *world) wantServing(version string) {
	w.t.Helper()
	got, err := w.ask("/version")
	if err != nil || got != version {
		w.t.Errorf("the service says %q, %v; want %q", got, err, version)
	}
	if pid := w.systemd.mainPID(); w.status().PID != pid {
		w.t.Errorf("process %d answers, main process is %d", w.status().PID, pid)
	}
}

// wantNextWorks upgrades once more: after every failure the next one works.
func (w *world) wantNextWorks() {
	w.t.Helper()
	w.on = nil
	w.observed = nil
	w.host = w.newHost()
	rep := w.upgrade(program(w.t, "good", "next"))
	w.want(rep, Upgraded, "", "")
	w.wantServing("next")
	w.wantSmooth(rep)
}

// wantSmooth holds against an upgrade that came to its good end only by way
// of a rollback.
func (w *world) wantSmooth(rep Report) {
	w.t.Helper()
	for _, tm := range rep.Timings {
		if tm.State != Done || tm.Phase == Rollback {
			w.t.Errorf("phase %s: %s; warnings %q", tm.Phase, tm.State, rep.Warnings)
		}
	}
}
