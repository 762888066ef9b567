package cmd

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/zdt-dev/zdt/release"
	"github.com/zdt-dev/zdt/unitgen"
)

// initOptions are the flags of zdt init.
type initOptions struct {
	Name        string
	Instances   instancesFlag // of a template
	Exec        string        // the program, or a directory or an archive with it
	Program     string        // its path in there
	SHA256      string
	Signature   string
	Args        []string
	Listen      []string
	Runtime     string
	Run         []string // flags for zdt run, "--NAME=VALUE"
	ServiceUser string
	DynamicUser bool
	Description string
	Environment []string
	StartProbe  string
	Health      []string
	OnFailure   string

	ReadyTimeout, DrainTimeout, Bake time.Duration

	Zdt    string // path of zdt in ExecReload=; "": of the one that runs
	Start  bool
	DryRun bool
	Force  bool
}

// initDoc is the document of zdt init.
type initDoc struct {
	Schema   string   `json:"schema"`  // zdt.init/1
	Outcome  string   `json:"outcome"` // changed, unchanged, would-change, refused, failed
	ExitCode ExitCode `json:"exit_code"`
	Changed  bool     `json:"changed"`
	DryRun   bool     `json:"dry_run,omitempty"`
	TxID     string   `json:"txid,omitempty"` // of the import in the history
	Service  string   `json:"service"`
	// Services are those that the command is about, of a template its instances.
	Services []string `json:"services,omitempty"`

	Files   []initFile     `json:"files"` // that differ
	Release *releaseStatus `json:"release,omitempty"`
	Steps   []string       `json:"steps"` // what is done, or would be, in order
	Notes   []note         `json:"notes,omitempty"`
	Error   string         `json:"error,omitempty"`
	Hint    string         `json:"hint,omitempty"`
}

// initFile is a unit file that init changes.
type initFile struct {
	Path   string             `json:"path"`
	Change unitgen.ChangeKind `json:"change"`
	Before string             `json:"before,omitempty"` // generated, edited, hand-made
	Diff   string             `json:"diff"`
}

func newInitCmd(f *factory) *cobra.Command {
	var o initOptions
	cmd := &cobra.Command{
		Use:   "init NAME --exec FILE [FLAGS] [-- ARGS]",
		Short: "Make a service: units, release store, first release",
		Long: `Make a service that zdt can upgrade: write NAME.service and its socket units,
import FILE as the first release, enable the units and with --start start them.
FILE is a program, a directory or a .tar or .tar.gz of one, as for zdt upgrade;
its program is then the one called NAME, or what --program says.

The flags describe the whole service. Running the same command again changes
nothing; with other flags init shows what differs and rewrites the units. It
never overwrites a unit that a person wrote or edited, and never deploys: once
there is a release, zdt upgrade replaces it.

With --runtime helper the program needs no library: zdt run starts it, holds its
sockets, and hands over to a new process group. --pass, --ready, --stop-signal
and their like say how it learns of its sockets, when it is ready and how it
ends. They are flags of zdt run, and stand in ExecStart=.

NAME@ is a template, from which systemd makes one service for each of
--instances. %i stands for the instance in addresses, URLs, arguments and
variables. Each instance has releases and a history of its own, and zdt upgrade
NAME@ rolls through them.

--service-user names the account the service runs as; the global --user means
the user manager, as it does for systemctl.`,
		Example: `  zdt init web --exec ./web --listen :8080 --dynamic-user --start
  zdt init web --exec ./web --listen 443=https --listen 127.0.0.1:9090=admin \
      --health http://127.0.0.1:9090/healthz --bake 1m -- -config /etc/web.toml
  zdt init shop --exec shop-2.1.tar.gz --program bin/server --listen :8000
  zdt init dns --exec ./dns --listen udp::53 --listen :53 --dry-run
  zdt init shop --runtime helper --exec ./shop.py --listen :8000=http \
      --ready http://127.0.0.1:8000/healthz -- --fd {fd:http}
  zdt init web@ --exec ./web --instances 1-3 --listen :808%i=http --start`,
		Args: initArguments,
		ValidArgsFunction: func(cmd *cobra.Command, args []string, toComplete string) ([]cobra.Completion, cobra.ShellCompDirective) {
			return nil, cobra.ShellCompDirectiveNoFileComp
		},
	}
	flags := cmd.Flags()
	flags.StringVar(&o.Exec, "exec", "", "the first release: a `FILE`, the program or a directory or tar with it")
	flags.StringVar(&o.Program, "program", "", "the program in a directory or tar, a `PATH` in it (default: the file called NAME)")
	flags.StringVar(&o.SHA256, "sha256", "", "refuse a FILE with a checksum other than `HEX`")
	flags.StringVar(&o.Signature, "signature", "", "the detached signature of FILE, a `FILE`")
	flags.StringArrayVar(&o.Listen, "listen", nil, "a socket: `SOCKET` is [PROTO:]ADDR[=FDNAME], PROTO tcp, udp, unix, unixgram or unixpacket (repeat)")
	flags.Var(&o.Instances, "instances", "of a template NAME@: the instances, such as 1-3 or blue,green (default: those that are there)")
	flags.BoolVar(&o.DynamicUser, "dynamic-user", false, "run as a user that exists only while the service runs")
	flags.StringVar(&o.ServiceUser, "service-user", "", "run as the existing account `U` (default: root)")
	flags.StringArrayVar(&o.Health, "health", nil, "a `URL` that has to answer with 2xx before an upgrade is good (repeat)")
	flags.Var((*durationFlag)(&o.ReadyTimeout), "ready-timeout", "time for the program to get ready (default: 30s)")
	flags.Var((*durationFlag)(&o.DrainTimeout), "drain-timeout", "time for requests to finish when a program ends (default: 30s)")
	flags.Var((*durationFlag)(&o.Bake), "bake", "probation of a new program before it takes over (default: none)")
	flags.StringVar(&o.OnFailure, "on-failure", "", "when a new program fails: `WHAT` is rollback (default) or freeze")
	flags.StringVar(&o.Runtime, "runtime", "", "who hands over: `WHO` is library, the program itself (default), or helper, zdt run for a program of any kind")
	addRunFlags(flags)
	flags.StringArrayVar(&o.Environment, "env", nil, "a variable for the program: `KEY=VALUE` (repeat)")
	flags.StringVar(&o.StartProbe, "start-probe", "", "a shell `COMMAND` that has to succeed before each start by systemd")
	flags.StringVar(&o.Description, "description", "", "a `TEXT` for systemctl status")
	flags.StringVar(&o.Zdt, "zdt", "", "zdt as the unit runs it, a `FILE` (default: this program)")
	flags.BoolVar(&o.Start, "start", false, "start the sockets and the service")
	flags.BoolVar(&o.DryRun, "dry-run", false, "show what would change, and change nothing")
	flags.BoolVar(&o.Force, "force", false, "overwrite units that a person wrote or edited; copies are kept")
	cmd.RegisterFlagCompletionFunc("runtime", cobra.FixedCompletions([]string{"library", "helper"}, cobra.ShellCompDirectiveNoFileComp))
	cmd.RegisterFlagCompletionFunc("on-failure", cobra.FixedCompletions([]string{"rollback", "freeze"}, cobra.ShellCompDirectiveNoFileComp))

	return f.command(cmd, func(ctx context.Context, args []string) error {
		var err error
		if o.Name, err = templateName(args[0]); err != nil {
			return err
		}
		o.Args = args[1:]
		if o.Run, err = runFlags(cmd.Flags(), o.Runtime); err != nil {
			return err
		}
		if o.Exec == "" {
			return usage("give the program with --exec FILE", "init: --exec is missing")
		}
		return runInit(ctx, f, o)
	}, ExitOK, ExitUnexpected, ExitRefused, ExitNotRestored, ExitUsage, ExitUnavailable, ExitBusy, ExitNotAuthorised, ExitInt, ExitTerm)
}

// initArguments takes one NAME, and anything behind "--".
func initArguments(cmd *cobra.Command, args []string) error {
	own := len(args)
	if dash := cmd.ArgsLenAtDash(); dash >= 0 {
		own = dash
	}
	switch {
	case own == 0:
		return usage("usage: "+cmd.UseLine(), "init: the NAME of the service is missing")
	case own > 1:
		return usage(`arguments of the program come behind "--"`, "init: unexpected argument %q", args[1])
	}
	return nil
}

// spec is what the flags say, without what this host says.
func (o initOptions) spec(p Paths, user bool) (unitgen.Spec, error) {
	s := unitgen.Spec{
		Name: o.Name, Description: o.Description, Exec: programName(o.Name, o.Exec), Args: o.Args, Environment: o.Environment,
		StateDir: p.StateDir(o.Name), UnitDir: p.Units, Zdt: o.Zdt,
		Runtime: unitgen.Runtime(o.Runtime), Run: o.Run, User: o.ServiceUser, DynamicUser: o.DynamicUser,
		Health: o.Health, ReadyTimeout: o.ReadyTimeout, DrainTimeout: o.DrainTimeout, Bake: o.Bake,
		OnFailure: unitgen.OnFailure(o.OnFailure), UserManager: user,
	}
	if o.StartProbe != "" {
		s.StartProbe = []string{"/bin/sh", "-c", o.StartProbe}
	}
	var errs []error
	parse := unitgen.ParseListen
	if s.Template() {
		parse, s.StateDir = unitgen.ParseTemplateListen, p.StateDir(o.Name+"%i")
	}
	for _, text := range o.Listen {
		l, err := parse(text)
		errs = append(errs, err)
		s.Listen = append(s.Listen, l)
	}
	return s, errors.Join(errs...)
}

// programName is what the program is called in every release. A file called
// after the service and its version (web-1.4.3, hello_linux_amd64) becomes just
// the service's name: the version would be wrong from the second release on.
//
// Of a directory or an archive it is called as the file in it, whose path is given, or else as the service.
func programName(service, file string) string {
	base := filepath.Base(file)
	service = strings.TrimSuffix(service, "@")
	if rest, ok := strings.CutPrefix(base, service); ok && rest != "" && strings.ContainsRune("-_.", rune(rest[0])) {
		return service
	}
	return base
}

func runInit(ctx context.Context, f *factory, o initOptions) error {
	doc := initDoc{Schema: "zdt.init/1", DryRun: o.DryRun, Service: o.Name, Files: []initFile{}, Steps: []string{}}
	plan, err := f.planInit(ctx, o)
	if plan != nil {
		defer plan.close()
		doc.fill(plan)
	}
	switch {
	case err != nil && (plan == nil || !plan.complete):
		return err
	case err != nil:
		doc.Outcome = "refused"
	case !plan.pending():
		doc.Outcome = "unchanged"
	case o.DryRun:
		doc.Outcome = "would-change"
	}
	if f.globals.output == outputText {
		f.showPlan(plan, err != nil, o.DryRun)
	}
	if doc.Outcome == "" {
		doc.Outcome = "changed"
		if err = plan.apply(ctx, f); err != nil {
			doc.Outcome = "failed"
		}
		doc.Changed, doc.Release, doc.TxID = plan.changed, plan.current, plan.txid
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
	_, err = fmt.Fprintln(f.Out, initLine(f.outStyle(), o, doc, plan))
	return err
}

// initLine is the verdict for a person.
func initLine(st style, o initOptions, d initDoc, p *initPlan) string {
	name := st.bold.Render(d.Service)
	switch d.Outcome {
	case "unchanged":
		return fmt.Sprintf("%s %s: nothing to do", st.good.Render(st.marks.ok), name)
	case "would-change":
		return fmt.Sprintf("%s %s: %s to do; nothing was changed (--dry-run)", st.note.Render(st.marks.todo), name, plural(len(d.Steps), "step"))
	}
	state := "not started (--start, or systemctl start " + strings.Join(p.instantiated(p.spec.ServiceUnit()), " ") + ")"
	if p.running || o.Start {
		state = "running"
	}
	if p.offline {
		state = "written below " + p.paths.Root
	}
	rel := "no release"
	if p.current != nil {
		rel = "release " + cmp.Or(shortID(p.current.ID), "?")
	}
	dot := " " + st.dim.Render(st.marks.dot) + " "
	return st.good.Render(st.marks.ok) + " " + strings.Join([]string{name + " is set up", rel, state}, dot)
}

func (d *initDoc) fill(p *initPlan) {
	for _, c := range p.changes {
		file := initFile{Path: c.Path, Change: c.Kind, Diff: c.Text}
		if c.Kind != unitgen.Create {
			file.Before = c.Before.String()
		}
		d.Files = append(d.Files, file)
	}
	for _, s := range p.steps() {
		d.Steps = append(d.Steps, s.title)
	}
	d.Release, d.Notes = p.current, p.notes
	if p.spec.Template() {
		d.Services = p.services
	}
}

// showPlan tells what differs: the whole difference where somebody has to look
// at it, else the names. In a dry run and in a refusal the difference is the
// data, and goes to stdout.
func (f *factory) showPlan(p *initPlan, refused, dryRun bool) {
	for _, c := range p.changes {
		switch {
		case refused || dryRun:
			fmt.Fprint(f.Out, colorDiff(f.outStyle(), c.Text))
		case c.Kind != unitgen.Create && !f.globals.quiet:
			fmt.Fprint(f.Err, colorDiff(f.errStyle(), c.Text))
		}
	}
	st := f.errStyle()
	for _, n := range p.notes {
		f.say("%s %s", st.warn.Render("note:"), clean(n.Text))
		if n.Next != "" {
			f.say("      %s", clean(n.Next))
		}
	}
	if dryRun && !refused {
		for _, s := range p.steps() {
			f.say("%s would %s", st.dim.Render(st.marks.todo), clean(s.title))
		}
	}
}

// colorDiff paints a unified diff and neutralises what a hand-made unit may hold.
func colorDiff(st style, text string) string {
	var b strings.Builder
	for line := range strings.Lines(text) {
		line = clean(strings.TrimSuffix(line, "\n"))
		switch {
		case strings.HasPrefix(line, "+++"), strings.HasPrefix(line, "---"):
			line = st.bold.Render(line)
		case strings.HasPrefix(line, "+"):
			line = st.good.Render(line)
		case strings.HasPrefix(line, "-"):
			line = st.bad.Render(line)
		case strings.HasPrefix(line, "@@"):
			line = st.note.Render(line)
		}
		b.WriteString(line + "\n")
	}
	return b.String()
}

// importEntry is the line of history that an import leaves.
func importEntry(txid string, r release.Release, begun, ended time.Time) release.Entry {
	return release.Entry{
		TxID: txid, Kind: release.KindInit, To: r.ID, Committed: true, Outcome: "imported",
		Started: begun, Ended: ended, Who: release.Identify(),
	}
}
