package cmd

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/zdt-dev/zdt/dbusctl"
	"github.com/zdt-dev/zdt/internal/health"
	"github.com/zdt-dev/zdt/journal"
	"github.com/zdt-dev/zdt/rehearse"
	"github.com/zdt-dev/zdt/release"
	"github.com/zdt-dev/zdt/unitgen"
)

// rehearseOptions are the flags of zdt rehearse.
type rehearseOptions struct {
	Service      string
	Binary       string
	Release      string
	Gates        []string // in addition to those of the unit
	ReadyTimeout *time.Duration
	Wait         time.Duration
}

func newRehearseCmd(f *factory) *cobra.Command {
	var o rehearseOptions
	cmd := &cobra.Command{
		Use:   "rehearse NAME (--binary FILE | --release ID) [FLAGS]",
		Short: "Try a new program beside the service, without touching it",
		Long: `Start a new program beside the service: in a unit of its own with the service's
sandbox, user and environment, and with private sockets of the same names and
addresses. It has to become ready, accept connections, pass the gates,
and end well on SIGTERM. The service notices nothing, and no client sees it.

The directories of the service that last (StateDirectory= and its kin) are the
same: a program that changes its data when it starts changes them. Rehearse=no
in [X-Zdt] of the unit is for those. zdt upgrade rehearses by itself otherwise.

FILE becomes a release in the store; zdt upgrade --release ID uses it then.`,
		Example: `  zdt rehearse web --binary ./web-1.4.3
  zdt rehearse web --release 20261122T1010 -o json`,
		Args:              arguments(1, 1, "the NAME of the service"),
		ValidArgsFunction: f.completeServices(1),
	}
	flags := cmd.Flags()
	flags.StringVar(&o.Binary, "binary", "", "the new program: a `FILE`")
	flags.StringVar(&o.Release, "release", "", "a release that is in the store: its `ID` or how that begins")
	flags.Var(maybeDuration{&o.ReadyTimeout}, "ready-timeout", "time for the program to get ready (default: the unit's)")
	flags.StringArrayVar(&o.Gates, "gate", nil, "a `CHECK` that the program has to pass, beside those of the unit: http://..., tcp:..., exec:... (repeat)")
	flags.Var((*waitFlag)(&o.Wait), "wait", "wait for an upgrade of the service to end, at most D")
	flags.Lookup("wait").NoOptDefVal = "forever"
	return f.command(cmd, func(ctx context.Context, args []string) error {
		var err error
		if o.Service, err = serviceName(args[0]); err != nil {
			return err
		}
		if (o.Binary == "") == (o.Release == "") {
			return usage(cmd.CommandPath()+" --help shows how", "rehearse: give --binary FILE or --release ID")
		}
		return runRehearse(ctx, f, o)
	}, ExitOK, ExitRefused, ExitUsage, ExitUnavailable, ExitBusy, ExitNotAuthorised, ExitInt, ExitTerm)
}

func runRehearse(ctx context.Context, f *factory, o rehearseOptions) error {
	s, err := f.openSite(ctx, o.Service)
	if err != nil {
		return err
	}
	defer s.close()
	gates, err := parseGates(s.policy, gatesOf(o.Service, o.Gates))
	if err != nil {
		return err
	}
	txid, err := release.NewTxID()
	if err != nil {
		return err
	}
	who := release.Identify()
	lock, err := release.Acquire(ctx, s.paths.Lock(o.Service), release.Holder{TxID: txid, Phase: release.PhaseRehearse, Since: f.now(), Who: who}, o.Wait)
	if err != nil {
		return err
	}
	defer lock.Release()
	rel, err := s.candidate(ctx, o)
	if err != nil {
		return refused(err)
	}
	result, err := s.rehearse(ctx, rehearsal{release: rel, txid: txid, gates: gates, readyTimeout: given(o.ReadyTimeout, s.policy.ReadyTimeout)},
		func(text string) { f.say("%s", f.errStyle().note.Render(clean(text))) })
	var impossible *rehearse.Impossible
	if errors.As(err, &impossible) {
		result.Outcome, result.Cause, result.Hint = rehearse.NotPlayed, impossible.Error(), impossible.Fix
		err = nil
	}
	if err != nil {
		return err
	}
	result.Who = &who
	return f.concludeRehearsal(result)
}

// candidate is the release that is to be rehearsed.
func (s *site) candidate(ctx context.Context, o rehearseOptions) (release.Release, error) {
	options, err := s.f.stageOptions(s.policy, sourceOptions{Binary: o.Binary})
	if err != nil {
		return release.Release{}, err
	}
	if o.Release != "" {
		r, err := s.store.Find(o.Release)
		if err == nil {
			err = s.store.Verify(ctx, r)
		}
		if err == nil {
			err = options.Keys.Believe(r, options.Require)
		}
		return r, err
	}
	if err := s.blockers(ctx, o.Binary); err != nil {
		return release.Release{}, err
	}
	return s.store.Stage(ctx, o.Binary, options)
}

// concludeRehearsal prints a result and makes it an exit code.
func (f *factory) concludeRehearsal(r rehearse.Result) error {
	code := ExitOK
	if r.Outcome != rehearse.Passed {
		code = ExitRefused
	}
	r.ExitCode = int(code)
	if f.globals.output != outputText {
		if err := f.print(r); err != nil {
			return err
		}
	}
	st := f.errStyle()
	for _, skipped := range r.Skipped {
		f.say("%s gate %s was not asked: %s", st.note.Render("note:"), clean(skipped.Gate), clean(skipped.Why))
	}
	for _, d := range r.Differences {
		f.say("%s %s", st.note.Render("note:"), clean(d))
	}
	for _, w := range r.Warnings {
		f.say("%s %s", st.warn.Render("warning:"), clean(w))
	}
	if r.Outcome == rehearse.Passed {
		f.say("%s %s: the rehearsal of %s passed: %s", st.good.Render(st.marks.ok), st.bold.Render(clean(r.Service)), r.Release, r.Summary())
		f.say("%s %s", st.note.Render("next:"), f.zdt()+" upgrade "+r.Service+" --release "+shortID(r.Release))
		return nil
	}
	failure := &Failure{Code: code, Err: errors.New(r.Cause), Hint: r.Hint}
	if r.Outcome == rehearse.Failed {
		failure.Err = fmt.Errorf("the rehearsal of %s failed: %s", r.Release, r.Cause)
	}
	if r.LogCut > 0 {
		failure.Details = append(failure.Details, fmt.Sprintf("(%d lines before)", r.LogCut))
	}
	failure.Details = append(failure.Details, r.Log...)
	f.tellText(failure)
	failure.Told = true
	return failure
}

// rehearsal is one that is asked for.
type rehearsal struct {
	release      release.Release
	txid         string
	readyTimeout time.Duration
	gates        []health.Gate
}

// rehearser is what a rehearsal asks of systemd besides the rest. *dbusctl.Manager is one.
type rehearser interface {
	Settings(ctx context.Context, name string) (map[string]string, error)
	Pin(ctx context.Context, name string) error
	Forget(ctx context.Context, name string) error
	ResetFailed(ctx context.Context, name string) error
}

// rehearse plays a rehearsal. The caller holds the service's lock.
func (s *site) rehearse(ctx context.Context, q rehearsal, tell func(string)) (rehearse.Result, error) {
	h, err := s.rehearsalHost(ctx)
	if err != nil {
		return rehearse.Result{}, err
	}
	options := s.rehearseOptions(q)
	swept, err := h.Sweep(ctx, s.service, options.UnitDir)
	if err != nil {
		return rehearse.Result{}, fmt.Errorf("end a rehearsal that was left: %w", err)
	}
	for _, unit := range swept {
		tell("ended " + unit + ", which another zdt has left")
	}
	service, err := s.rehearsed(ctx)
	if err != nil {
		return rehearse.Result{}, err
	}
	return h.Rehearse(ctx, service, options, tell)
}

// foresee says how long a rehearsal would take at most, or why it would not be played, as far as that can be told.
func (s *site) foresee(ctx context.Context, q rehearsal) (time.Duration, error) {
	service, err := s.rehearsed(ctx)
	if err != nil {
		return 0, err
	}
	return rehearse.Foresee(service, s.rehearseOptions(q))
}

func (s *site) rehearseOptions(q rehearsal) rehearse.Options {
	return rehearse.Options{
		Release: q.release, TxID: q.txid, Current: filepath.Dir(s.store.CurrentPath()), User: s.f.globals.user,
		ReadyTimeout: q.readyTimeout, Gates: q.gates, UnitDir: filepath.Dir(filepath.Dir(s.reclaimPath())), RunDir: filepath.Dir(s.paths.Runtime),
	}
}

func (s *site) rehearsalHost(ctx context.Context) (rehearse.Host, error) {
	sd, err := s.bus(ctx)
	if err != nil {
		return rehearse.Host{}, err
	}
	more, ok := sd.(rehearser)
	if !ok {
		return rehearse.Host{}, errors.New("this systemd knows no rehearsal")
	}
	return rehearse.Host{
		Unit: sd.Unit, Settings: more.Settings, Pin: more.Pin, Forget: more.Forget,
		Watch: sd.Watch, Start: sd.Start, Stop: sd.Stop, ResetFailed: more.ResetFailed, Now: s.f.now,
		Kill: func(ctx context.Context, name string) error { return sd.Signal(ctx, name, syscall.SIGKILL) },
		Log: func(ctx context.Context, unit string) ([]string, int) {
			const shown = 20
			got, _ := journal.Tail(ctx, journal.Query{Source: journal.Source{Unit: unit, User: s.f.globals.user, UID: s.f.euid}, Lines: 200, Command: s.f.journalctl})
			var lines []string
			for _, l := range got {
				if l.PID != 1 { // what systemd says of it is in the cause
					lines = append(lines, l.Text)
				}
			}
			cut := max(0, len(lines)-shown)
			return lines[cut:], cut
		},
	}, nil
}

// rehearsed is what a rehearsal has to know of the service.
func (s *site) rehearsed(ctx context.Context) (rehearse.Service, error) {
	out := rehearse.Service{Name: s.service, Policy: s.policy}
	var err error
	if out.Facts, err = s.ask(ctx); err != nil {
		return out, err
	}
	if out.Files, err = filesOf(out.Facts); err != nil {
		return out, err
	}
	sd, err := s.bus(ctx)
	if err != nil {
		return out, err
	}
	for _, name := range out.Facts.TriggeredBy {
		if !strings.HasSuffix(name, ".socket") {
			continue
		}
		u := rehearse.SocketUnit{}
		if u.Facts, err = sd.Unit(ctx, name); errors.Is(err, dbusctl.ErrNoUnit) {
			continue
		} else if err != nil {
			return out, err
		}
		if u.Files, err = filesOf(u.Facts); err != nil {
			return out, err
		}
		out.Sockets = append(out.Sockets, u)
	}
	if out.Facts.ActiveState != "active" {
		return out, nil
	}
	c, err := s.control(ctx)
	if err != nil {
		return out, &rehearse.Impossible{Why: fmt.Sprintf("the service does not say what sockets it has: %v", err)}
	}
	defer c.Close()
	st, err := c.Status(ctx)
	if err != nil {
		return out, &rehearse.Impossible{Why: fmt.Sprintf("the service does not say what sockets it has: %v", err)}
	}
	out.Status = &st
	return out, nil
}

// filesOf reads the files of a unit as they are on disk.
func filesOf(u dbusctl.Unit) ([]unitgen.File, error) {
	var files []unitgen.File
	for _, path := range append([]string{u.FragmentPath}, u.DropInPaths...) {
		data, err := os.ReadFile(path)
		if err != nil {
			return nil, fmt.Errorf("read a file of %s: %w", u.Name, err)
		}
		files = append(files, unitgen.File{Name: filepath.Base(path), Path: path, Data: data})
	}
	return files, nil
}
