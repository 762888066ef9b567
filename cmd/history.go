package cmd

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/zdt-dev/zdt/release"
	"github.com/zdt-dev/zdt/upgrade"
)

// historyDoc is the document of zdt history.
type historyDoc struct {
	Schema   string         `json:"schema"` // zdt.history/1
	Outcome  string         `json:"outcome"`
	ExitCode ExitCode       `json:"exit_code"`
	Changed  bool           `json:"changed"` // always false
	Service  string         `json:"service"`
	Entries  []historyEntry `json:"entries"` // newest first
	// Left counts older entries that were not asked for, Damaged lines that cannot be understood.
	Left    int `json:"left"`
	Damaged int `json:"damaged"`
}

// historyEntry is one upgrade with the versions of its releases, as far as those are still in the store.
type historyEntry struct {
	release.Entry
	FromVersion string `json:"from_version,omitempty"`
	ToVersion   string `json:"to_version,omitempty"`
	Current     bool   `json:"current"` // it brought the release that a restart would start
}

func newHistoryCmd(f *factory) *cobra.Command {
	most := 20
	cmd := &cobra.Command{
		Use:   "history NAME",
		Short: "Show a service's upgrades: when, what, how they ended, who and why",
		Long: `Show a service's upgrades and rollbacks, newest first: when, from which release
to which, how they ended and how long they took, who asked for them and why.
Takes no lock and changes nothing.`,
		Example: `  zdt history web
  zdt history web -n 0 -o ndjson`,
		Args:              arguments(1, 1, "the NAME of the service"),
		ValidArgsFunction: f.completeServices(1),
	}
	cmd.Flags().IntVarP(&most, "lines", "n", most, "show the last `N` upgrades; 0 shows all")
	return f.command(cmd, func(_ context.Context, args []string) error {
		name, err := serviceName(args[0])
		if err != nil {
			return err
		}
		if most < 0 {
			return usage("", "history: -n cannot be negative")
		}
		return runHistory(f, name, most)
	}, ExitOK, ExitNoService, ExitUsage, ExitNotAuthorised)
}

func runHistory(f *factory, name string, most int) error {
	p, err := f.paths()
	if err != nil {
		return err
	}
	store, err := release.Open(p.disk(p.StateDir(name)), release.Options{})
	if errors.Is(err, fs.ErrNotExist) {
		return fail(ExitNoService, f.zdt()+" status", "zdt manages no service %s", name)
	}
	if err != nil {
		return err
	}
	defer store.Close()
	doc, err := readHistory(store, name, most)
	if err != nil {
		return err
	}
	if f.globals.output != outputText {
		return f.print(doc)
	}
	if len(doc.Entries) == 0 {
		f.say("%s was never upgraded", name)
	}
	if doc.Damaged > 0 {
		f.say("%s %s of the history cannot be understood and is left out", f.errStyle().warn.Render("warning:"), plural(doc.Damaged, "line"))
	}
	st := f.outStyle()
	var b strings.Builder
	for _, e := range doc.Entries {
		writeEntry(&b, st, e, f.outWidth())
	}
	if doc.Left > 0 {
		fmt.Fprintln(&b, st.dim.Render(fmt.Sprintf("%s more: -n 0 shows all", plural(doc.Left, "earlier upgrade"))))
	}
	_, err = f.Out.Write([]byte(b.String()))
	return err
}

func readHistory(store *release.Store, name string, most int) (historyDoc, error) {
	doc := historyDoc{Schema: "zdt.history/1", Outcome: "shown", Service: name, Entries: []historyEntry{}}
	h, err := store.History()
	if err != nil {
		return doc, err
	}
	doc.Damaged = len(h.Damage)
	if most > 0 && len(h.Entries) > most {
		doc.Left = len(h.Entries) - most
	}
	current, err := store.Current()
	if err != nil && !errors.Is(err, release.ErrNoCurrent) {
		current = release.Release{} // the history can be read all the same; zdt status tells what is wrong with it
	}
	versions := map[string]string{}
	version := func(id string) string {
		v, known := versions[id]
		if !known && release.ValidID(id) {
			if r, err := store.Get(id); err == nil && r.Build != nil && meaningful(r.Build.Version) {
				v = r.Build.Version
			}
			versions[id] = v
		}
		return v
	}
	found := false
	for _, e := range slices.Backward(h.Entries[doc.Left:]) {
		line := historyEntry{Entry: e, FromVersion: version(e.From), ToVersion: version(e.To)}
		if e.Committed && e.To == current.ID && !found {
			line.Current, found = true, true
		}
		doc.Entries = append(doc.Entries, line)
	}
	return doc, nil
}

// writeEntry shows one upgrade: a line of what, and a line of who and why.
func writeEntry(b *strings.Builder, st style, e historyEntry, width int) {
	mark := st.dim.Render(st.marks.todo)
	outcome := clean(e.Outcome)
	switch {
	case e.Current:
		mark = st.good.Render(st.marks.on)
	case e.Committed:
		mark = st.good.Render(st.marks.ok)
	case e.Outcome == string(upgrade.NotRestored):
		mark, outcome = st.bad.Render(st.marks.fail), st.bad.Render(outcome)
	case e.Outcome == string(upgrade.RolledBack) || e.Outcome == string(upgrade.Interrupted):
		mark, outcome = st.warn.Render(st.marks.warn), st.warn.Render(outcome)
	}
	if e.Committed && e.Kind == release.KindRollback {
		outcome = "rolled back by hand"
	}
	if e.Reason != "" && !e.Committed {
		outcome += " (" + clean(e.Reason) + ")"
	}
	head := fmt.Sprintf("%s %s  %s %s %s", mark, e.Started.Local().Format(time.DateTime),
		entryName(e.FromVersion, e.From), st.marks.arrow, st.bold.Render(entryName(e.ToVersion, e.To)))
	took := elapsed(e.Ended.Sub(e.Started))
	parts := []string{head, outcome, took}
	if c := e.Conns; c != nil && c.Cut > 0 {
		parts = append(parts, st.warn.Render(fmt.Sprintf("%d cut", c.Cut)))
	}
	fmt.Fprintln(b, st.line(width, parts, []string{head, outcome}))
	who := "by " + clean(e.Who.String())
	if e.Why != "" {
		who += ": " + clean(e.Why)
	}
	fmt.Fprintln(b, st.clip("  "+st.dim.Render(e.TxID+"  "+who), width))
}

func entryName(version, id string) string {
	if version != "" && len(version) < 16 {
		return clean(version)
	}
	return shortID(id)
}
