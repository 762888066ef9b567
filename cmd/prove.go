package cmd

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/zdt-dev/zdt/handoff/control"
	"github.com/zdt-dev/zdt/internal/load"
	"github.com/zdt-dev/zdt/release"
)

// proveOptions are the flags of zdt prove.
type proveOptions struct {
	Service  string
	URL      string // "": the service's own socket
	Path     string
	Clients  int
	Think    time.Duration
	Duration time.Duration // of the load, without the handoffs
	Handoffs int
	Timeout  time.Duration // for an old process to finish

	// ended waits for the end of a process.
	ended func(ctx context.Context, p pidfd) error
}

// What a service is spared. A client with the shortest pause sends a hundred requests a second.
const (
	mostClients  = 1000
	leastThink   = 10 * time.Millisecond
	mostHandoffs = 1000
	// requestTimeout bounds a request; one that takes longer is lost.
	requestTimeout = 10 * time.Second
)

func newProveCmd(f *factory) *cobra.Command {
	o := proveOptions{ended: func(ctx context.Context, p pidfd) error { return p.wait(ctx) }}
	think, duration, timeout := durationFlag(20*time.Millisecond), durationFlag(4*time.Second), durationFlag(2*time.Minute)
	cmd := &cobra.Command{
		Use:   "prove NAME [FLAGS]",
		Short: "Hand over under load, and show what clients notice",
		Long: `Have clients use a service while its program hands over to a new process of the
same release, and show what they notice: requests that failed, connections that
were refused or had to be opened again, and how long answers took during the
handoff (from the signal to the end of the old process) and at other times.

The clients only send GET requests, each once: they never retry and follow no
redirect. Three quarters keep their connection, the others open one per request.
An answer with an error status (4xx, 5xx) is an answer; it is shown apart. The
handoff is that of zdt handoff and systemctl reload: no release is changed.
Connections of a program under zdt run end with its process, so that clients
reconnect; what was lost or refused decides there, too.

When requests fail before there is a handoff, there will be none (exit status
10). Exit status 1 says that clients noticed something, 11 that the handoff was
undone. Ctrl-C ends the clients, not a handoff that has begun.`,
		Example: `  zdt prove web
  zdt prove web --path /healthz --clients 64 --handoffs 10
  zdt prove web --url http://www.example.com/ -o json`,
		Args:              arguments(1, 1, "the NAME of the service"),
		ValidArgsFunction: f.completeServices(1),
	}
	flags := cmd.Flags()
	flags.StringVar(&o.URL, "url", "", "where the clients go: a `URL` http://HOST:PORT/PATH or unix:/FILE (default: a socket of the service)")
	flags.StringVar(&o.Path, "path", "/", "what they get, where the URL does not say it: a `PATH`")
	flags.IntVar(&o.Clients, "clients", 16, "`N` clients")
	flags.Var(&think, "think", "pause of each client between two requests")
	flags.Var(&duration, "duration", "how long the clients are there besides the handoffs")
	flags.IntVar(&o.Handoffs, "handoffs", 1, "`N` handoffs, one after the other")
	flags.Var(&timeout, "timeout", "time for each old process to finish its connections")

	return f.command(cmd, func(ctx context.Context, args []string) error {
		o.Think, o.Duration, o.Timeout = time.Duration(think), time.Duration(duration), time.Duration(timeout)
		var err error
		if o.Service, err = serviceName(args[0]); err != nil {
			return err
		}
		if err := o.check(cmd.Flags().Changed("path")); err != nil {
			return err
		}
		return runProve(ctx, f, o)
	}, ExitOK, ExitUnexpected, ExitRefused, ExitRolledBack, ExitNotRestored, ExitUsage, ExitUnavailable, ExitBusy, ExitNotAuthorised, ExitDeadline, ExitInt, ExitTerm)
}

// check finds what is wrong with the command line.
func (o *proveOptions) check(pathGiven bool) error {
	for _, n := range []struct {
		flag        string
		value, most int
	}{{"clients", o.Clients, mostClients}, {"handoffs", o.Handoffs, mostHandoffs}} {
		if n.value < 1 || n.value > n.most {
			return usage("", "--%s %d: from 1 to %d is possible", n.flag, n.value, n.most)
		}
	}
	for _, d := range []struct {
		flag               string
		value, least, most time.Duration
	}{
		{"think", o.Think, leastThink, time.Hour}, {"duration", o.Duration, 100 * time.Millisecond, 24 * time.Hour},
		{"timeout", o.Timeout, time.Second, 24 * time.Hour},
	} {
		if d.value < d.least || d.value > d.most {
			return usage("", "--%s %v: from %v to %v is possible", d.flag, d.value, d.least, d.most)
		}
	}
	if !strings.HasPrefix(o.Path, "/") || strings.HasPrefix(o.Path, "//") || !inRequestLine(o.Path) {
		return usage("", "--path %q: a path such as /healthz is needed, as it is sent (%%20 for a space)", o.Path)
	}
	if o.URL == "" {
		return nil
	}
	t, err := parseTarget(o.URL)
	switch {
	case err != nil:
		return usage("use http://HOST:PORT/PATH or unix:/FILE", "--url %q: %w", o.URL, err)
	case t.Path != "" && pathGiven:
		return usage("", "--url has a path already: --path is one too many")
	}
	return nil
}

// prover is zdt prove at work; one goroutine owns it.
type prover struct {
	f        *factory
	o        proveOptions
	doc      *proveDoc
	load     *load.Load // nil until there are clients
	progress *proveProgress
}

func runProve(ctx context.Context, f *factory, o proveOptions) error {
	p := &prover{f: f, o: o, doc: &proveDoc{Schema: "zdt.prove/1", Service: o.Service, Handoffs: []proveHandoff{}, StartedAt: f.now().UTC()}}
	err := p.run(ctx)
	if p.load == nil {
		return err // there is nothing to report on
	}
	p.doc.EndedAt = f.now().UTC()
	return p.tell(err)
}

// tell judges what was seen, and tells it. err is what went wrong beside the clients.
func (p *prover) tell(err error) error {
	f, verdict := p.f, p.doc.judge(err)
	if f.globals.output != outputText {
		if err := f.print(p.doc); err != nil {
			return err
		}
	} else if _, err := fmt.Fprint(f.Out, proveText(f.outStyle(), f.UTF8, p.doc)); err != nil {
		return err
	}
	if !f.globals.quiet {
		for _, w := range p.doc.Warnings {
			fmt.Fprintf(f.Err, "%s %s\n", f.errStyle().warn.Render("warning:"), clean(w))
		}
	}
	if verdict == nil {
		return nil
	}
	f.tellText(verdict)
	return &Failure{Code: p.doc.ExitCode, Err: verdict, Told: true}
}

// run brings clients and handoffs together. It fills the document with what is seen; an error says what went wrong
// beside the clients.
func (p *prover) run(ctx context.Context) error {
	unlock, err := p.lock(ctx)
	if err != nil {
		return err
	}
	defer unlock()
	t, err := p.f.handoffByName(ctx, p.o.Service)
	if err != nil {
		return err
	}
	st, err := p.lookAt(ctx, t)
	if err != nil {
		return err
	}
	where, err := p.target(t, st)
	if err != nil {
		return err
	}
	defer where.close()
	p.doc.Target, p.doc.Runtime = where.doc(), st.Runtime
	if err := p.probe(ctx, where); err != nil {
		return err
	}
	p.start(where)
	defer p.stop(ctx)
	p.progress = p.f.startProveProgress(p.o.Service, p.load)
	defer p.progress.close()
	return p.handoffs(ctx)
}

// lock keeps upgrades away. Who may not have the lock may not upgrade either; a handoff is refused then if one runs.
func (p *prover) lock(ctx context.Context) (unlock func(), err error) {
	paths, err := p.f.paths()
	if err != nil {
		return nil, err
	}
	l, err := release.Acquire(ctx, paths.Lock(p.o.Service), release.Holder{Who: release.Identify()}, 0)
	var held *release.HeldError
	switch {
	case errors.As(err, &held):
		return nil, fail(ExitBusy, "wait for it to end: "+p.f.zdt()+" watch "+p.o.Service, "%w", err)
	case err != nil && codeOf(err) == ExitNotAuthorised:
		return func() {}, nil
	case err != nil:
		return nil, &Failure{Code: ExitRefused, Err: err, Hint: hintOf(err)}
	}
	return func() { l.Release() }, nil
}

// lookAt asks the runtime, and refuses what would not be a handoff to the same release.
func (p *prover) lookAt(ctx context.Context, t handoffTarget) (control.Status, error) {
	client, st, err := p.f.connectRuntime(ctx, t.control, t.pid, t.uid)
	if err != nil {
		return st, handoffRefusal(t, err)
	}
	client.Close()
	paths, err := p.f.paths()
	if err != nil {
		return st, err
	}
	s := serviceStatus{Name: p.o.Service, Runtime: &st}
	s.readStore(paths, p.o.Service)
	s.fillRunning(paths)
	switch {
	case s.Txn != nil:
		return st, fail(ExitRefused, t.status, "an upgrade of %s is not finished: it is in phase %s", p.o.Service, s.Txn.Phase)
	case s.Running != nil && s.Current != nil && s.Running.ID != s.Current.ID:
		return st, fail(ExitRefused, p.f.zdt()+" upgrade "+p.o.Service+" --binary FILE", "a handoff would start release %s, which is not the one that runs", s.Current.ID)
	case st.Phase != control.Idle || st.Predecessor != nil:
		return st, fail(ExitBusy, "wait for it to end: "+t.status, "a handoff of %s is in progress", p.o.Service)
	}
	return st, nil
}

// probe sends one request, as every client will. Nothing is signalled before the service has answered it.
func (p *prover) probe(ctx context.Context, t *target) error {
	cfg := p.config(t)
	cfg.KeepAlive, cfg.Fresh, cfg.Think = -1, 1, time.Hour
	l := load.Start(cfg)
	defer l.Cancel()
	err := l.Until(ctx, func(r load.Report) bool { return r.Requests+r.Refused > 0 })
	r := l.Cancel()
	switch {
	case err != nil:
		return err
	case r.Losses() > 0:
		return fail(ExitRefused, "say where the service answers HTTP: "+p.f.zdt()+" prove "+p.o.Service+" --url http://HOST:PORT/PATH",
			"GET %s: %s", t.url(), r.Failures[0].Text)
	}
	for status := range r.Statuses {
		p.f.say("%s: GET %s answers %d", p.o.Service, t.url(), status)
	}
	return nil
}

func (p *prover) config(t *target) load.Config {
	return load.Config{
		Dial: t.dial, Get: t.Path, Host: t.Host, Agent: "zdt-prove", GetOnly: true, AnyStatus: true,
		Think: p.o.Think, Timeout: requestTimeout, Bucket: proveBucket, Failures: 10,
	}
}

// proveBucket is the resolution of the picture of what was answered when.
const proveBucket = 10 * time.Millisecond

func (p *prover) start(t *target) {
	fresh := p.o.Clients / 4
	kept := p.o.Clients - fresh
	p.doc.Clients, p.doc.Fresh, p.doc.Think = p.o.Clients, fresh, p.o.Think
	if fresh == 0 {
		fresh = -1
	}
	cfg := p.config(t)
	cfg.KeepAlive, cfg.Fresh = kept, fresh
	p.load = load.Start(cfg)
}

// stop ends the clients, at once if zdt itself is to end, and takes down what they saw.
func (p *prover) stop(ctx context.Context) {
	if ctx.Err() != nil {
		p.doc.fill(p.load.Cancel())
	} else {
		p.doc.fill(p.load.Stop())
	}
}
