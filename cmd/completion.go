package cmd

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"
)

func newCompletionCmd(f *factory) *cobra.Command {
	shells := []string{"bash", "zsh", "fish"}
	cmd := &cobra.Command{
		Use:   "completion SHELL",
		Short: "Print the completion script for bash, zsh or fish",
		Long: `Print the script that makes a shell complete zdt's commands, flags and the names
of the services of this host.`,
		Example: `  zdt completion bash > /etc/bash_completion.d/zdt
  zdt completion zsh > "${fpath[1]}/_zdt"
  zdt completion fish > ~/.config/fish/completions/zdt.fish`,
		Args:              arguments(1, 1, "the shell (bash, zsh or fish)"),
		ValidArgsFunction: cobra.FixedCompletions(shells, cobra.ShellCompDirectiveNoFileComp),
	}
	run := func(ctx context.Context, args []string) error {
		root := cmd.Root()
		switch args[0] {
		case "bash":
			return root.GenBashCompletionV2(f.Out, true)
		case "zsh":
			return root.GenZshCompletion(f.Out)
		case "fish":
			return root.GenFishCompletion(f.Out, true)
		}
		return usage("use bash, zsh or fish", "completion: %w", fmt.Errorf("shell %q is not supported", args[0]))
	}
	return f.command(cmd, run, ExitOK, ExitUsage)
}
