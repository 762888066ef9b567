package cmd

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/zdt-dev/zdt/dbusctl"
	"github.com/zdt-dev/zdt/unitgen"
)

// planReconcile adds the unit that settles interrupted upgrades after a boot, of which a host has one. Whatever is there
// under that name, a package's or an administrator's, is good enough; init never rewrites or removes it.
func (p *initPlan) planReconcile(ctx context.Context, zdt string) error {
	r := unitgen.Reconcile{UnitDir: p.paths.Units, StateRoot: p.paths.State, Zdt: zdt, UserManager: p.spec.UserManager}
	if r.UserManager {
		r.Environment = []string{"XDG_STATE_HOME=" + filepath.Dir(p.paths.State), "XDG_CONFIG_HOME=" + filepath.Dir(filepath.Dir(p.paths.Units))}
	}
	file, err := r.Generate()
	if err != nil {
		return err
	}
	_, err = os.Lstat(p.paths.disk(file.Path))
	missing := errors.Is(err, fs.ErrNotExist)
	if err != nil && !missing {
		return fmt.Errorf("look for %s: %w", unitgen.ReconcileUnit, err)
	}
	if p.bus != nil {
		u, err := p.bus.Unit(ctx, unitgen.ReconcileUnit)
		if err != nil && !errors.Is(err, dbusctl.ErrNoUnit) {
			return err
		}
		missing = missing && err != nil // none of a package either
		if u.UnitFileState != "enabled" && u.LoadState != "masked" {
			p.enable = append(p.enable, unitgen.ReconcileUnit)
		}
	}
	if missing {
		p.files = append(p.files, file)
		p.changes = append(p.changes, unitgen.Diff(nil, []unitgen.File{file})...)
		p.reload = true
	}
	return nil
}
