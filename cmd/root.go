// Package cmd is zdt's command line: one file a command, rendering and exit
// codes.
//
// The rules of what zdt prints:
//
//   - Data goes to stdout, narration to stderr. With -o json stdout has exactly
//     one document, also when the command fails; with -o ndjson one document a line.
//   - An error is "zdt: CAUSE", then details, indented, then "hint: " and what
//     to do next, a command to copy where there is one. Lower case, no full stop.
//   - What a service, a journal or a file may have chosen goes through clean.
//   - A colour never says what no mark or word says.
//
// A command is a function that builds it from a factory, an options struct, and
// a run function that knows nothing of cobra. Only Main turns errors into exit codes.
package cmd

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"slices"
	"strings"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/zdt-dev/zdt/helper"
)

// Main runs zdt with args (without the program's name) and returns its exit code.
func Main(args []string) int {
	helper.CheckState(args)
	helper.Shim(args) // does not come back in the process that zdt run starts a program with
	f := newFactory(SystemStreams())
	ctx, stop := signalContext(context.Background())
	defer stop()
	return int(execute(ctx, f, args))
}

// signalContext ends with the first signal that asks zdt to stop, so that a
// command can clean up. From then on signals have their default effect: a
// second one ends zdt at once.
func signalContext(parent context.Context) (context.Context, context.CancelFunc) {
	// A reader that went away (zdt upgrade web | head -1) must not kill zdt in
	// the middle of an upgrade. Caught and not ignored: ignoring is inherited by
	// the programs zdt starts.
	signal.Notify(make(chan os.Signal, 1), syscall.SIGPIPE)

	ctx, cancel := context.WithCancelCause(parent)
	signals := make(chan os.Signal, 1)
	done := make(chan struct{})
	signal.Notify(signals, syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP)
	go func() {
		defer close(done)
		select {
		case s := <-signals:
			signal.Stop(signals)
			cancel(signalled{s.(syscall.Signal)})
		case <-ctx.Done():
			signal.Stop(signals)
		}
	}()
	return ctx, func() { cancel(nil); <-done }
}

// execute runs one command line and tells how it failed, if it did.
func execute(ctx context.Context, f *factory, args []string) ExitCode {
	root := newRootCmd(f)
	f.args = args
	root.SetArgs(args)
	root.SetIn(f.In)
	root.SetOut(f.Out)
	root.SetErr(f.Err)
	cmd, err := root.ExecuteContextC(ctx)
	if err == nil {
		return ExitOK
	}
	if cause := context.Cause(ctx); cause != nil && errors.Is(err, context.Canceled) {
		err = cause
	}
	var failure *Failure
	if !errors.As(err, &failure) && !f.ran {
		err = usage(cmd.CommandPath()+" --help shows how", "%w", err)
	}
	f.tell(err)
	return codeOf(err)
}

func newRootCmd(f *factory) *cobra.Command {
	g := &f.globals
	root := &cobra.Command{
		Use:   "zdt",
		Short: "Upgrade a service without its clients noticing",
		Long: `zdt upgrades a service on a Linux host without its clients noticing.

systemd supervises the service as ever; zdt makes the running program hand its
sockets to the new one, watches over it, and rolls back when that fails.`,
		Example: `  zdt init web --exec ./web --listen :8080 --dynamic-user --start
  zdt upgrade web --binary ./web-1.4.3
  zdt status web`,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 {
				return nil
			}
			hint := "zdt --help lists the commands"
			if s := cmd.SuggestionsFor(args[0]); len(s) > 0 {
				hint = "did you mean zdt " + strings.Join(s, " or zdt ") + "?"
			}
			return usage(hint, "there is no command %q", args[0])
		},
		RunE: func(cmd *cobra.Command, args []string) error { return cmd.Help() },
		PersistentPreRunE: func(cmd *cobra.Command, args []string) error {
			if g.noColor {
				f.Color = false
			}
			if g.user && g.root != "" {
				return usage("", "--user and --root exclude each other")
			}
			return nil
		},
		SilenceErrors:         true,
		SilenceUsage:          true,
		DisableAutoGenTag:     true,
		CompletionOptions:     cobra.CompletionOptions{DisableDefaultCmd: true},
		DisableFlagsInUseLine: true,

		SuggestionsMinimumDistance: 2,
	}
	flags := root.PersistentFlags()
	flags.SortFlags = false
	flags.VarP(&g.output, "output", "o", "form of the result: text, json or ndjson")
	flags.BoolVar(&g.user, "user", false, "services of your user manager (systemctl --user)")
	flags.BoolVar(&g.noColor, "no-color", false, "no colours (also: NO_COLOR, TERM=dumb)")
	flags.BoolVarP(&g.quiet, "quiet", "q", false, "say nothing but the result and errors")
	flags.BoolP("help", "h", false, "show this help")
	flags.StringVar(&g.root, "root", "", "work on the files of a system below this directory")
	flags.MarkHidden("root")
	root.RegisterFlagCompletionFunc("output", cobra.FixedCompletions([]string{"text", "json", "ndjson"}, cobra.ShellCompDirectiveNoFileComp))
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		return usage(cmd.CommandPath()+" --help shows the flags", "%w", err)
	})
	documentExit(root, ExitOK, ExitUsage)
	root.AddCommand(
		newInitCmd(f),
		newAdoptCmd(f),
		newCheckCmd(f),
		newExplainCmd(f),
		newDoctorCmd(f),
		newBugreportCmd(f),
		newPlanCmd(f),
		newUpgradeCmd(f),
		newRollbackCmd(f),
		newPromoteCmd(f),
		newAbortCmd(f),
		newResumeCmd(f),
		newWaitCmd(f),
		newAttachCmd(f),
		newHoldCmd(f),
		newStatusCmd(f),
		newWatchCmd(f),
		newHistoryCmd(f),
		newStageCmd(f),
		newReleasesCmd(f),
		newPinCmd(f),
		newPruneCmd(f),
		newHandoffCmd(f),
		newProveCmd(f),
		newRehearseCmd(f),
		newOperatorsCmd(f),
		newStopCmd(f),
		newKeepSocketsCmd(f),
		newAcceptCmd(f),
		newRunCmd(f),
		newVersionCmd(f),
		newCompletionCmd(f),
	)
	setHelp(root, f)
	return root
}

// command finishes a command: its code runs as run, and its exit codes are documented.
func (f *factory) command(cmd *cobra.Command, run func(ctx context.Context, args []string) error, codes ...ExitCode) *cobra.Command {
	cmd.DisableFlagsInUseLine = true
	cmd.Flags().SortFlags = false
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		f.ran = true
		return run(cmd.Context(), args)
	}
	documentExit(cmd, codes...)
	return cmd
}

// arguments checks the number of arguments; what names them for the message.
func arguments(least, most int, what string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		hint := "usage: " + cmd.UseLine()
		switch {
		case len(args) < least:
			return usage(hint, "%s: %s is missing", cmd.Name(), what)
		case most >= 0 && len(args) > most:
			return usage(hint, "%s: unexpected argument %q", cmd.Name(), args[most])
		}
		return nil
	}
}

// completeServices completes NAME with the services of this host.
func (f *factory) completeServices(most int) cobra.CompletionFunc {
	return func(cmd *cobra.Command, args []string, toComplete string) ([]cobra.Completion, cobra.ShellCompDirective) {
		if most >= 0 && len(args) >= most {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		p, err := f.paths()
		if err != nil {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		names, _ := p.Services()
		var found []cobra.Completion
		for _, n := range names {
			if strings.HasPrefix(n, toComplete) && !slices.Contains(args, n) {
				found = append(found, n)
			}
		}
		return found, cobra.ShellCompDirectiveNoFileComp
	}
}

// say tells the operator something on the way. -q silences it.
func (f *factory) say(format string, args ...any) {
	if !f.globals.quiet {
		fmt.Fprintf(f.Err, format+"\n", args...)
	}
}
