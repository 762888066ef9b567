package upgrade

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/zdt-dev/zdt/release"
)

// staged puts a small release into the store that nobody ever upgrades to.
func (w *world) staged(content string) release.Release {
	w.t.Helper()
	path := filepath.Join(w.t.TempDir(), "web")
	err := os.WriteFile(path, []byte(content), 0o755)
	if err != nil {
		w.t.Fatal(err)
	}
	r, err := w.store.Stage(w.t.Context(), path, release.StageOptions{})
	if err != nil {
		w.t.Fatal(err)
	}
	return r
}

func ids(releases []release.Release) (ids []string) {
	for _, r := range releases {
		ids = append(ids, r.ID)
	}
	return ids
}

// An upgrade among 200 releases leaves those that must not go and the newest, and tells which are gone: those that
// zdt prune --dry-run names.
func TestRetention(t *testing.T) {
	w := newWorld(t)
	var old []release.Release
	for i := range 200 {
		old = append(old, w.staged(fmt.Sprintf("#!/bin/sh\n# %d\n", i)))
	}
	sleep, err := os.ReadFile("/bin/sleep")
	if err != nil {
		t.Skip(err)
	}
	pinned, running := old[7], w.staged(string(sleep))
	if err := w.store.Pin(t.Context(), pinned.ID, release.Pinned{Why: "known"}); err != nil {
		t.Fatal(err)
	}
	failed := old[20:30]
	for _, r := range failed {
		txid, err := release.NewTxID()
		if err == nil {
			err = w.store.MarkFailed(r.ID, release.Failed{TxID: txid})
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	incumbent := exec.Command(running.Path, "60")
	incumbent.Args[0] = "sleep"
	if err := incumbent.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { incumbent.Process.Kill(); incumbent.Wait() }()

	e := w.engine(program(t, "good", "v2"))
	e.Options.Retain = &Retention{Keep: 4, KeepFailed: 2}
	var plan release.Pruned
	e.Observe = func(u Update) {
		w.observe(u)
		if u.Phase == Record && u.State == Done {
			if plan, err = w.store.Prune(t.Context(), release.PruneOptions{Keep: 4, KeepFailed: 2, DryRun: true}); err != nil {
				t.Error(err)
			}
		}
	}
	rep := e.Run(t.Context())
	w.want(rep, Upgraded, "", "")
	if text := strings.Join(rep.Warnings, "\n"); strings.Contains(text, "releases") {
		t.Errorf("warnings %q", text)
	}
	var gone []string
	for _, p := range rep.Pruned {
		gone = append(gone, p.ID)
		if i := slices.IndexFunc(old, func(r release.Release) bool { return r.ID == p.ID }); i < 0 || old[i].Size != p.Bytes {
			t.Errorf("%+v is told to be gone", p)
		}
	}
	if !slices.Equal(gone, ids(plan.Removed)) {
		t.Errorf("gone %d %v\nplanned %d %v", len(gone), gone, len(plan.Removed), ids(plan.Removed))
	}
	list, err := w.store.List()
	if err != nil {
		t.Fatal(err)
	}
	left := ids(list)
	for _, id := range []string{w.v1.ID, rep.To.ID, pinned.ID, running.ID} {
		if !slices.Contains(left, id) {
			t.Errorf("%s is gone", id)
		}
	}
	bad := 0
	for _, r := range list {
		if r.Failed != nil {
			bad++
		}
	}
	// The running one counts for the newest if it is one of them, which the order of checksums within a second decides.
	if n := len(left); bad != 2 || n != 4+bad+4 && n != 3+bad+4 || n+len(gone) != 203 {
		t.Errorf("%d are left, of them %d that failed; %d are gone", n, bad, len(gone))
	}
	w.wantServing("v2")
	back := w.engine("")
	back.Options.Kind, back.Options.Retain = release.KindRollback, &Retention{}
	rolled := back.Run(t.Context())
	if rolled.Outcome != Upgraded || len(rolled.Pruned) > 0 {
		t.Errorf("rollback: %s", asJSON(rolled))
	}
	w.wantServing("v1")
}

// slowPrune is a store whose disk is slow.
type slowPrune struct{ *release.Store }

func (slowPrune) Prune(ctx context.Context, _ release.PruneOptions) (release.Pruned, error) {
	<-ctx.Done()
	return release.Pruned{Removed: []release.Release{{ID: "20260101T000000Z-0123456789ab", Size: 5}}}, ctx.Err()
}

// Whatever becomes of the deletion, the upgrade has succeeded; what fails deletes nothing at all.
func TestRetentionFails(t *testing.T) {
	keepNone := &Retention{}
	t.Run("read-only", func(t *testing.T) {
		w := newWorld(t)
		old := w.staged("#!/bin/sh\n")
		e := w.engine(program(t, "good", "v2"))
		e.Options.Retain = keepNone
		e.Store = faultyStore{w.store, func(step string) error {
			if step == "before prune" {
				return unix.EROFS
			}
			return nil
		}}
		rep := e.Run(t.Context())
		w.want(rep, Upgraded, "", "")
		wantText(t, "warnings", strings.Join(rep.Warnings, "\n"), "old releases were not deleted: read-only file system")
		if _, err := w.store.Get(old.ID); err != nil || len(rep.Pruned) > 0 {
			t.Errorf("%v, %+v", err, rep.Pruned)
		}
	})
	t.Run("slow", func(t *testing.T) {
		w := newWorld(t)
		e := w.engine(program(t, "good", "v2"))
		e.Options.Retain = keepNone
		e.Store = slowPrune{w.store}
		rep := e.Run(t.Context())
		w.want(rep, Upgraded, "", "")
		wantText(t, "warnings", strings.Join(rep.Warnings, "\n"), "the next upgrade goes on with it, or: zdt prune web")
		if len(rep.Pruned) != 1 || rep.Pruned[0].Bytes != 5 || rep.EndedAt.Sub(rep.StartedAt) > w.took(rep)+retainLimit/2 {
			t.Errorf("pruned %+v, %s", rep.Pruned, rep.EndedAt.Sub(rep.StartedAt))
		}
	})
	t.Run("undone", func(t *testing.T) {
		w := newWorld(t)
		old := w.staged("#!/bin/sh\n")
		e := w.engine(program(t, "crash", "v2"))
		e.Options.Retain = keepNone
		rep := e.Run(t.Context())
		w.want(rep, RolledBack, Listen, "crashed")
		if _, err := w.store.Get(old.ID); err != nil || len(rep.Pruned) > 0 {
			t.Errorf("%v, %+v", err, rep.Pruned)
		}
	})
}

// took is the time of all phases.
func (w *world) took(rep Report) (sum time.Duration) {
	for _, tm := range rep.Timings {
		sum += tm.Took
	}
	return sum
}
