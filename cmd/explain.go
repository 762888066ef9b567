package cmd

import (
	"context"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/zdt-dev/zdt/handoffcheck"
)

// explainDoc is the document of zdt explain.
type explainDoc struct {
	Schema   string               `json:"schema"`  // zdt.explain/1
	Outcome  string               `json:"outcome"` // explained
	ExitCode ExitCode             `json:"exit_code"`
	Changed  bool                 `json:"changed"` // always false
	Checks   []handoffcheck.Check `json:"checks"`
}

func newExplainCmd(f *factory) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "explain [ID]",
		Short: "Say more about a finding of zdt check",
		Long: `Say how a finding of zdt check comes about, what one sees of it, and what to
think of when mending it. Without an ID it lists all that zdt check knows.`,
		Example: `  zdt explain ZDT004
  zdt explain`,
		Args: arguments(0, 1, ""),
		ValidArgsFunction: func(_ *cobra.Command, args []string, _ string) ([]cobra.Completion, cobra.ShellCompDirective) {
			if len(args) > 0 {
				return nil, cobra.ShellCompDirectiveNoFileComp
			}
			var all []cobra.Completion
			for _, c := range handoffcheck.Catalog() {
				all = append(all, cobra.CompletionWithDesc(c.ID, c.Title))
			}
			return all, cobra.ShellCompDirectiveNoFileComp
		},
	}
	return f.command(cmd, func(_ context.Context, args []string) error {
		doc := explainDoc{Schema: "zdt.explain/1", Outcome: "explained", Checks: handoffcheck.Catalog()}
		if len(args) == 1 {
			c, ok := handoffcheck.Find(args[0])
			if !ok {
				return usage(f.zdt()+" explain lists them", "explain: there is no finding %q", clean(args[0]))
			}
			doc.Checks = []handoffcheck.Check{c}
		}
		if f.globals.output != outputText {
			return f.print(doc)
		}
		text := explainText
		if len(args) == 0 {
			text = catalogText
		}
		_, err := fmt.Fprint(f.Out, text(f.outStyle(), doc.Checks))
		return err
	}, ExitOK, ExitUsage)
}

func explainText(st style, checks []handoffcheck.Check) string {
	var b strings.Builder
	for _, c := range checks {
		fmt.Fprintf(&b, "%s (%s): %s\n\n", st.bold.Render(c.ID), c.Severity, c.Title)
		for _, paragraph := range append([]string{strings.ToUpper(c.Why[:1]) + c.Why[1:] + "."}, strings.Split(c.More, "\n\n")...) {
			for _, line := range wrapWords(strings.Join(strings.Fields(paragraph), " "), pageWidth) {
				fmt.Fprintln(&b, line)
			}
			if paragraph != "" {
				fmt.Fprintln(&b)
			}
		}
	}
	return strings.TrimRight(b.String(), "\n") + "\n"
}

func catalogText(_ style, checks []handoffcheck.Check) string {
	var b strings.Builder
	for _, c := range checks {
		fmt.Fprintf(&b, "%s  %-7s  %s\n", c.ID, c.Severity, c.Title)
	}
	return b.String()
}
