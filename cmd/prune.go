package cmd

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/zdt-dev/zdt/dbusctl"
	"github.com/zdt-dev/zdt/release"
	"github.com/zdt-dev/zdt/unitgen"
)

// pruneDoc is the document of zdt prune.
type pruneDoc struct {
	Schema   string        `json:"schema"`  // zdt.prune/1
	Outcome  string        `json:"outcome"` // pruned, unchanged, would-prune, failed
	ExitCode ExitCode      `json:"exit_code"`
	Changed  bool          `json:"changed"`
	DryRun   bool          `json:"dry_run,omitempty"`
	Service  string        `json:"service"`
	Freed    int64         `json:"freed"`   // bytes of the removed ones
	Removed  []releaseDoc  `json:"removed"` // or that would be; oldest first
	Kept     []prunedKept  `json:"kept"`    // oldest first
	Left     []releaseDoc  `json:"left"`    // that were to be removed when an error ended it
	Error    string        `json:"error,omitempty"`
	Hint     string        `json:"hint,omitempty"`
	Options  prunedOptions `json:"options"`
}

type prunedOptions struct {
	Keep       int `json:"keep"`
	KeepFailed int `json:"keep_failed"`
}

// prunedKept is a release that stays, and why.
type prunedKept struct {
	releaseDoc
	Reason release.KeepReason `json:"reason"`
}

type pruneOptions struct {
	release.PruneOptions
	wait                       waitFlag
	keepGiven, keepFailedGiven bool // else the unit says it
}

func newPruneCmd(f *factory) *cobra.Command {
	var o pruneOptions
	cmd := &cobra.Command{
		Use:   "prune NAME [--keep N] [--dry-run]",
		Short: "Delete old releases",
		Long: `Delete old releases of a service, the oldest first.

Never deleted are the current release, the one that a rollback returns to, those
of an open upgrade, those that run, and pinned ones (zdt pin). Of the others the
newest stay that have served, as many that have not, and of those that failed
the last ones, as evidence: Keep= and KeepFailed= in [X-Zdt] of the unit say how
many, else 5 and 3.

zdt upgrade does the same by itself when it has succeeded.`,
		Example: `  zdt prune web --dry-run
  zdt prune web --keep 10`,
		Args:              arguments(1, 1, "the NAME of the service"),
		ValidArgsFunction: f.completeServices(1),
	}
	flags := cmd.Flags()
	flags.IntVar(&o.Keep, "keep", 0, "keep the newest `N` besides those that have to stay (default: Keep= of the unit)")
	flags.IntVar(&o.KeepFailed, "keep-failed", 0, "keep the last `N` that failed (default: KeepFailed= of the unit)")
	flags.BoolVar(&o.DryRun, "dry-run", false, "show what would be deleted, and delete nothing")
	flags.Var(&o.wait, "wait", "wait for an upgrade of the service to end, at most D")
	flags.Lookup("wait").NoOptDefVal = "forever"
	return f.command(cmd, func(ctx context.Context, args []string) error {
		name, err := serviceName(args[0])
		if err != nil {
			return err
		}
		if o.Keep < 0 || o.KeepFailed < 0 {
			return usage("", "prune: --keep and --keep-failed cannot be negative")
		}
		o.keepGiven, o.keepFailedGiven = flags.Changed("keep"), flags.Changed("keep-failed")
		return runPrune(ctx, f, name, o)
	}, ExitOK, ExitUnexpected, ExitNoService, ExitRefused, ExitUsage, ExitBusy, ExitNotAuthorised, ExitInt, ExitTerm)
}

func runPrune(ctx context.Context, f *factory, name string, o pruneOptions) error {
	store, err := f.openReleases(name)
	if err != nil {
		return err
	}
	defer store.Close()
	if err := f.fillRetention(ctx, name, &o); err != nil {
		return err
	}
	if !o.DryRun {
		p, err := f.paths()
		if err != nil {
			return err
		}
		lock, err := release.Acquire(ctx, p.Lock(name), release.Holder{Since: f.now(), Who: release.Identify()}, time.Duration(o.wait))
		if err != nil {
			return refused(err)
		}
		defer lock.Release()
	}
	p, err := store.Prune(ctx, o.PruneOptions)
	doc := pruneDoc{Schema: "zdt.prune/1", Service: name, DryRun: o.DryRun, Options: prunedOptions{o.Keep, o.KeepFailed}}
	doc.fill(p, err)
	switch {
	case err == nil:
	case len(p.Removed) == 0:
		err = refused(err)
	default: // some are gone
		err = &Failure{Code: codeOf(err), Err: fmt.Errorf("%w; %d of %d were deleted", err, len(p.Removed), len(p.Removed)+len(p.Left)), Hint: hintOf(err)}
	}
	doc.ExitCode = codeOf(err)
	if f.globals.output != outputText {
		if err != nil {
			doc.Error, doc.Hint = err.Error(), hintOf(err)
		}
		return f.printVerdict(doc, err)
	}
	if werr := f.showPruned(doc, p); werr != nil && err == nil {
		err = werr
	}
	return err
}

// fillRetention fills in what the flags leave to the unit, as an upgrade reads it.
func (f *factory) fillRetention(ctx context.Context, name string, o *pruneOptions) error {
	if o.keepGiven && o.keepFailedGiven {
		return nil
	}
	policy, err := f.policyOf(ctx, name)
	if err != nil {
		return &Failure{Code: ExitRefused, Err: fmt.Errorf("read [X-Zdt] of %s.service: %w", name, err), Hint: hintOf(err)}
	}
	if !o.keepGiven {
		o.Keep = policy.Keep
	}
	if !o.keepFailedGiven {
		o.KeepFailed = policy.KeepFailed
	}
	return nil
}

// policyOf reads the policy of a service: the files that systemd has read or, with --root or when systemd has no such unit, those
// that an administrator makes. Without any it is the default.
func (f *factory) policyOf(ctx context.Context, name string) (unitgen.Policy, error) {
	if f.globals.root == "" {
		h, err := f.openHost(ctx, name)
		if err != nil {
			return unitgen.Policy{}, err
		}
		defer h.close()
		u, err := h.ask(ctx)
		if !errors.Is(err, dbusctl.ErrNoUnit) {
			if err != nil {
				return unitgen.Policy{}, err
			}
			return h.policy(u)
		}
	}
	p, err := f.paths()
	if err != nil {
		return unitgen.Policy{}, err
	}
	policy, err := readPolicy(p, name)
	if errors.Is(err, fs.ErrNotExist) {
		return unitgen.ParsePolicy()
	}
	return policy, err
}

func (d *pruneDoc) fill(p release.Pruned, err error) {
	d.Removed, d.Kept, d.Left = []releaseDoc{}, []prunedKept{}, []releaseDoc{}
	for _, r := range p.Removed {
		d.Freed += r.Size
		d.Removed = append(d.Removed, describeStaged(r, ""))
	}
	for _, k := range p.Kept {
		d.Kept = append(d.Kept, prunedKept{describeStaged(k.Release, k.Reason), k.Reason})
	}
	for _, r := range p.Left {
		d.Left = append(d.Left, describeStaged(r, ""))
	}
	d.Changed = len(p.Removed) > 0 && !d.DryRun
	switch {
	case err != nil:
		d.Outcome = "failed"
	case len(p.Removed) == 0:
		d.Outcome = "unchanged"
	case d.DryRun:
		d.Outcome = "would-prune"
	default:
		d.Outcome = "pruned"
	}
}

// showPruned tells what is gone, a line for each, and what it comes to. A dry run
// also shows what stays, and why.
func (f *factory) showPruned(d pruneDoc, p release.Pruned) error {
	st, width := f.outStyle(), f.outWidth()
	names := nameWidth(st, p)
	var b strings.Builder
	for _, r := range p.Removed {
		word := "deleted"
		if d.DryRun {
			word = "would be deleted"
		}
		b.WriteString(releaseLines(st, r, st.bad.Render("-"), append([]string{word}, describeRole(st, r, "")...), names, width))
	}
	if d.DryRun {
		for _, k := range p.Kept {
			words := describeRole(st, k.Release, k.Reason)
			if k.Reason == release.KeepRecent {
				newest := fmt.Sprintf("among the newest %d", d.Options.Keep)
				if d.Options.Keep == math.MaxInt {
					newest = "all are kept"
				}
				words = append([]string{newest}, words...)
			}
			b.WriteString(releaseLines(st, k.Release, st.good.Render("="), words, names, width))
		}
	}
	if d.Outcome == "failed" {
		_, err := f.Out.Write([]byte(b.String()))
		return err
	}
	mark, verb := st.good.Render(st.marks.ok), "deleted"
	if d.DryRun {
		mark, verb = st.note.Render(st.marks.todo), "would be deleted"
	}
	head := fmt.Sprintf("%s %s: nothing to delete", st.good.Render(st.marks.ok), st.bold.Render(d.Service))
	if len(p.Removed) > 0 {
		head = fmt.Sprintf("%s %s: %s %s, %s", mark, st.bold.Render(d.Service), plural(len(p.Removed), "release"), verb, byteSize(d.Freed))
	}
	fmt.Fprintln(&b, st.line(width, []string{head, plural(len(p.Kept), "release") + " kept"}, []string{head}))
	_, err := f.Out.Write([]byte(b.String()))
	return err
}
