package cmd

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/spf13/cobra"
)

// annotationExit is where a command keeps its exit codes for --help.
const annotationExit = "zdt:exit"

// documentExit notes which codes a command can end with.
func documentExit(cmd *cobra.Command, codes ...ExitCode) {
	if cmd.Annotations == nil {
		cmd.Annotations = make(map[string]string)
	}
	words := make([]string, len(codes))
	for i, c := range codes {
		words[i] = strconv.Itoa(int(c))
	}
	cmd.Annotations[annotationExit] = strings.Join(words, " ")
}

// setHelp gives the whole tree one form of help.
func setHelp(root *cobra.Command, f *factory) {
	root.SetHelpFunc(func(cmd *cobra.Command, args []string) {
		fmt.Fprint(f.Out, helpText(cmd, f.outStyle()))
	})
	root.SetUsageFunc(func(cmd *cobra.Command) error {
		fmt.Fprintf(f.Err, "usage: %s\n", cmd.UseLine())
		return nil
	})
	root.SetHelpCommand(&cobra.Command{
		Use:               "help [COMMAND]",
		Short:             "Show the help of a command",
		Example:           "  zdt help upgrade",
		ValidArgsFunction: completeCommands,
		Args:              cobra.ArbitraryArgs,
		RunE: func(cmd *cobra.Command, args []string) error {
			found, rest, err := cmd.Root().Find(args)
			if err != nil || len(rest) > 0 {
				return usage("zdt --help lists the commands", "there is no command %q", strings.Join(args, " "))
			}
			return found.Help()
		},
		Annotations: map[string]string{annotationExit: "0 64"},
	})
}

func completeCommands(cmd *cobra.Command, args []string, toComplete string) ([]cobra.Completion, cobra.ShellCompDirective) {
	var names []cobra.Completion
	for _, c := range cmd.Root().Commands() {
		if c.IsAvailableCommand() && strings.HasPrefix(c.Name(), toComplete) && len(args) == 0 {
			names = append(names, c.Name())
		}
	}
	return names, cobra.ShellCompDirectiveNoFileComp
}

// helpText is the help of one command. Nothing in it is wider than 80 columns
// unless a line of the command's own text is.
func helpText(cmd *cobra.Command, st style) string {
	var b strings.Builder
	section := func(title string) { fmt.Fprintf(&b, "\n%s\n", st.bold.Render(title)) }

	text := cmd.Long
	if text == "" {
		text = cmd.Short + "."
	}
	b.WriteString(strings.TrimSpace(text) + "\n")
	section("USAGE")
	if cmd.HasAvailableSubCommands() {
		fmt.Fprintf(&b, "  %s COMMAND [FLAGS]\n", cmd.CommandPath())
		section("COMMANDS")
		for _, c := range cmd.Commands() {
			if c.IsAvailableCommand() || c.Name() == "help" {
				fmt.Fprintf(&b, "  %-12s%s\n", c.Name(), c.Short)
			}
		}
	} else {
		fmt.Fprintf(&b, "  %s\n", cmd.UseLine())
	}
	if own := cmd.LocalNonPersistentFlags(); own.HasAvailableFlags() {
		own.SortFlags = false
		section("FLAGS")
		b.WriteString(own.FlagUsagesWrapped(80))
	}
	global := cmd.InheritedFlags()
	if !cmd.HasParent() {
		global = cmd.PersistentFlags()
	}
	global.SortFlags = false
	if global.HasAvailableFlags() {
		section("GLOBAL FLAGS")
		b.WriteString(global.FlagUsagesWrapped(80))
	}
	if cmd.Example != "" {
		section("EXAMPLES")
		b.WriteString(strings.TrimRight(cmd.Example, "\n") + "\n")
	}
	section("EXIT STATUS")
	for _, word := range strings.Fields(cmd.Annotations[annotationExit]) {
		n, _ := strconv.Atoi(word)
		fmt.Fprintf(&b, "  %3d  %s\n", n, ExitCode(n).meaning())
	}
	return b.String()
}
