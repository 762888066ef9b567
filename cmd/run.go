package cmd

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"runtime/debug"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"golang.org/x/sys/unix"

	"github.com/zdt-dev/zdt/handoff"
	"github.com/zdt-dev/zdt/handoff/control"
	"github.com/zdt-dev/zdt/helper"
	"github.com/zdt-dev/zdt/unitgen"
)

// runOptions are the flags of zdt run. A handoff reads them anew from the
// unit's current ExecStart=.
type runOptions struct {
	service, control string
	takeover         string
	workers          int
	reusePort        bool
	listen           []string
	pass             []string
	stdin            string
	ready            string
	access           string
	strategy         string
	log              string
	stop             signalFlag
	pause, resume    signalFlag

	readyTimeout, holdTimeout, drainTimeout durationFlag
}

// maxWorkers bounds --workers: more is a mistake.
const maxWorkers = 1000

const (
	strategyHandoff = "handoff"
	strategyRestart = "restart"
)

func (o *runOptions) bind(flags *pflag.FlagSet) {
	o.stop = signalFlag(syscall.SIGTERM)
	flags.StringArrayVar(&o.listen, "listen", nil, "bind `[PROTO:]ADDR[=FDNAME]` unless a socket of that name was inherited; repeatable")
	flags.StringSliceVar(&o.pass, "pass", []string{"systemd"}, "how the program learns of its sockets: `HOW` is systemd, server-starter, einhorn, nginx or none, or several with commas")
	flags.StringVar(&o.stdin, "stdin", "", "give the socket `FDNAME` as standard input")
	flags.StringVar(&o.ready, "ready", "notify", "how the program is known to be ready: `WHEN` is notify (READY=1), http://HOST:PORT/PATH, tcp:ADDR, unix:PATH, exec:COMMAND or alive:D")
	flags.StringVar(&o.access, "notify-access", "main", "whose messages count: `WHO` is main, the first process, or group")
	flags.Var(&o.stop, "stop-signal", "the signal that makes the program finish its requests and end")
	flags.Var(&o.pause, "pause-signal", "the signal that makes it stop accepting, while another generation is on probation")
	flags.Var(&o.resume, "resume-signal", "the signal that undoes --pause-signal")
	flags.StringVar(&o.strategy, "strategy", strategyHandoff, "`HOW` is handoff, or restart for a program that cannot run twice at a time: clients wait in the sockets meanwhile")
	flags.IntVar(&o.workers, "workers", 1, "`N` processes of the program serve side by side; a handoff replaces them one after the other")
	flags.BoolVar(&o.reusePort, "reuse-port", false, "give each worker TCP and UDP sockets of its own (SO_REUSEPORT) in place of one that all share")
	flags.Var(&o.readyTimeout, "ready-timeout", "from start to ready (default: $ZDT_READY_TIMEOUT, else "+handoff.DefaultReadyTimeout.String()+")")
	flags.Var(&o.drainTimeout, "drain-timeout", "from --stop-signal to SIGKILL (default: $ZDT_DRAIN_TIMEOUT, else "+handoff.DefaultDrainTimeout.String()+")")
	flags.Var(&o.holdTimeout, "hold-timeout", "for a decision about a held candidate (default: $ZDT_HOLD_TIMEOUT, else "+handoff.DefaultHoldTimeout.String()+")")
	flags.StringVar(&o.log, "log", "auto", "`HOW` events are told: auto is journald, or text on stderr where there is none; json is a document a line on stderr")
	flags.StringVar(&o.service, "service", "", "the service's `NAME` in events and statuses (default: $ZDT_SERVICE, else the program's)")
	flags.StringVar(&o.takeover, "takeover", "", "take the service over from the process that listens at the socket `PATH`, which both containers see, and give it to the next one that asks there; - for not at all (default: $ZDT_TAKEOVER)")
	flags.StringVar(&o.control, "control", "", "`PATH` of the control socket, or - for none (default: control.sock in $RUNTIME_DIRECTORY)")
}

func newRunCmd(f *factory) *cobra.Command {
	var o runOptions
	cmd := &cobra.Command{
		Use:   "run [flags] -- COMMAND [ARGUMENT...]",
		Short: "Start a program of any language so that it can be upgraded",
		Long: `Start a program and stay in front of it as the unit's main process (ExecStart=).

zdt run holds the sockets, starts the program with them, and at a handoff starts
the program's next process group beside the one that serves. When that is ready,
the old one is told to finish and end. The main process never changes.

{fd:NAME} in an argument or in a variable is the number of the socket NAME,
{worker} that of the worker.

SIGUSR2 starts a handoff, SIGUSR1 undoes one, SIGTERM stops, SIGQUIT stops at
once. SIGWINCH, SIGTTIN, SIGTTOU and SIGCONT go to the program.

When the program ends by itself zdt run ends the same way: with its exit status,
or by the same signal.`,
		Example: `  zdt run --listen :8080=http --ready alive:1s -- ./server --fd {fd:http}
  ExecStart=/usr/local/bin/zdt run -- /usr/bin/gunicorn app:app     (in a unit)`,
	}
	o.bind(cmd.Flags())
	return f.command(cmd, func(ctx context.Context, args []string) error {
		if len(args) == 0 {
			return usage(cmd.CommandPath()+" --help shows how", "run: COMMAND is missing")
		}
		if err := helper.BlockSignals(); err != nil {
			return err
		}
		options, err := o.options(args, os.Environ())
		if err != nil {
			return err
		}
		debug.SetGCPercent(20) // it is there all the time and does little: memory counts, time does not
		exit, err := helper.Run(options)
		if err != nil {
			return fail(ExitUnexpected, "", "%w", err)
		}
		exit.Die()
		return nil
	}, ExitOK, ExitUnexpected, ExitUsage)
}

// options makes of the flags what a helper is started with.
func (o *runOptions) options(command, environ []string) (helper.Options, error) {
	getenv := lookup(environ)
	out := helper.Options{Service: o.service, ControlSocket: o.control, Version: linkedVersion, Workers: o.workers, ReusePort: o.reusePort}
	if out.Service == "" {
		out.Service = getenv("ZDT_SERVICE")
	}
	if out.Service == "" {
		out.Service = filepath.Base(command[0])
	}
	if dir := control.Directory(getenv("RUNTIME_DIRECTORY")); dir != "" {
		out.NotifyDir = dir
		if out.ControlSocket == "" {
			out.ControlSocket = filepath.Join(dir, "control.sock")
		}
	}
	if out.ControlSocket == "-" {
		out.ControlSocket = ""
	}
	var err error
	if out.Takeover, err = o.takeoverSocket(getenv); err != nil {
		return out, err
	}
	for _, text := range o.listen {
		l, err := unitgen.ParseListen(text)
		if err != nil {
			return out, err
		}
		name := l.FDName
		if name == "" {
			name = l.Addr
		}
		out.Listen = append(out.Listen, helper.Listen{Name: name, Network: l.Proto, Address: l.Addr})
	}
	switch o.log {
	case "auto":
	case "json":
		out.Logger = slog.New(slog.NewJSONHandler(os.Stderr, nil))
	default:
		return out, usage("zdt run --help shows the flags", "run: --log %q: use auto or json", o.log)
	}
	if out.HoldTimeout, err = o.holdTimeout.or("ZDT_HOLD_TIMEOUT", getenv, handoff.DefaultHoldTimeout); err != nil {
		return out, err
	}
	out.App, err = o.app(command, environ)
	out.Parse = parseRun
	return out, err
}

// takeoverSocket is the path of the takeover socket, "" for none.
func (o *runOptions) takeoverSocket(getenv func(string) string) (string, error) {
	path := o.takeover
	if path == "" {
		path = getenv("ZDT_TAKEOVER")
	}
	switch {
	case path == "" || path == "-":
		return "", nil
	case !filepath.IsAbs(path):
		return "", usage("", "run: takeover socket %q: give an absolute path", path)
	case o.strategy == strategyRestart:
		return "", usage("stop the old container first; clients wait in the queues of sockets that something else holds, as a socket unit",
			"run: --takeover and --strategy restart exclude each other: a takeover starts the program beside the one that serves")
	case o.reusePort && o.workers > 1:
		return "", usage("leave --reuse-port out: the workers share the sockets then",
			"run: --takeover and --reuse-port exclude each other: each worker has a queue of its own, and in another container there may be more or fewer")
	}
	return path, nil
}

// app makes of the flags what a handoff may change.
func (o *runOptions) app(command, environ []string) (helper.App, error) {
	a := helper.App{
		Command: command, Environ: environ, Overlap: o.strategy == strategyHandoff,
		Workers: o.workers,
		Stop:    syscall.Signal(o.stop), Pause: syscall.Signal(o.pause), Resume: syscall.Signal(o.resume),
	}
	hint := "zdt run --help shows the flags"
	if o.strategy != strategyHandoff && o.strategy != strategyRestart {
		return a, usage(hint, "run: --strategy %q: use handoff or restart", o.strategy)
	}
	switch {
	case o.workers < 1 || o.workers > maxWorkers:
		return a, usage(hint, "run: --workers %d: give a number from 1 to %d", o.workers, maxWorkers)
	case o.workers > 1 && !a.Overlap:
		return a, usage(hint, "run: --workers and --strategy restart exclude each other: a program that cannot run twice at a time has one worker")
	case o.workers == 1 && o.reusePort:
		return a, usage("add --workers N", "run: --reuse-port is for several workers")
	}
	if (a.Pause == 0) != (a.Resume == 0) {
		return a, usage(hint, "run: --pause-signal and --resume-signal belong together: what cannot be undone is no pause")
	}
	var err error
	if a.Passing, err = parsePassing(o.pass, o.stdin); err != nil {
		return a, usage(hint, "run: --pass: %w", err)
	}
	if a.Readiness, err = helper.ParseReadiness(o.ready); err != nil {
		return a, usage(hint, "run: --ready: %w", err)
	}
	switch o.access {
	case "main":
	case "group":
		a.Group = true
	default:
		return a, usage(hint, "run: --notify-access %q: use main or group", o.access)
	}
	getenv := lookup(environ)
	if a.ReadyTimeout, err = o.readyTimeout.or("ZDT_READY_TIMEOUT", getenv, handoff.DefaultReadyTimeout); err != nil {
		return a, err
	}
	a.DrainTimeout, err = o.drainTimeout.or("ZDT_DRAIN_TIMEOUT", getenv, handoff.DefaultDrainTimeout)
	return a, err
}

// parseRun reads a unit's ExecStart= as the command line was read at the start.
// Without a command it is this process's own.
func parseRun(command, environ []string) (helper.App, error) {
	if len(command) == 0 {
		command = os.Args
	}
	i := slices.Index(command, "run")
	if i < 1 {
		return helper.App{}, fmt.Errorf("%q is not zdt run", strings.Join(command, " "))
	}
	if len(environ) == 0 {
		environ = os.Environ()
	}
	var o runOptions
	flags := pflag.NewFlagSet("run", pflag.ContinueOnError)
	o.bind(flags)
	if err := flags.Parse(command[i+1:]); err != nil {
		return helper.App{}, err
	}
	if flags.NArg() == 0 {
		return helper.App{}, errors.New("it names no program")
	}
	return o.app(flags.Args(), environ)
}

func parsePassing(ways []string, stdin string) (helper.Passing, error) {
	p := helper.Passing{Stdin: stdin}
	for _, way := range ways {
		switch way {
		case "systemd":
			p.Systemd = true
		case "server-starter":
			p.ServerStarter = true
		case "einhorn":
			p.Einhorn = true
		case "nginx":
			p.Nginx = true
		case "none":
		default:
			return p, fmt.Errorf("%q: use systemd, server-starter, einhorn, nginx or none", way)
		}
	}
	return p, nil
}

// or is the flag's value, else the variable's, else def.
func (d durationFlag) or(name string, getenv func(string) string, def time.Duration) (time.Duration, error) {
	if d != 0 {
		return time.Duration(d), nil
	}
	text := getenv(name)
	if text == "" {
		return def, nil
	}
	v, err := time.ParseDuration(text)
	if err != nil || v <= 0 {
		return 0, usage("", "environment %s=%q: want a positive duration such as 30s", name, text)
	}
	return v, nil
}

// lookup is getenv over environ. The last assignment counts, as in os.Environ after os.Setenv.
func lookup(environ []string) func(string) string {
	return func(name string) string {
		for _, kv := range slices.Backward(environ) {
			if value, ok := strings.CutPrefix(kv, name+"="); ok {
				return value
			}
		}
		return ""
	}
}

// signalFlag is a signal by its name, with or without SIG, or by its number. 0 is none.
type signalFlag syscall.Signal

// Set reads TERM, SIGTERM or 15.
func (s *signalFlag) Set(text string) error {
	name := strings.ToUpper(text)
	if !strings.HasPrefix(name, "SIG") {
		name = "SIG" + name
	}
	if n := unix.SignalNum(name); n != 0 {
		*s = signalFlag(n)
		return nil
	}
	return errors.New("give a signal's name such as TERM, QUIT or WINCH")
}

func (s *signalFlag) String() string {
	if *s == 0 {
		return ""
	}
	return strings.TrimPrefix(unix.SignalName(syscall.Signal(*s)), "SIG")
}

// Type names the flag's value in --help.
func (s *signalFlag) Type() string { return "SIG" }
