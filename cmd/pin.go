package cmd

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/zdt-dev/zdt/release"
)

// pinDoc is the document of zdt pin.
type pinDoc struct {
	Schema   string     `json:"schema"`  // zdt.pin/1
	Outcome  string     `json:"outcome"` // pinned, free
	ExitCode ExitCode   `json:"exit_code"`
	Changed  bool       `json:"changed"`
	Service  string     `json:"service"`
	Release  releaseDoc `json:"release"`
}

func newPinCmd(f *factory) *cobra.Command {
	var why string
	var off bool
	cmd := &cobra.Command{
		Use:   "pin NAME RELEASE [-m TEXT] [--off]",
		Short: "Keep a release from being deleted",
		Long: `Keep a release from being deleted by zdt prune until the pin is taken away.
RELEASE is its ID, or how that or its checksum begins; zdt releases shows them.`,
		Example: `  zdt pin web 4f2a91c0d37b -m "last one before the migration"
  zdt pin web 4f2a91c0d37b --off`,
		Args: arguments(2, 2, "the NAME of the service or the RELEASE"),
		ValidArgsFunction: func(cmd *cobra.Command, args []string, toComplete string) ([]cobra.Completion, cobra.ShellCompDirective) {
			if len(args) == 1 {
				return f.completeReleases(args, toComplete), cobra.ShellCompDirectiveNoFileComp
			}
			return f.completeServices(1)(cmd, args, toComplete)
		},
	}
	cmd.Flags().StringVarP(&why, "message", "m", "", "why: a `TEXT` for whoever looks for space")
	cmd.Flags().BoolVar(&off, "off", false, "take the pin away")
	return f.command(cmd, func(ctx context.Context, args []string) error {
		name, err := serviceName(args[0])
		if err != nil {
			return err
		}
		if off && why != "" {
			return usage("", "pin: --off and -m exclude each other")
		}
		return runPin(ctx, f, name, args[1], why, off)
	}, ExitOK, ExitUnexpected, ExitNoService, ExitRefused, ExitUsage, ExitNotAuthorised)
}

func runPin(ctx context.Context, f *factory, name, ref, why string, off bool) error {
	store, err := f.openReleases(name)
	if err != nil {
		return err
	}
	defer store.Close()
	r, err := store.Find(ref)
	if err != nil && r.ID == "" { // a damaged one can be kept as evidence
		return refused(err)
	}
	doc := pinDoc{Schema: "zdt.pin/1", Outcome: "pinned", Service: name, Changed: true}
	st := f.outStyle()
	text := fmt.Sprintf("%s %s: release %s is kept until zdt pin --off", st.good.Render(st.marks.ok), st.bold.Render(name), shortID(r.ID))
	if off {
		doc.Outcome = "free"
		doc.Changed, err = store.Unpin(ctx, r.ID)
		text = fmt.Sprintf("%s %s: release %s can be deleted", st.good.Render(st.marks.ok), st.bold.Render(name), shortID(r.ID))
	} else {
		err = store.Pin(ctx, r.ID, release.Pinned{At: f.now().UTC(), Who: release.Identify(), Why: why})
	}
	if err != nil {
		return refused(err)
	}
	if f.globals.output == outputText {
		_, err = fmt.Fprintln(f.Out, text)
		return err
	}
	r, _ = store.Get(r.ID)
	doc.Release = describeStaged(r, "")
	return f.print(doc)
}
