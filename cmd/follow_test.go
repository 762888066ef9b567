package cmd

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/zdt-dev/zdt/release"
	"github.com/zdt-dev/zdt/upgrade"
)

const txA, txB = "20260102T030405000Z-00000001", "20260102T030406000Z-00000002"

// followHost is a user's host with one service, web, and its store.
func followHost(t *testing.T) (*factory, Paths, *release.Store) {
	t.Helper()
	// Only a directory that nobody else can write to is trusted.
	home := t.TempDir()
	f := newFactory(Streams{Out: io.Discard, Err: io.Discard, Width: func() int { return 80 }})
	f.globals.user = true
	f.getenv = func(name string) string {
		return map[string]string{"HOME": home, "XDG_RUNTIME_DIR": filepath.Join(home, "run")}[name]
	}
	p, err := f.paths()
	if err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(filepath.Join(home, "run"), 0o700); err != nil {
		t.Fatal(err)
	}
	store, err := release.Create(p.StateDir("web"), release.Options{Program: "web"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { store.Close() })
	return f, p, store
}

// deadProcess is a process that has ended.
func deadProcess(t *testing.T) release.Proc {
	t.Helper()
	cmd := exec.Command("/bin/cat")
	in, err := cmd.StdinPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	p, err := release.ProcOf(cmd.Process.Pid)
	if err != nil {
		t.Fatal(err)
	}
	in.Close()
	cmd.Wait()
	return p
}

func mustWait(t *testing.T, f *factory, txid string, observe func(upgrade.Update)) (ending, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	w, err := f.openFollower("web", txid, observe)
	if err != nil {
		return ending{}, err
	}
	defer w.close()
	return w.wait(ctx)
}

// How a transaction ended is told from whatever is left of it.
func TestFollowWhatIsOver(t *testing.T) {
	keep := func(t *testing.T, s *release.Store, r upgrade.Report) {
		data, err := json.Marshal(r)
		if err == nil {
			err = s.WriteReport(r.TxID, data)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	open := func(t *testing.T, s *release.Store, txn release.Txn) {
		txn.TxID, txn.Kind, txn.Runner = txA, release.KindUpgrade, deadProcess(t)
		if err := s.WriteTxn(txn); err != nil {
			t.Fatal(err)
		}
	}
	for _, tt := range []struct {
		name    string
		make    func(t *testing.T, s *release.Store)
		txid    string
		outcome upgrade.Outcome // "": an error
		code    ExitCode
		says    string
	}{
		{name: "nothing ever", code: ExitRefused, says: "never upgraded"},
		{name: "no such", txid: txA, code: ExitRefused, says: "no upgrade"},
		{name: "a report", make: func(t *testing.T, s *release.Store) {
			keep(t, s, upgrade.Report{Schema: "zdt.upgrade/1", TxID: txA, Outcome: upgrade.RolledBack, ExitCode: 11})
		}, txid: txA, outcome: upgrade.RolledBack, code: 11},
		{name: "the last one", make: func(t *testing.T, s *release.Store) {
			keep(t, s, upgrade.Report{Schema: "zdt.upgrade/1", TxID: txB, Outcome: upgrade.Upgraded})
			keep(t, s, upgrade.Report{Schema: "zdt.upgrade/1", TxID: txA, Outcome: upgrade.RolledBack, ExitCode: 11})
		}, outcome: upgrade.Upgraded},
		{name: "an error", make: func(t *testing.T, s *release.Store) {
			data, _ := json.Marshal(newErrorDoc(fail(ExitNotAuthorised, "sudo", "who are you")))
			if err := s.WriteReport(txA, data); err != nil {
				t.Fatal(err)
			}
		}, txid: txA, code: ExitNotAuthorised, says: "who are you"},
		{name: "only history", make: func(t *testing.T, s *release.Store) {
			if err := s.AppendHistory(release.Entry{TxID: txA, Kind: release.KindUpgrade, Outcome: "not-restored", ExitCode: 12}); err != nil {
				t.Fatal(err)
			}
		}, outcome: upgrade.NotRestored, code: 12},
		{name: "an import is no upgrade", make: func(t *testing.T, s *release.Store) {
			if err := s.AppendHistory(release.Entry{TxID: txA, Kind: release.KindInit, Outcome: "imported"}); err != nil {
				t.Fatal(err)
			}
		}, code: ExitRefused, says: "never upgraded"},
		{name: "its zdt died", make: func(t *testing.T, s *release.Store) { open(t, s, release.Txn{Phase: release.PhaseBake}) },
			code: ExitInterrupted, says: "its zdt died"},
		{name: "the host went down", make: func(t *testing.T, s *release.Store) {
			open(t, s, release.Txn{Phase: release.PhaseDrain, BootID: "another"})
		}, txid: txA, code: ExitInterrupted, says: "the host went down"},
		{name: "frozen", make: func(t *testing.T, s *release.Store) {
			open(t, s, release.Txn{Phase: release.PhaseBake, Frozen: true})
		}, code: ExitFrozen, says: "waits for a decision"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			f, _, store := followHost(t)
			if tt.make != nil {
				tt.make(t, store)
			}
			e, err := mustWait(t, f, tt.txid, func(upgrade.Update) {})
			if err == nil {
				if e.report != nil && e.report.Outcome != tt.outcome {
					t.Errorf("outcome %s, want %s", e.report.Outcome, tt.outcome)
				}
				err = f.present(e)
			}
			if codeOf(err) != tt.code || tt.says != "" && !strings.Contains(err.Error(), tt.says) {
				t.Errorf("%v (%d), want code %d", err, codeOf(err), tt.code)
			}
			if tt.code != 0 && tt.outcome == "" && hintOf(err) == "" {
				t.Error("nothing is said about what to do")
			}
		})
	}
}

// Everything that is told arrives, once and in order, also what was told before somebody came to watch.
func TestFollowABroadcast(t *testing.T) {
	f, p, store := followHost(t)
	b := newBroadcast(p, "web", txA)
	if b == nil {
		t.Fatal("no broadcast")
	}
	b.update(upgrade.Update{Phase: upgrade.Preflight, State: upgrade.Done})
	if got := newBroadcast(p, "web", txB); got == nil {
		t.Error("one that lives was in the way of another")
	} else {
		defer got.end(nil)
	}
	var seen []upgrade.Phase
	done := make(chan struct{})
	first := make(chan struct{})
	var e ending
	var err error
	go func() {
		defer close(done)
		e, err = mustWait(t, f, txA, func(u upgrade.Update) {
			if seen = append(seen, u.Phase); len(seen) == 1 {
				close(first)
			}
		})
	}()
	<-first
	// Half a line is not a line yet.
	if _, werr := b.file.WriteString(`{"schema":"zdt.update/1","phase":"st`); werr != nil {
		t.Fatal(werr)
	}
	if _, werr := b.file.WriteString(`age","state":"done"}` + "\n"); werr != nil {
		t.Fatal(werr)
	}
	b.end(upgrade.Report{Schema: "zdt.upgrade/1", TxID: txA, Outcome: upgrade.Upgraded, Changed: true})
	<-done
	if err != nil || e.report == nil || !e.report.Changed || len(seen) != 2 || seen[1] != upgrade.Stage {
		t.Errorf("%+v, %v, saw %v", e.report, err, seen)
	}
	// Another zdt has changed the end since: it was frozen, say.
	data, _ := json.Marshal(upgrade.Report{Schema: "zdt.upgrade/1", TxID: txA, Outcome: upgrade.Aborted, ExitCode: 11})
	if err := store.WriteReport(txA, data); err != nil {
		t.Fatal(err)
	}
	if e, err := mustWait(t, f, txA, func(upgrade.Update) {}); err != nil || e.report.Outcome != upgrade.Aborted {
		t.Errorf("%+v, %v", e.report, err)
	}
}

func TestFollowADeadWriter(t *testing.T) {
	f, p, _ := followHost(t)
	b := newBroadcast(p, "web", txA)
	b.file.Truncate(0)
	b.line(broadcastHead{"zdt.running/1", "web", txA, deadProcess(t)})
	b.update(upgrade.Update{Phase: upgrade.Stage, State: upgrade.Running})
	b.file.Close()
	_, err := mustWait(t, f, txA, func(upgrade.Update) {})
	if codeOf(err) != ExitRefused || !strings.Contains(err.Error(), "before it had changed anything") {
		t.Errorf("%v", err)
	}
	// The next one sweeps, and leaves other services alone.
	other := newBroadcast(p, "web.api", txA)
	other.file.Truncate(0)
	other.line(broadcastHead{"zdt.running/1", "web.api", txA, deadProcess(t)})
	other.file.Close()
	newBroadcast(p, "web", txB).end(nil)
	for path, want := range map[string]bool{p.Broadcast("web", txA): false, p.Broadcast("web", txB): true, p.Broadcast("web.api", txA): true} {
		if _, err := os.Lstat(path); (err == nil) != want {
			t.Errorf("%s: %v, want there %t", path, err, want)
		}
	}
}

func TestBroadcastIsBounded(t *testing.T) {
	_, p, _ := followHost(t)
	b := newBroadcast(p, "web", txA)
	for range 20_000 {
		b.update(upgrade.Update{Phase: upgrade.Bake, State: upgrade.Running, Text: strings.Repeat("x", 100)})
	}
	b.update(upgrade.Update{Phase: upgrade.Bake, State: upgrade.Done})
	b.end(upgrade.Report{})
	fi, err := os.Stat(p.Broadcast("web", txA))
	if err != nil || fi.Size() > broadcastMost+4096 || fi.Mode().Perm() != 0o600 {
		t.Errorf("%d bytes, mode %v, %v", fi.Size(), fi.Mode(), err)
	}
	data, _ := os.ReadFile(p.Broadcast("web", txA))
	if lines := strings.Split(strings.TrimSpace(string(data)), "\n"); !strings.Contains(lines[len(lines)-2], `"state":"done"`) {
		t.Errorf("the end of the phase is missing: %s", lines[len(lines)-2])
	}
	// A directory that others could write to is not used.
	if err := os.Chmod(p.Broadcasts(), 0o777); err != nil {
		t.Fatal(err)
	}
	if newBroadcast(p, "web", txB) != nil {
		t.Error("a directory of everybody's was used")
	}
}

func TestBroadcastReader(t *testing.T) {
	dir := t.TempDir()
	for name, content := range map[string]string{"empty": "", "half": `{"schema":"zdt.tr`, "other": `{"schema":"zdt.update/1"}` + "\n", "junk": "junk\n"} {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		_, err := openBroadcast(path)
		if err == nil || (name == "empty" || name == "half") != errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
