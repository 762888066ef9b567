package cmd

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"path/filepath"
	"strings"
	"time"

	"github.com/charmbracelet/lipgloss"
	"github.com/spf13/cobra"

	"github.com/zdt-dev/zdt/release"
)

// releaseDoc is a release as JSON has it.
type releaseDoc struct {
	ID        string             `json:"id"`
	Version   string             `json:"version,omitempty"`
	SHA256    string             `json:"sha256,omitempty"`
	Size      int64              `json:"size"` // bytes
	Path      string             `json:"path,omitempty"`
	Source    string             `json:"source,omitempty"`
	StagedAt  time.Time          `json:"staged_at,omitzero"`
	Who       *release.Who       `json:"who,omitempty"`
	Why       string             `json:"why,omitempty"`
	Build     *release.Build     `json:"build,omitempty"`
	Tree      *release.Tree      `json:"tree,omitempty"`
	Archive   *release.Archive   `json:"archive,omitempty"`
	Signature *release.Signature `json:"signature,omitempty"`
	Recovered *release.Recovered `json:"recovered,omitempty"`
	Failed    *release.Failed    `json:"failed,omitempty"`
	Pinned    *release.Pinned    `json:"pinned,omitempty"`
	Dropped   []string           `json:"dropped,omitempty"`
	Damage    string             `json:"damage,omitempty"` // why it cannot be used
	// Role is what it is to the service now: current, previous, last-good,
	// open-upgrade, running, or nothing of that.
	Role release.KeepReason `json:"role,omitempty"`
}

// releasesDoc is the document of zdt releases.
type releasesDoc struct {
	Schema   string       `json:"schema"` // zdt.releases/1
	Outcome  string       `json:"outcome"`
	ExitCode ExitCode     `json:"exit_code"`
	Changed  bool         `json:"changed"` // always false
	Service  string       `json:"service"`
	Size     int64        `json:"size"`     // bytes, of all
	Releases []releaseDoc `json:"releases"` // newest first
}

func newReleasesCmd(f *factory) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "releases NAME",
		Short: "Show the releases in a service's store",
		Long: `Show the releases in a service's store, newest first: the one that a restart
would start, the one that a rollback returns to, those that run, are pinned or
have failed, and those that were staged and never used. Takes no lock and
changes nothing.`,
		Example: `  zdt releases web
  zdt releases web -o json`,
		Args:              arguments(1, 1, "the NAME of the service"),
		ValidArgsFunction: f.completeServices(1),
	}
	return f.command(cmd, func(ctx context.Context, args []string) error {
		name, err := serviceName(args[0])
		if err != nil {
			return err
		}
		return runReleases(ctx, f, name)
	}, ExitOK, ExitNoService, ExitUsage, ExitNotAuthorised)
}

func runReleases(ctx context.Context, f *factory, name string) error {
	store, err := f.openReleases(name)
	if err != nil {
		return err
	}
	defer store.Close()
	// What a prune that deletes nothing says about each.
	p, err := store.Prune(ctx, release.PruneOptions{Keep: math.MaxInt, KeepFailed: math.MaxInt, DryRun: true})
	if err != nil {
		return err
	}
	doc := releasesDoc{Schema: "zdt.releases/1", Outcome: "shown", Service: name, Releases: []releaseDoc{}}
	var b strings.Builder
	st := f.outStyle()
	names := nameWidth(st, p)
	for i := len(p.Kept) - 1; i >= 0; i-- {
		k := p.Kept[i]
		doc.Size += k.Release.Size
		doc.Releases = append(doc.Releases, describeStaged(k.Release, k.Reason))
		b.WriteString(releaseLines(st, k.Release, roleMark(st, k.Release, k.Reason), describeRole(st, k.Release, k.Reason), names, f.outWidth()))
	}
	if f.globals.output != outputText {
		return f.print(doc)
	}
	if len(doc.Releases) == 0 {
		f.say("%s has no releases", name)
	}
	_, err = f.Out.Write([]byte(b.String()))
	return err
}

// openReleases opens the store of a service for what needs no systemd. The caller closes it.
func (f *factory) openReleases(name string) (*release.Store, error) {
	p, err := f.paths()
	if err != nil {
		return nil, err
	}
	store, err := release.Open(p.disk(p.StateDir(name)), release.Options{})
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fail(ExitNoService, f.zdt()+" status", "zdt manages no service %s", name)
	}
	return store, err
}

func describeStaged(r release.Release, role release.KeepReason) releaseDoc {
	d := releaseDoc{
		ID: r.ID, SHA256: r.SHA256, Size: r.Size, Path: r.Path, Source: r.Source, StagedAt: r.StagedAt, Who: r.Who, Why: r.Why,
		Build: r.Build, Tree: r.Tree, Archive: r.Archive, Signature: r.Signature, Recovered: r.Recovered,
		Failed: r.Failed, Pinned: r.Pinned, Dropped: r.Dropped,
	}
	if r.Build != nil {
		d.Version = r.Build.Version
	}
	if r.Damage != nil {
		d.Damage = r.Damage.Error()
	}
	switch role {
	case release.KeepCurrent, release.KeepPrevious, release.KeepCommitted, release.KeepTxn, release.KeepRunning:
		d.Role = role
	}
	return d
}

// stagedName is what a person calls a release: its version, or what its file was called.
func stagedName(r release.Release) string {
	version := ""
	if r.Build != nil && meaningful(r.Build.Version) {
		version = r.Build.Version
	}
	if base := filepath.Base(r.Source); version == "" && r.Source != "" && base != r.Program {
		version = base
	}
	return clean(cmp.Or(version, shortID(r.ID)))
}

// releaseFacts are what is worth knowing about a release, in few words.
func releaseFacts(r release.Release) []string {
	facts := []string{byteSize(r.Size)}
	if r.Tree != nil {
		facts = append(facts, plural(r.Tree.Entries, "item")+", program "+clean(r.Tree.Exec))
	}
	if s := r.Signature; s != nil {
		facts = append(facts, "signed by "+clean(s.KeyName))
	}
	if len(r.Dropped) > 0 {
		facts = append(facts, "without its "+clean(strings.Join(r.Dropped, ", ")))
	}
	return facts
}

// roleMark is the sign in front of a release.
func roleMark(st style, r release.Release, role release.KeepReason) string {
	switch {
	case r.Damage != nil:
		return st.bad.Render(st.marks.fail)
	case role == release.KeepCurrent:
		return st.good.Render(st.marks.on)
	case r.Failed != nil:
		return st.warn.Render(st.marks.warn)
	case role == release.KeepPrevious || role == release.KeepCommitted || role == release.KeepRunning || role == release.KeepTxn:
		return st.good.Render(st.marks.off)
	}
	return st.dim.Render(st.marks.todo)
}

// describeRole says in words what a release is, and what happened to it.
func describeRole(st style, r release.Release, role release.KeepReason) []string {
	var words []string
	switch role {
	case release.KeepCurrent:
		words = append(words, st.bold.Render("current"))
	case release.KeepPrevious:
		words = append(words, "rollback goes here")
	case release.KeepCommitted:
		words = append(words, "committed last")
	case release.KeepTxn:
		words = append(words, "of the open upgrade")
	case release.KeepRunning:
		words = append(words, "running")
	}
	if r.Damage != nil {
		why := strings.TrimPrefix(r.Damage.Error(), "release "+r.ID+": ")
		return append(words, st.bad.Render("damaged")+": "+clean(strings.TrimPrefix(why, release.ErrDamaged.Error()+": ")))
	}
	if r.Pinned != nil {
		words = append(words, strings.TrimSuffix("pinned: "+clean(r.Pinned.Why), ": "))
	}
	if r.Failed != nil {
		text := "failed"
		if r.Failed.Reason != "" {
			text += " (" + clean(r.Failed.Reason) + ")"
		}
		words = append(words, st.warn.Render(text))
	}
	if r.Recovered != nil {
		words = append(words, "recovered from a process")
	}
	if r.Signature != nil {
		words = append(words, "signed by "+clean(r.Signature.KeyName))
	}
	return words
}

// releaseLines are one release of a list: a line and, where the words do not fit
// behind it, a second one with them.
func releaseLines(st style, r release.Release, mark string, words []string, names, width int) string {
	staged := "?"
	if !r.StagedAt.IsZero() {
		staged = r.StagedAt.Local().Format("2006-01-02 15:04")
	}
	size := byteSize(r.Size)
	if r.Damage != nil {
		size = "?"
	}
	name := listName(st, r)
	head := fmt.Sprintf("%s %s  %s%8s  %s", mark, shortID(r.ID), pad(name, names), size, staged)
	if len(words) == 0 {
		return st.clip(head, width) + "\n"
	}
	text := strings.Join(words, " "+st.dim.Render(st.marks.dot)+" ")
	head = pad(head, lipgloss.Width(head)+len("2006-01-02 15:04")-len(staged))
	if width == math.MaxInt || lipgloss.Width(head)+2+lipgloss.Width(text) <= width {
		return head + "  " + text + "\n"
	}
	return st.clip(strings.TrimRight(head, " "), width) + "\n" + st.clip("    "+text, width) + "\n"
}

// listName is the name of a release in a list, where its checksum stands beside it.
func listName(st style, r release.Release) string {
	const most = 20
	name := stagedName(r)
	if name == shortID(r.ID) {
		return ""
	}
	if runes := []rune(name); len(runes) > most {
		return string(runes[:most-len([]rune(st.marks.ellipsis))]) + st.marks.ellipsis
	}
	return name
}

// nameWidth is the width of the column with the names, with what separates it.
func nameWidth(st style, p release.Pruned) int {
	most := 0
	for _, r := range p.Removed {
		most = max(most, lipgloss.Width(listName(st, r)))
	}
	for _, k := range p.Kept {
		most = max(most, lipgloss.Width(listName(st, k.Release)))
	}
	if most > 0 {
		most += 2
	}
	return most
}

func pad(s string, width int) string {
	return s + strings.Repeat(" ", max(width-lipgloss.Width(s), 0))
}

// byteSize shows a number of bytes with as many digits as a person reads.
func byteSize(n int64) string {
	const unit = 1024
	if n < unit {
		return fmt.Sprintf("%d B", n)
	}
	v, names := float64(n)/unit, []string{"KiB", "MiB", "GiB", "TiB"}
	for v >= unit && len(names) > 1 {
		v, names = v/unit, names[1:]
	}
	if v < 10 {
		return fmt.Sprintf("%.1f %s", v, names[0])
	}
	return fmt.Sprintf("%.0f %s", v, names[0])
}

// completeReleases completes RELEASE of the service in args[0].
func (f *factory) completeReleases(args []string, toComplete string) []cobra.Completion {
	name, err := serviceName(args[0])
	if err != nil {
		return nil
	}
	store, err := f.openReleases(name)
	if err != nil {
		return nil
	}
	defer store.Close()
	list, _ := store.List()
	var found []cobra.Completion
	for _, r := range list {
		for _, ref := range []string{shortID(r.ID), r.ID} {
			if strings.HasPrefix(ref, toComplete) {
				found = append(found, cobra.CompletionWithDesc(ref, stagedName(r)))
				break
			}
		}
	}
	return found
}
