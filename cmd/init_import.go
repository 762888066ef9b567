package cmd

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"github.com/zdt-dev/zdt/handoffcheck"
	"github.com/zdt-dev/zdt/release"
	"github.com/zdt-dev/zdt/unitgen"
)

// planImport finds out what is expected of the first release of a service. The unit is not there yet, but its drop-ins may be: who has
// told the host that nothing runs on it without a signature means the first release as well.
func (p *initPlan) planImport(ctx context.Context, f *factory, o initOptions, name string) error {
	policy, err := p.dropInPolicy(ctx, name)
	if err != nil {
		return &Failure{Code: ExitRefused, Err: fmt.Errorf("read [X-Zdt] in the drop-ins of %s.service: %w", name, err), Hint: hintOf(err)}
	}
	stage, err := f.stageOptions(policy, sourceOptions{Binary: p.source, SHA256: o.SHA256, Exec: o.Program, Signature: o.Signature})
	if err != nil {
		return refused(err)
	}
	if stage.Require.Needed() && stage.Signature == "" {
		return fail(ExitRefused, "give its signature with --signature FILE", "import %s: %w (RequireSignature=%s)", p.source, release.ErrUnsigned, stage.Require)
	}
	if p.stage == nil {
		p.stage = map[string]release.StageOptions{}
	}
	p.stage[name] = stage
	return nil
}

// dropInPolicy is the policy that the service will have: of the units as they are to be, and the drop-ins that are there.
func (p *initPlan) dropInPolicy(ctx context.Context, name string) (unitgen.Policy, error) {
	unit := name + ".service"
	var paths []string
	for _, of := range slices.Compact([]string{p.spec.ServiceUnit(), unit}) { // of the template, and of its instance
		found, err := filepath.Glob(p.paths.disk(filepath.Join(p.paths.Units, of+".d", "*.conf")))
		if err != nil {
			return unitgen.Policy{}, err
		}
		paths = append(paths, found...)
	}
	if p.bus != nil {
		// Also those of a package, of all services, of this boot only.
		if u, err := p.bus.Unit(ctx, unit); err == nil {
			for _, path := range u.DropInPaths {
				if !slices.Contains(paths, path) {
					paths = append(paths, path)
				}
			}
		}
	}
	files := slices.DeleteFunc(slices.Clone(p.files), func(f unitgen.File) bool { return f.Name != p.spec.ServiceUnit() })
	for _, path := range paths {
		data, err := os.ReadFile(path)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return unitgen.Policy{}, err
		}
		files = append(files, unitgen.File{Name: filepath.Base(path), Path: path, Data: data})
	}
	return unitgen.InstancePolicy(name, files...)
}

func (p *initPlan) importRelease(ctx context.Context, f *factory, name string) error {
	begun := f.now()
	store, err := release.Create(p.paths.disk(p.paths.StateDir(name)), release.Options{Program: p.spec.Exec})
	if err != nil {
		return err
	}
	defer store.Close()
	r, err := store.Stage(ctx, p.source, p.stage[name])
	if err == nil && r.Tree != nil { // only now is there a program to look at
		err = handoffcheck.Blockers(handoffcheck.Candidate(r.Path))
	}
	if err != nil {
		return refused(err)
	}
	if err := store.Flip(r); err != nil {
		return err
	}
	p.current = describeRelease(r)
	if p.txid, err = release.NewTxID(); err != nil {
		return err
	}
	return store.AppendHistory(importEntry(p.txid, r, begun, f.now()))
}
