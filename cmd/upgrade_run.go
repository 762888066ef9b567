package cmd

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"strings"
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
	if o.Release != "" {
		if o.Release, err = findRelease(store, o.Release); err != nil {
			return upgrade.Report{}, &Failure{Code: ExitRefused, Err: err, Hint: f.zdt() + " history " + o.Service}
		}
	}
	e := upgrade.Engine{
		Options: upgrade.Options{
			Service: o.Service, Kind: o.Kind, Binary: o.Binary, Release: o.Release, SHA256: o.SHA256, Why: o.Why, User: f.globals.user, Wait: o.Wait,
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

// findRelease returns the ID of the one release that is called so: by its whole ID, or by the beginning of
// that or of its checksum.
func findRelease(store *release.Store, name string) (string, error) {
	releases, err := store.List()
	if err != nil {
		return "", err
	}
	var found []string
	for _, r := range releases {
		if r.ID == name {
			return name, nil
		}
		if strings.HasPrefix(r.ID, name) || strings.HasPrefix(shortID(r.ID), name) {
			found = append(found, r.ID)
		}
	}
	switch len(found) {
	case 1:
		return found[0], nil
	case 0:
		return "", fmt.Errorf("no release is called %q", name)
	}
	return "", fmt.Errorf("%q is the beginning of %d releases: %s", name, len(found), strings.Join(found, ", "))
}
