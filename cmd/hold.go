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
	Schema   string   `json:"schema"`  // zdt.hold/1
	Outcome  string   `json:"outcome"` // held, free
	ExitCode ExitCode `json:"exit_code"`
	Changed  bool     `json:"changed"`
	Service  string   `json:"service"` // or the template
	// Services are the instances, when several were named.
	Services []string `json:"services,omitempty"`

	Hold *release.Hold `json:"hold,omitempty"`
}

func newHoldCmd(f *factory) *cobra.Command {
	var why string
	var off bool
	cmd := &cobra.Command{
		Use:   "hold NAME... -m TEXT | --off",
		Short: "Keep everybody from upgrading a service",
		Long: `Keep everybody from upgrading or rolling back a service until the hold is taken
away. A hold outlives reboots and never ends by itself. What is under way goes
on, and who has to can go on all the same: zdt upgrade --ignore-hold. NAME@
stands for all instances of a template.`,
		Example: `  zdt hold web -m "black friday, ask anna"
  zdt hold web --off`,
		Args:              arguments(1, -1, "the NAME of the service"),
		ValidArgsFunction: f.completeSets(false),
	}
	cmd.Flags().StringVarP(&why, "message", "m", "", "why: a `TEXT` for whoever runs into it")
	cmd.Flags().BoolVar(&off, "off", false, "take the hold away")
	return f.command(cmd, func(_ context.Context, args []string) error {
		if (why == "") == !off {
			return usage("zdt hold NAME -m TEXT, or zdt hold NAME --off", "hold: say why with -m, or take it away with --off")
		}
		if isSet(args) {
			set, err := f.openSet(args)
			if err != nil {
				return err
			}
			return runHold(f, holdDoc{Service: set.Template, Services: set.Names}, why, off)
		}
		name, err := serviceName(args[0])
		if err != nil {
			return err
		}
		return runHold(f, holdDoc{Service: name}, why, off)
	}, ExitOK, ExitNoService, ExitUsage, ExitNotAuthorised)
}

func runHold(f *factory, doc holdDoc, why string, off bool) error {
	p, err := f.paths()
	if err != nil {
		return err
	}
	names := doc.Services
	if len(names) == 0 {
		names = []string{doc.Service}
	}
	doc.Schema, doc.Outcome = "zdt.hold/1", "free"
	h := release.Hold{Since: f.now().UTC(), Who: release.Identify(), Why: why}
	if !off {
		doc.Outcome, doc.Hold = "held", &h
	}
	for _, name := range names {
		changed, err := f.setHold(p, name, doc.Hold)
		if err != nil {
			return err
		}
		doc.Changed = doc.Changed || changed
	}
	if f.globals.output != outputText {
		return f.print(doc)
	}
	st := f.outStyle()
	for _, name := range names {
		text := fmt.Sprintf("%s %s is free to be upgraded", st.good.Render(st.marks.ok), st.bold.Render(name))
		if !off {
			text = fmt.Sprintf("%s %s is held since %s by %s: %s", st.warn.Render(st.marks.warn), st.bold.Render(name),
				h.Since.Local().Format(time.DateTime), clean(h.Who.String()), clean(why))
		}
		if _, err := fmt.Fprintln(f.Out, text); err != nil {
			return err
		}
	}
	return nil
}

// setHold holds a service, or with nil takes its hold away.
func (f *factory) setHold(p Paths, name string, h *release.Hold) (changed bool, err error) {
	store, err := release.Open(p.disk(p.StateDir(name)), release.Options{})
	if errors.Is(err, fs.ErrNotExist) {
		return false, fail(ExitNoService, f.zdt()+" status", "zdt manages no service %s", name)
	}
	if err != nil {
		return false, err
	}
	defer store.Close()
	if h == nil {
		return store.ClearHold()
	}
	return true, store.SetHold(*h)
}
