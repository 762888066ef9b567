package cmd

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	"github.com/zdt-dev/zdt/unitgen"
)

// verify has systemd itself read the units before they are installed. Where
// there is no systemd-analyze, nothing is verified.
//
// Its exit status says nothing: it is 0 also for keys it does not know, and 1
// for faults in units of others. So every line that names one of ours counts.
func (p *initPlan) verify(ctx context.Context, user bool) error {
	if len(p.changes) == 0 {
		return nil
	}
	tool, err := exec.LookPath("systemd-analyze")
	if err != nil {
		return nil
	}
	dir, err := os.MkdirTemp("", "zdt-verify-")
	if err != nil {
		return fmt.Errorf("verify units: %w", err)
	}
	defer os.RemoveAll(dir)
	args := []string{"verify", "--man=no"}
	if user {
		args = append(args, "--user")
	}
	// The program is not in the store yet, zdt may be missing below --root, and
	// verify insists that both can be executed. That they can has been looked at.
	stand := strings.NewReplacer(
		"ExecStart="+p.spec.Zdt+" run", "ExecStart=/bin/sh",
		"ExecStart="+filepath.Join(p.spec.StateDir, "current", p.spec.Exec), "ExecStart=/bin/sh",
		"ExecReload="+p.spec.Zdt, "ExecReload=/bin/sh",
		"ExecStop=-"+p.spec.Zdt, "ExecStop=-/bin/sh")
	files := slices.Clone(p.files)
	for i := range files {
		if p.spec.Template() { // which systemd-analyze reads as an instance "i": no port ends so
			files[i].Name = unitgen.InstanceUnit(files[i].Name, p.spec.Instances[0])
		}
		f := files[i]
		path := filepath.Join(dir, f.Name)
		if err := os.WriteFile(path, []byte(stand.Replace(string(f.Data))), 0o644); err != nil {
			return fmt.Errorf("verify units: %w", err)
		}
		args = append(args, path)
	}
	cmd := exec.CommandContext(ctx, tool, args...)
	cmd.Env = append(os.Environ(), "LC_ALL=C", "SYSTEMD_LOG_LEVEL=notice", "SYSTEMD_COLORS=0", "SYSTEMD_LOG_TARGET=console")
	out, err := cmd.CombinedOutput()
	if ctx.Err() != nil {
		return fmt.Errorf("verify units: %w", context.Cause(ctx))
	}
	bad := complaints(string(out), dir, files)
	if len(bad) == 0 {
		if err != nil {
			p.note("verify", "", "systemd-analyze verify could not be asked: %v", err)
		}
		return nil
	}
	failure := fail(ExitRefused, "zdt should not have written that; please report it with these lines", "systemd would not read the units as they are meant")
	failure.Details = bad
	return failure
}

// complaints are the lines about our files.
func complaints(out, dir string, files []unitgen.File) []string {
	var bad []string
	for line := range strings.Lines(out) {
		line = strings.TrimSpace(strings.ReplaceAll(line, dir+"/", ""))
		for _, f := range files {
			if strings.Contains(line, f.Name) {
				bad = append(bad, line)
				break
			}
		}
	}
	return bad
}
