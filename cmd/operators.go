package cmd

import (
	"context"
	"fmt"
	"strings"

	"github.com/spf13/cobra"
)

// operatorsDoc is the document of zdt operators.
type operatorsDoc struct {
	Schema   string   `json:"schema"`  // zdt.operators/1
	Outcome  string   `json:"outcome"` // some, none, changed, unchanged, would-change, refused, failed
	ExitCode ExitCode `json:"exit_code"`
	Changed  bool     `json:"changed"`
	DryRun   bool     `json:"dry_run,omitempty"`
	Service  string   `json:"service"`
	Group    string   `json:"group,omitempty"`   // whose members they are
	Members  []string `json:"members,omitempty"` // as far as /etc/group has them
	Unit     string   `json:"unit,omitempty"`    // that takes their requests
	Incoming string   `json:"incoming,omitempty"`
	Steps    []string `json:"steps,omitempty"` // what is done, or would be, in order
	Notes    []note   `json:"notes,omitempty"`
	Error    string   `json:"error,omitempty"`
	Hint     string   `json:"hint,omitempty"`
}

// operatorsOptions are the flags of zdt operators.
type operatorsOptions struct {
	Name   string
	Group  string
	Off    bool
	DryRun bool
	Zdt    string
}

func newOperatorsCmd(f *factory) *cobra.Command {
	var o operatorsOptions
	cmd := &cobra.Command{
		Use:   "operators NAME [--group GROUP | --off] [--dry-run]",
		Short: "Let a group upgrade one service without being root",
		Long: `Let the members of a group upgrade and roll back one service, and do nothing
else: a polkit rule, a unit that they may reload, and a directory for their
programs. They type zdt upgrade NAME as root does, and get the same verdict.

Without flags it shows who they are. The same command again changes nothing;
another --group replaces the one before, --off takes all of it away.`,
		Example: `  zdt operators web --group web-ops
  zdt operators web
  zdt operators web --off`,
		Args:              arguments(1, 1, "the NAME of the service"),
		ValidArgsFunction: f.completeServices(1),
	}
	flags := cmd.Flags()
	flags.StringVar(&o.Group, "group", "", "the group whose members may: an existing `GROUP`")
	flags.BoolVar(&o.Off, "off", false, "nobody but root may any more")
	flags.StringVar(&o.Zdt, "zdt", "", "zdt as the unit runs it, a `FILE` (default: this program)")
	flags.BoolVar(&o.DryRun, "dry-run", false, "show what would change, and change nothing")
	return f.command(cmd, func(ctx context.Context, args []string) error {
		var err error
		if o.Name, err = serviceName(args[0]); err != nil {
			return err
		}
		if o.Off && o.Group != "" {
			return usage("", "operators: --group and --off exclude each other")
		}
		return runOperators(ctx, f, o)
	}, ExitOK, ExitUnexpected, ExitNoService, ExitRefused, ExitUsage, ExitUnavailable, ExitBusy, ExitNotAuthorised, ExitInt, ExitTerm)
}

func runOperators(ctx context.Context, f *factory, o operatorsOptions) error {
	plan, err := f.planOperators(ctx, o)
	if err != nil {
		return err
	}
	defer plan.close()
	doc := plan.document()
	switch {
	case o.Group == "" && !o.Off:
		doc.Outcome = "some"
		if doc.Group == "" {
			doc.Outcome = "none"
		}
	case len(plan.steps) == 0:
		doc.Outcome = "unchanged"
	case o.DryRun:
		doc.Outcome = "would-change"
	default:
		doc.Outcome = "changed"
		if err = plan.apply(ctx, f); err != nil {
			doc.Outcome, doc.Error, doc.Hint = "failed", err.Error(), hintOf(err)
		}
		doc.Changed = plan.changed
	}
	doc.ExitCode = codeOf(err)
	st := f.errStyle()
	for _, n := range plan.notes {
		f.say("%s %s", st.warn.Render("note:"), clean(n.Text))
		if n.Next != "" {
			f.say("      %s", clean(n.Next))
		}
	}
	if f.globals.output != outputText {
		return f.printVerdict(doc, err)
	}
	if err != nil {
		return err
	}
	if doc.Outcome == "would-change" {
		for _, text := range plan.texts {
			fmt.Fprint(f.Out, colorDiff(f.outStyle(), text))
		}
		for _, s := range doc.Steps {
			f.say("%s would %s", st.dim.Render(st.marks.todo), clean(s))
		}
	}
	_, err = fmt.Fprintln(f.Out, operatorsLine(f.outStyle(), o, doc))
	return err
}

// operatorsLine is the verdict for a person.
func operatorsLine(st style, o operatorsOptions, d operatorsDoc) string {
	name := st.bold.Render(d.Service)
	who := "the group " + d.Group + " (" + strings.Join(d.Members, ", ") + ")"
	if len(d.Members) == 0 {
		who = "the group " + d.Group + ", which /etc/group gives no members"
	}
	switch d.Outcome {
	case "none":
		return fmt.Sprintf("%s %s: only root may upgrade it", st.dim.Render(st.marks.todo), name)
	case "unchanged":
		return fmt.Sprintf("%s %s: nothing to do", st.good.Render(st.marks.ok), name)
	case "would-change":
		return fmt.Sprintf("%s %s: %s to do; nothing was changed (--dry-run)", st.note.Render(st.marks.todo), name, plural(len(d.Steps), "step"))
	}
	if o.Off {
		return fmt.Sprintf("%s %s: nobody but root may upgrade it any more", st.good.Render(st.marks.ok), name)
	}
	return fmt.Sprintf("%s %s may be upgraded by %s", st.good.Render(st.marks.ok), name, clean(who))
}
