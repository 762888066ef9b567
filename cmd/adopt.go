package cmd

import (
	"context"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/zdt-dev/zdt/unitgen"
)

// adoptOptions are the flags of zdt adopt.
type adoptOptions struct {
	Name    string
	Runtime string
	Exec    string   // the file that becomes the first release
	InPlace bool     // there is none: the program stays where it is
	Listen  []string // sockets that the program binds itself
	Socket  bool
	Run     []string
	Health  []string
	Args    []string // nil: those that the unit has

	ReadyTimeout, DrainTimeout, Bake time.Duration

	Zdt     string
	Restart bool
	Undo    bool
	DryRun  bool
	Force   bool
}

// adoptDoc is the document of zdt adopt.
type adoptDoc struct {
	Schema   string   `json:"schema"`  // zdt.adopt/1
	Outcome  string   `json:"outcome"` // changed, unchanged, would-change, refused, rolled-back, failed
	ExitCode ExitCode `json:"exit_code"`
	Changed  bool     `json:"changed"`
	DryRun   bool     `json:"dry_run,omitempty"`
	Undo     bool     `json:"undo,omitempty"`
	Service  string   `json:"service"`

	Runtime string `json:"runtime,omitempty"` // library, helper
	Program string `json:"program,omitempty"` // as ExecStart= has it then
	// Switched: what runs is under zdt.
	Switched bool `json:"switched"`
	// Gap is what the restart costs, in words; "" where there is none to come.
	Gap string `json:"gap,omitempty"`

	Files []initFile `json:"files"` // that differ
	Steps []string   `json:"steps"`
	Notes []note     `json:"notes,omitempty"`
	Error string     `json:"error,omitempty"`
	Hint  string     `json:"hint,omitempty"`
}

func newAdoptCmd(f *factory) *cobra.Command {
	var o adoptOptions
	cmd := &cobra.Command{
		Use:   "adopt UNIT [FLAGS] [-- ARGS]",
		Short: "Bring an existing service under zdt, or give it back",
		Long: `Bring a service that somebody else has written under zdt: a drop-in for the
service, drop-ins for its sockets where they need one, and nothing of the unit
itself. --undo removes exactly that.

A program that links package handoff hands over by itself; any other one runs
under zdt run from then on. Of nginx and gunicorn zdt knows how they learn of
their sockets; for another program --pass or {fd:NAME} in ARGS says it, unless
systemd passes it its sockets already. docs/adopt.md has examples.

A program below /usr stays where it is, and a new version comes with its
package. Any other one is copied and becomes the first release; --exec names
another FILE for that.

What runs goes on until the service is restarted, which --restart does. The
program that holds its port itself is replaced without a client being
refused: systemd keeps its sockets meanwhile. Requests that are under way end as
the program's own stop ends them. If the program does not come up under zdt all
is undone, and the old one is started again.`,
		Example: `  zdt adopt nginx --dry-run
  zdt adopt nginx --restart
  zdt adopt web --exec /opt/web/web --health http://127.0.0.1:8080/healthz
  zdt adopt shop --listen :8000=http --ready http://127.0.0.1:8000/ \
      -- --fd {fd:http}
  zdt adopt nginx --undo --restart`,
		Args: initArguments,
		ValidArgsFunction: func(cmd *cobra.Command, args []string, toComplete string) ([]cobra.Completion, cobra.ShellCompDirective) {
			if len(args) > 0 {
				return nil, cobra.ShellCompDirectiveNoFileComp
			}
			return serviceUnits(), cobra.ShellCompDirectiveNoFileComp
		},
	}
	flags := cmd.Flags()
	flags.BoolVar(&o.Restart, "restart", false, "restart the service: it is what brings it under zdt, or back")
	flags.BoolVar(&o.Undo, "undo", false, "remove what zdt adopt has written")
	flags.StringVar(&o.Runtime, "runtime", "", "who hands over: `WHO` is library, the program itself, or helper, zdt run (default: as the program is built)")
	flags.StringVar(&o.Exec, "exec", "", "the first release: a `FILE` that ExecStart= names (default: its program)")
	flags.BoolVar(&o.InPlace, "in-place", false, "make no release: the program stays where it is")
	flags.StringArrayVar(&o.Listen, "listen", nil, "a socket that the program binds itself: `SOCKET` is [PROTO:]ADDR[=FDNAME] (repeat; default: those that it has)")
	flags.BoolVar(&o.Socket, "socket", false, "write a socket unit as well, which opens the ports from the next boot on")
	addRunFlags(flags)
	flags.StringArrayVar(&o.Health, "health", nil, "a `URL` that has to answer with 2xx before an upgrade is good (repeat)")
	flags.Var((*durationFlag)(&o.ReadyTimeout), "ready-timeout", "time for the program to get ready (default: 30s)")
	flags.Var((*durationFlag)(&o.DrainTimeout), "drain-timeout", "time for requests to finish when a program ends (default: 30s)")
	flags.Var((*durationFlag)(&o.Bake), "bake", "probation of a new program before it takes over (default: none)")
	flags.StringVar(&o.Zdt, "zdt", "", "zdt as the unit runs it, a `FILE` (default: this program)")
	flags.BoolVar(&o.DryRun, "dry-run", false, "show what would change, and change nothing")
	flags.BoolVar(&o.Force, "force", false, "overwrite, or remove, also what somebody has edited; copies are kept")
	cmd.RegisterFlagCompletionFunc("runtime", cobra.FixedCompletions([]string{"library", "helper"}, cobra.ShellCompDirectiveNoFileComp))

	return f.command(cmd, func(ctx context.Context, args []string) error {
		var err error
		if o.Name, err = serviceName(args[0]); err != nil {
			return err
		}
		if f.globals.user || f.globals.root != "" {
			return usage("zdt init makes services of a user manager", "adopt: only for services of the running system")
		}
		if len(args) > 1 {
			o.Args = args[1:]
		}
		// With any of these flags it is zdt run that is meant.
		runtime := o.Runtime
		if runtime == "" {
			runtime = string(unitgen.RuntimeHelper)
		}
		if o.Run, err = runFlags(cmd.Flags(), runtime); err != nil {
			return err
		}
		if len(o.Run) > 0 {
			o.Runtime = runtime
		}
		return runAdopt(ctx, f, o)
	}, ExitOK, ExitUnexpected, ExitNoService, ExitRefused, ExitRolledBack, ExitNotRestored, ExitUsage, ExitUnavailable, ExitBusy, ExitNotAuthorised, ExitInt, ExitTerm)
}

func runAdopt(ctx context.Context, f *factory, o adoptOptions) error {
	doc := adoptDoc{Schema: "zdt.adopt/1", DryRun: o.DryRun, Undo: o.Undo, Service: o.Name, Files: []initFile{}, Steps: []string{}}
	find := f.planAdopt
	if o.Undo {
		find = f.planUndo
	}
	plan, err := find(ctx, o)
	if plan != nil {
		defer plan.close()
		doc.fill(plan)
	}
	switch {
	case err != nil:
		doc.Outcome = "refused"
	case len(plan.steps) == 0:
		doc.Outcome = "unchanged"
	case o.DryRun:
		doc.Outcome = "would-change"
	}
	if f.globals.output == outputText && plan != nil {
		plan.show(f, err != nil, o)
	}
	if doc.Outcome == "" {
		doc.Outcome = "changed"
		if err = plan.apply(ctx, f); err != nil {
			doc.Outcome = "failed"
			if codeOf(err) == ExitRolledBack {
				doc.Outcome = "rolled-back"
			}
		}
		doc.Changed, doc.Switched = plan.changed && doc.Outcome != "rolled-back", plan.switched
	}
	doc.ExitCode = codeOf(err)
	if f.globals.output != outputText {
		if err != nil {
			doc.Error, doc.Hint = err.Error(), hintOf(err)
		}
		return f.printVerdict(doc, err)
	}
	if err != nil {
		return err
	}
	_, err = fmt.Fprintln(f.Out, adoptLine(f.outStyle(), o, doc))
	return err
}

// adoptLine is the verdict for a person.
func adoptLine(st style, o adoptOptions, d adoptDoc) string {
	name, good := st.bold.Render(d.Service), st.good.Render(st.marks.ok)
	switch d.Outcome {
	case "unchanged":
		return good + " " + name + ": nothing to do"
	case "would-change":
		return fmt.Sprintf("%s %s: %s to do; nothing was changed (--dry-run)", st.note.Render(st.marks.todo), name, plural(len(d.Steps), "step"))
	}
	what := []string{name + " is adopted"}
	if o.Undo {
		what = []string{name + " is as it was"}
	}
	switch {
	case o.Undo && d.Switched:
		what = append(what, "runs under zdt until it is restarted (systemctl restart "+d.Service+")")
	case !o.Undo && d.Switched:
		what = append(what, "runs under zdt")
	case !o.Undo:
		what = append(what, "takes effect with the next start (zdt adopt "+d.Service+" --restart)")
	}
	return good + " " + strings.Join(what, " "+st.dim.Render(st.marks.dot)+" ")
}

func (d *adoptDoc) fill(p *adoptPlan) {
	for _, c := range p.changes {
		file := initFile{Path: c.Path, Change: c.Kind, Diff: c.Text}
		d.Files = append(d.Files, file)
	}
	for _, s := range p.steps {
		d.Steps = append(d.Steps, s.title)
	}
	d.Runtime, d.Program, d.Notes, d.Gap, d.Switched = string(p.adoption.Runtime), p.program, p.notes, p.gap, p.switched
}

// serviceUnits are the services that there are files of, for completion.
func serviceUnits() (names []cobra.Completion) {
	for _, dir := range []string{"/etc/systemd/system", "/usr/local/lib/systemd/system", "/usr/lib/systemd/system", "/lib/systemd/system"} {
		found, err := filepath.Glob(filepath.Join(dir, "*.service"))
		if err != nil {
			continue
		}
		for _, path := range found {
			if name := strings.TrimSuffix(filepath.Base(path), ".service"); !strings.Contains(name, "@") {
				names = append(names, name)
			}
		}
	}
	slices.Sort(names)
	return slices.Compact(names)
}
