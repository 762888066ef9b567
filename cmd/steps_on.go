//go:build zdtsteps

package cmd

import (
	"context"
	"os"
	"path/filepath"
	"time"

	"github.com/zdt-dev/zdt/release"
	"github.com/zdt-dev/zdt/upgrade"
)

// stepped stops in front of or behind the step that the file "at" in the directory $ZDT_STEPS names, "before flip" for one:
// it makes the file "reached" and goes on when that is gone. This build is for the tests of what becomes of a transaction when
// something happens right there.
func stepped(s upgrade.Store) upgrade.Store {
	dir := os.Getenv("ZDT_STEPS")
	if dir == "" {
		return s
	}
	return steps{s, dir}
}

type steps struct {
	upgrade.Store
	dir string
}

func (s steps) at(step string) {
	want, err := os.ReadFile(filepath.Join(s.dir, "at"))
	if err != nil || string(want) != step {
		return
	}
	reached := filepath.Join(s.dir, "reached")
	if os.WriteFile(reached, []byte(step), 0o644) != nil {
		return
	}
	for {
		if _, err := os.Stat(reached); err != nil {
			return
		}
		time.Sleep(2 * time.Millisecond)
	}
}

func (s steps) do(step string, f func() error) error {
	s.at("before " + step)
	err := f()
	s.at("after " + step)
	return err
}

func (s steps) Stage(ctx context.Context, src string, o release.StageOptions) (r release.Release, err error) {
	err = s.do("stage", func() error { r, err = s.Store.Stage(ctx, src, o); return err })
	return r, err
}

func (s steps) WriteTxn(t release.Txn) error {
	step := string(t.Phase)
	if t.Undo {
		step = "undo"
	}
	return s.do("record "+step, func() error { return s.Store.WriteTxn(t) })
}

func (s steps) Flip(r release.Release) error {
	return s.do("flip", func() error { return s.Store.Flip(r) })
}

func (s steps) AppendHistory(e release.Entry) error {
	return s.do("history", func() error { return s.Store.AppendHistory(e) })
}

func (s steps) Prune(ctx context.Context, o release.PruneOptions) (p release.Pruned, err error) {
	err = s.do("prune", func() error { p, err = s.Store.Prune(ctx, o); return err })
	return p, err
}

func (s steps) ClearTxn() error { return s.do("clear", s.Store.ClearTxn) }
