package cmd

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"time"

	"github.com/spf13/cobra"

	"github.com/zdt-dev/zdt/release"
)

// holdDoc is the document of zdt hold.
type holdDoc struct {
	Schema   string        `json:"schema"`  // zdt.hold/1
	Outcome  string        `json:"outcome"` // held, free
	ExitCode ExitCode      `json:"exit_code"`
	Changed  bool          `json:"changed"`
	Service  string        `json:"service"`
	Hold     *release.Hold `json:"hold,omitempty"`
}

func newHoldCmd(f *factory) *cobra.Command {
	var why string
	var off bool
	cmd := &cobra.Command{
		Use:   "hold NAME -m TEXT | --off",
		Short: "Keep everybody from upgrading a service",
		Long: `Keep everybody from upgrading or rolling back a service until the hold is taken
away. A hold outlives reboots and never ends by itself. What is under way goes
on, and who has to can go on all the same: zdt upgrade --ignore-hold.`,
		Example: `  zdt hold web -m "black friday, ask anna"
  zdt hold web --off`,
		Args:              arguments(1, 1, "the NAME of the service"),
		ValidArgsFunction: f.completeServices(1),
	}
	cmd.Flags().StringVarP(&why, "message", "m", "", "why: a `TEXT` for whoever runs into it")
	cmd.Flags().BoolVar(&off, "off", false, "take the hold away")
	return f.command(cmd, func(_ context.Context, args []string) error {
		name, err := serviceName(args[0])
		if err != nil {
			return err
		}
		if (why == "") == !off {
			return usage("zdt hold NAME -m TEXT, or zdt hold NAME --off", "hold: say why with -m, or take it away with --off")
		}
		return runHold(f, name, why, off)
	}, ExitOK, ExitNoService, ExitUsage, ExitNotAuthorised)
}

func runHold(f *factory, name, why string, off bool) error {
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
	doc := holdDoc{Schema: "zdt.hold/1", Outcome: "held", Service: name, Changed: true}
	st := f.outStyle()
	var text string
	if off {
		doc.Outcome = "free"
		if doc.Changed, err = store.ClearHold(); err != nil {
			return err
		}
		text = fmt.Sprintf("%s %s is free to be upgraded", st.good.Render(st.marks.ok), st.bold.Render(name))
	} else {
		h := release.Hold{Since: f.now().UTC(), Who: release.Identify(), Why: why}
		if err := store.SetHold(h); err != nil {
			return err
		}
		doc.Hold = &h
		text = fmt.Sprintf("%s %s is held since %s by %s: %s", st.warn.Render(st.marks.warn), st.bold.Render(name),
			h.Since.Local().Format(time.DateTime), clean(h.Who.String()), clean(why))
	}
	if f.globals.output != outputText {
		return f.print(doc)
	}
	_, err = fmt.Fprintln(f.Out, text)
	return err
}
