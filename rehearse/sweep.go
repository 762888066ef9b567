package rehearse

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/zdt-dev/zdt/dbusctl"
	"github.com/zdt-dev/zdt/release"
	"github.com/zdt-dev/zdt/unitgen"
)

// clean leaves nothing. It is done also when the operator has gone.
func (r *run) clean(ctx context.Context, files []unitgen.File) {
	if ctx.Err() != nil {
		// Somebody waits, and nobody is served: it need not end well.
		kill, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanTimeout)
		r.Kill(kill, r.unit) // if it lives
		cancel()
	}
	// A candidate that does not end takes TimeoutStopSec= of the service.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanTimeout+min(r.stopTimeout, longestStop))
	defer cancel()
	names := []string{}
	for _, f := range files {
		names = append(names, f.Path)
	}
	slices.Reverse(names) // the service first
	for _, err := range r.remove(ctx, names) {
		r.result.Warnings = append(r.result.Warnings, err.Error())
	}
	r.Forget(ctx, r.unit)
}

// remove stops units and removes their files.
func (h Host) remove(ctx context.Context, paths []string) (errs []error) {
	for _, path := range paths {
		name := filepath.Base(path)
		if _, err := os.Lstat(path); err != nil {
			continue
		}
		if !strings.HasSuffix(name, ".env") {
			var job *dbusctl.JobError // it has stopped, and not well
			if err := h.Stop(ctx, name); err != nil && !errors.Is(err, dbusctl.ErrNoUnit) && !errors.As(err, &job) {
				errs = append(errs, err)
				continue // as long as it runs its file says what it is
			}
			h.ResetFailed(ctx, name) // else it stays, and says so in systemctl --failed
		}
		if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	return errs
}

// Sweep ends rehearsals of the service that a zdt has left which did not live to see their end. The caller holds the service's
// lock: there is no other rehearsal then. It returns their units.
func (h Host) Sweep(ctx context.Context, service, unitDir string) ([]string, error) {
	entries, err := os.ReadDir(unitDir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("look for rehearsals that were left: %w", err)
	}
	var paths, units []string
	for _, e := range entries {
		if !stale(e.Name(), service) {
			continue
		}
		paths = append(paths, filepath.Join(unitDir, e.Name()))
		if strings.HasSuffix(e.Name(), ".service") {
			units = append(units, e.Name())
		}
	}
	// Services before sockets: those stop with them.
	slices.SortStableFunc(paths, func(a, b string) int {
		return strings.Compare(filepath.Ext(a), filepath.Ext(b))
	})
	return units, errors.Join(h.remove(ctx, paths)...)
}

// stale reports whether a file is one of a rehearsal of the service, and not of one whose name begins like it.
func stale(file, service string) bool {
	rest, ok := strings.CutPrefix(file, stem(service))
	if !ok {
		return false
	}
	txid, rest, _ := strings.Cut(rest, ".")
	return release.ValidTxID(txid) && (rest == "service" || rest == "env" || strings.HasSuffix(rest, ".socket"))
}
