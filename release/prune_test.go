package release

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

// twoHundred makes a store of 200 releases by hand, as staging would; a reason
// for each that must stay.
func twoHundred(t *testing.T) (*Store, []Release, map[string]KeepReason) {
	t.Helper()
	s := newStore(t)
	at := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	var r []Release
	for i := range 200 {
		r = append(r, stageAt(t, s, fmt.Sprintf("#!/bin/sh\n# version %d\nsleep 60\n", i), at.Add(time.Duration(i)*time.Minute)))
	}
	mustAppend(t, s, Entry{Kind: KindInit, To: r[10].ID, Committed: true})
	mustAppend(t, s, Entry{Kind: KindUpgrade, From: r[10].ID, To: r[20].ID, Committed: true})
	mustAppend(t, s, Entry{Kind: KindUpgrade, From: r[20].ID, To: r[30].ID, Committed: true})
	mustFlip(t, s, r[30])
	do(t, s.WriteTxn(Txn{TxID: testTxID(1), Phase: PhaseBake, From: r[30].ID, To: r[40].ID}))
	do(t, s.Pin(t.Context(), r[50].ID, Pinned{Why: "known"}))
	for i := 60; i < 70; i++ {
		do(t, s.MarkFailed(r[i].ID, Failed{TxID: testTxID(byte(i))}))
	}
	// As an interpreter that has read its script: nothing of the release is open.
	cmd := exec.Command("/bin/sh", "-c", "read x", "interpreter", r[80].Path)
	stdin, err := cmd.StdinPipe()
	do(t, err)
	do(t, cmd.Start())
	t.Cleanup(func() { stdin.Close(); _ = cmd.Wait() })
	waitFor(t, "the script", func() bool {
		line, err := os.ReadFile("/proc/" + strconv.Itoa(cmd.Process.Pid) + "/cmdline")
		return err == nil && slices.Contains(splitNul(line), r[80].Path)
	})
	return s, r, map[string]KeepReason{
		r[10].ID: KeepRecent, // of those that have served
		r[20].ID: KeepPrevious, r[30].ID: KeepCurrent, r[40].ID: KeepTxn, r[50].ID: KeepPinned, r[80].ID: KeepRunning,
		r[90].ID: KeepCaller, r[68].ID: KeepFailed, r[69].ID: KeepFailed, r[197].ID: KeepRecent, r[198].ID: KeepRecent, r[199].ID: KeepRecent,
	}
}

func splitNul(b []byte) []string {
	var words []string
	for len(b) > 0 {
		i := slices.Index(b, 0)
		if i < 0 {
			return append(words, string(b))
		}
		words, b = append(words, string(b[:i])), b[i+1:]
	}
	return words
}

func reasons(p Pruned) map[string]KeepReason {
	m := make(map[string]KeepReason)
	for _, k := range p.Kept {
		m[k.Release.ID] = k.Reason
	}
	return m
}

func TestPruneTwoHundred(t *testing.T) {
	t.Parallel()
	s, r, want := twoHundred(t)
	o := PruneOptions{Keep: 3, KeepFailed: 2, Protect: []string{r[90].ID}, DryRun: true}
	before := snapshot(t, s.dir)
	plan, err := s.Prune(t.Context(), o)
	do(t, err)
	if after := snapshot(t, s.dir); after != before {
		t.Error("a dry run changed the store")
	}
	o.DryRun = false
	p, err := s.Prune(t.Context(), o)
	do(t, err)
	for _, p := range []Pruned{plan, p} {
		if got := reasons(p); fmt.Sprint(got) != fmt.Sprint(want) {
			t.Errorf("kept %v\nwant %v", got, want)
		}
		if len(p.Removed)+len(p.Kept) != 200 || len(p.Left) != 0 {
			t.Errorf("%d removed, %d kept, %d left: not 200", len(p.Removed), len(p.Kept), len(p.Left))
		}
		if !slices.IsSortedFunc(p.Removed, func(a, b Release) int { return a.StagedAt.Compare(b.StagedAt) }) {
			t.Error("not the oldest first")
		}
	}
	list, err := s.List()
	if err != nil || len(list) != len(want) {
		t.Errorf("%d are there, %v, want %d", len(list), err, len(want))
	}
	checkSound(t, s)
	checkTidy(t, s)
	if p, err := s.Prune(t.Context(), o); err != nil || len(p.Removed) != 0 {
		t.Errorf("again: %v, %v", p.Removed, err)
	}
}

// kill -9 around every step of a prune: what is there is whole, what is protected is there.
func TestKilledPruning(t *testing.T) {
	t.Parallel()
	if testing.Short() {
		t.Skip("starts a process for every step")
	}
	setup := func(t *testing.T) (*Store, Release) {
		s := newStore(t)
		r := mustStage(t, s, "current")
		mustFlip(t, s, r)
		for i := range 3 {
			mustStage(t, s, "old "+strconv.Itoa(i))
		}
		return s, r
	}
	var labels []string
	s, _ := setup(t)
	s.step = func(l string, f func() error) error { labels = append(labels, l); return f() }
	_, err := pruneFor(t, s, 0)
	do(t, err)
	if len(labels) != 8 { // sweep, three times rename and remove, fsync
		t.Errorf("steps %q", labels)
	}
	for i, label := range labels {
		for _, when := range []string{"early", "late"} {
			t.Run(fmt.Sprintf("%d %s %s", i, label, when), func(t *testing.T) {
				s, r := setup(t)
				err := crashCommand(t, s.dir, "-prune", strconv.Itoa(i), when).Run()
				if !killed(err) {
					t.Fatalf("child: %v, want killed", err)
				}
				checkSound(t, s)
				if cur, err := s.Current(); err != nil || cur.ID != r.ID {
					t.Errorf("current: %+v, %v", cur, err)
				}
				if _, err := pruneFor(t, s, 0); err != nil {
					t.Errorf("prune again: %v", err)
				}
				if list, err := s.List(); err != nil || len(list) != 1 {
					t.Errorf("left: %v, %v", list, err)
				}
				checkTidy(t, s)
			})
		}
	}
}

// stepContext ends after so many looks at it.
type stepContext struct {
	context.Context
	left atomic.Int32
}

func (c *stepContext) Err() error {
	if c.left.Add(-1) < 0 {
		return context.Canceled
	}
	return nil
}

// A removal is cut short at any file, as by kill -9 or by the end of its time: a release is whole or out of sight, and
// the next prune, or stage, finishes it.
func TestPruneCutShort(t *testing.T) {
	t.Parallel()
	for _, next := range []string{"prune", "stage"} {
		for n, ended := int32(0), false; !ended; n++ {
			s := newStore(t)
			r := mustStage(t, s, "current")
			mustFlip(t, s, r)
			for _, kind := range []string{"directory", "archive"} {
				_, err := s.Stage(t.Context(), sourceOf(t, kind, kind), StageOptions{})
				do(t, err)
			}
			ctx := &stepContext{Context: t.Context()}
			ctx.left.Store(n)
			p, err := s.Prune(ctx, PruneOptions{})
			ended = err == nil
			if err != nil && !errors.Is(err, context.Canceled) {
				t.Fatal(err)
			}
			if list, err := s.List(); err != nil || len(list)+len(p.Removed) != 3 {
				t.Fatalf("cut after %d: %d are there, %d are told to be gone, %v", n, len(list), len(p.Removed), err)
			}
			checkSound(t, s)
			if next == "stage" {
				mustStage(t, s, "next")
			} else if _, err := s.Prune(t.Context(), PruneOptions{}); err != nil {
				t.Fatal(err)
			}
			checkTidy(t, s)
			if ended && n < 15 { // of each release four files, two directories and itself
				t.Errorf("it could be cut short in %d places only", n)
			}
		}
	}
}

// Where nobody waits for another who stages, nothing is deleted.
func TestPruneBusy(t *testing.T) {
	t.Parallel()
	s := newStore(t)
	mustStage(t, s, "old")
	unlock, err := s.lock(t.Context())
	do(t, err)
	if _, err := s.Prune(t.Context(), PruneOptions{NoWait: true}); !errors.Is(err, ErrBusy) {
		t.Errorf("error %v", err)
	}
	unlock()
	if p, err := s.Prune(t.Context(), PruneOptions{NoWait: true}); err != nil || len(p.Removed) != 1 {
		t.Errorf("%+v, %v", p, err)
	}
}

// What runs is told to who looks, also when it would stay anyway; that changes nothing about what is deleted.
func TestPruneRunningAmongTheNewest(t *testing.T) {
	t.Parallel()
	s := newStore(t)
	old, next := mustStage(t, s, "old"), stageAt(t, s, "next", time.Now().Add(time.Hour))
	f, err := os.Open(next.Path)
	do(t, err)
	defer f.Close()
	for _, dry := range []bool{true, false} {
		p, err := s.Prune(t.Context(), PruneOptions{Keep: 1, DryRun: dry})
		do(t, err)
		want := map[bool]KeepReason{true: KeepRunning, false: KeepRecent}[dry]
		if len(p.Removed) != 1 || p.Removed[0].ID != old.ID || len(p.Kept) != 1 || p.Kept[0].Reason != want {
			t.Errorf("dry run %t: %+v", dry, p)
		}
	}
}

// An error in the middle: the answer tells what is gone and what is not.
func TestPruneTells(t *testing.T) {
	t.Parallel()
	s := newStore(t)
	for i := range 5 {
		mustStage(t, s, "v"+strconv.Itoa(i))
	}
	n := 0
	s.step = func(l string, f func() error) error {
		if l == "prune: rename" {
			if n++; n == 3 {
				return syscall.EROFS
			}
		}
		return f()
	}
	p, err := s.Prune(t.Context(), PruneOptions{Keep: 1})
	var h interface{ Hint() string }
	if !errors.Is(err, syscall.EROFS) || !errors.As(err, &h) {
		t.Errorf("error = %v", err)
	}
	if len(p.Removed) != 2 || len(p.Left) != 2 || len(p.Kept) != 1 {
		t.Errorf("removed %d, left %d, kept %d", len(p.Removed), len(p.Left), len(p.Kept))
	}
	list, _ := s.List()
	if len(list) != 3 {
		t.Errorf("%d are there", len(list))
	}
	// A pinned release is kept also when it is not usable.
	do(t, s.Pin(t.Context(), list[0].ID, Pinned{}))
	do(t, os.Remove(filepath.Join(s.dir, releasesDir, list[0].ID, testProgram)))
	if p, err = s.Prune(t.Context(), PruneOptions{}); err != nil || len(p.Kept) != 1 || p.Kept[0].Reason != KeepPinned || p.Kept[0].Release.Damage == nil {
		t.Errorf("%+v, %v", p, err)
	}
}

// Releases that never served, as those of a pipeline that somebody has to mend, push none out that has.
func TestPruneKeepsWhatServed(t *testing.T) {
	t.Parallel()
	s := newStore(t)
	var served, staged []string
	for i := range 10 {
		r := stageAt(t, s, fmt.Sprint("program ", i), time.Date(2026, 1, 1, i, 0, 0, 0, time.UTC))
		if i >= 4 {
			staged = append(staged, r.ID)
			continue
		}
		mustFlip(t, s, r)
		mustAppend(t, s, Entry{TxID: testTxID(byte(i + 1)), Kind: KindUpgrade, To: r.ID, Committed: true})
		served = append(served, r.ID)
	}
	p, err := s.Prune(t.Context(), PruneOptions{Keep: 2})
	do(t, err)
	kept := reasons(p)
	want := map[string]KeepReason{
		served[0]: KeepRecent, served[1]: KeepRecent, served[2]: KeepPrevious, served[3]: KeepCurrent,
		staged[4]: KeepRecent, staged[5]: KeepRecent,
	}
	if fmt.Sprint(kept) != fmt.Sprint(want) {
		t.Errorf("kept %v\nwant %v", kept, want)
	}
}
