package cmd

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"time"

	"github.com/zdt-dev/zdt/handoffcheck"
	"github.com/zdt-dev/zdt/release"
	"github.com/zdt-dev/zdt/unitgen"
	"github.com/zdt-dev/zdt/upgrade"
)

// transact wires package upgrade to systemd, the runtime, the journal and the store.
func (f *factory) transact(ctx context.Context, o upgradeOptions, observe func(upgrade.Update)) (upgrade.Report, error) {
	h, err := f.openHost(ctx, o.Service)
	if err != nil {
		return upgrade.Report{}, err
	}
	defer h.close()
	u, err := h.ask(ctx)
	if err != nil {
		return upgrade.Report{}, err
	}
	policy, err := h.policy(u)
	if err != nil {
		return upgrade.Report{}, &Failure{Code: ExitRefused, Err: fmt.Errorf("read [X-Zdt] of %s: %w", h.unit, err), Hint: hintOf(err)}
	}
	store, err := release.Open(h.paths.disk(h.paths.StateDir(o.Service)), release.Options{Program: filepath.Base(unitgen.Program(u.ExecStartPath, u.ExecStart))})
	if errors.Is(err, fs.ErrNotExist) {
		return upgrade.Report{}, fail(ExitRefused, f.zdt()+" init "+o.Service+" --exec FILE", "%s has no release store: zdt does not manage it", o.Service)
	}
	if err != nil {
		return upgrade.Report{}, &Failure{Code: ExitRefused, Err: err, Hint: hintOf(err)}
	}
	defer store.Close()
	e := upgrade.Engine{
		Options: upgrade.Options{
			Service: o.Service, Binary: o.Binary, SHA256: o.SHA256, Why: o.Why, User: f.globals.user, Wait: o.Wait,
			Bake:         given(o.Bake, policy.Bake),
			ReadyTimeout: given(o.ReadyTimeout, policy.ReadyTimeout),
			DrainTimeout: given(o.DrainTimeout, policy.DrainTimeout),
		},
		Host: h.seams(), Store: store, LockPath: h.paths.Lock(o.Service), Who: release.Identify(),
		Check:    func(path string) error { return handoffcheck.Blockers(handoffcheck.Candidate(path)) },
		Observe:  observe,
		ExitCode: f.upgradeExit(ctx),
	}
	return e.Run(ctx), nil
}

// given is what the command line says, or else the unit.
func given(flag *time.Duration, policy time.Duration) time.Duration {
	if flag != nil {
		return *flag
	}
	return policy
}
