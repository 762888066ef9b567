package cmd

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"path/filepath"
	"slices"
	"strconv"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/zdt-dev/zdt/handoff/control"
	"github.com/zdt-dev/zdt/release"
)

// handoffDoc is the document of zdt handoff.
type handoffDoc struct {
	Schema   string   `json:"schema"`  // zdt.handoff/1
	Outcome  string   `json:"outcome"` // committed, held, aborted, refused, unknown
	ExitCode ExitCode `json:"exit_code"`
	Changed  bool     `json:"changed"` // another process serves than before
	TxID     string   `json:"txid"`
	Service  string   `json:"service"`

	Incumbent  int           `json:"incumbent"`           // pid
	Candidate  int           `json:"candidate,omitempty"` // pid
	Generation int           `json:"generation"`          // of the process that serves at the end
	Reason     string        `json:"reason,omitempty"`    // a stable word
	Detail     string        `json:"detail,omitempty"`
	Exit       *control.Exit `json:"exit,omitempty"`        // how the candidate ended
	ReadyAfter time.Duration `json:"ready_after,omitempty"` // nanoseconds

	// Connections are the incumbent's when the command ended; Draining: it was
	// not done with them then.
	Connections *control.Counts `json:"connections,omitempty"`
	Draining    bool            `json:"draining,omitempty"`
	// Lost counts those that had moved to the new process before it died.
	Lost int `json:"connections_lost,omitempty"`
}

func newHandoffCmd(f *factory) *cobra.Command {
	var timeout durationFlag
	cmd := &cobra.Command{
		Use:   "handoff [NAME]",
		Short: "Hand over to a new process of the same program, and wait",
		Long: `Have the running program hand its sockets to a new process, and wait for the
outcome. This is what systemctl reload does: without NAME the service is the one
whose ExecReload= runs zdt, found by $MAINPID and $RUNTIME_DIRECTORY alone.

The signal (SIGUSR2) is sent only after the control socket has proved that the
main process can take it. Ctrl-C ends the waiting, not the handoff.

A program under zdt run gets the environment and the arguments that its unit has
now. Only systemd knows them: with NAME it is asked to reload the unit.

Connections that are idle move to the new process at once. The command says what
became of them within half a second; the others it does not wait for.

To change to another program use zdt upgrade.`,
		Example: `  zdt handoff web
  systemctl reload web
  ExecReload=/usr/local/bin/zdt handoff      (in the unit)`,
		Args:              arguments(0, 1, "the NAME of the service"),
		ValidArgsFunction: f.completeServices(1),
	}
	cmd.Flags().Var(&timeout, "timeout", "stop waiting after this long (default: the runtime's own deadlines)")
	return f.command(cmd, func(ctx context.Context, args []string) error {
		if timeout > 0 {
			var cancel context.CancelFunc
			ctx, cancel = context.WithTimeoutCause(ctx, time.Duration(timeout), timedOut{time.Duration(timeout)})
			defer cancel()
		}
		var target handoffTarget
		var err error
		if len(args) == 0 {
			target, err = f.handoffFromInside()
		} else {
			target, err = f.handoffByName(ctx, args[0])
		}
		if err != nil {
			return err
		}
		return runHandoff(ctx, f, target)
	}, ExitOK, ExitRefused, ExitRolledBack, ExitNotRestored, ExitUsage, ExitUnavailable, ExitBusy, ExitNotAuthorised, ExitDeadline, ExitInt, ExitTerm)
}

// handoffTarget is whom to ask for a handoff.
type handoffTarget struct {
	pid     int
	uid     uint32
	control string // path
	// reload: zdt runs as ExecReload=. Then an upgrade that has armed the
	// runtime already is who asked for this reload, through systemd.
	reload bool
	// reloads: it does not, but ExecReload= of the unit runs zdt handoff.
	reloads bool
	command []string // the unit's ExecStart=, with reloads
	unit    string
	user    bool   // of a user manager
	status  string // the command that shows more
}

// handoffFromInside finds the service by what systemd puts into the
// environment of ExecReload=. It needs neither D-Bus nor the store, which the
// service's user may not reach.
func (f *factory) handoffFromInside() (handoffTarget, error) {
	pid, err := strconv.Atoi(f.getenv("MAINPID"))
	dir := control.Directory(f.getenv("RUNTIME_DIRECTORY"))
	if err != nil || pid <= 0 || !filepath.IsAbs(dir) {
		return handoffTarget{}, usage(f.zdt()+" handoff NAME", "handoff: NAME is missing ($MAINPID and $RUNTIME_DIRECTORY, which say it in ExecReload=, are not set)")
	}
	uid, err := procUID(pid)
	if err != nil {
		return handoffTarget{}, fail(ExitRefused, "", "look at main process %d: %w", pid, err)
	}
	name := filepath.Base(dir)
	// Only a user manager tells its own pid (systemd.exec(5)).
	return handoffTarget{pid: pid, uid: uid, control: filepath.Join(dir, "control.sock"), reload: true, unit: name + ".service",
		user: f.getenv("MANAGERPID") != "", status: "journalctl -e -u " + name + ".service"}, nil
}

// handoffByName asks systemd.
func (f *factory) handoffByName(ctx context.Context, arg string) (handoffTarget, error) {
	name, err := serviceName(arg)
	if err != nil {
		return handoffTarget{}, err
	}
	p, err := f.paths()
	if err != nil {
		return handoffTarget{}, err
	}
	bus, err := f.dialSystemd(ctx, f.globals.user)
	if err != nil {
		return handoffTarget{}, err
	}
	defer bus.Close()
	u, err := bus.Unit(ctx, name+".service")
	if err != nil {
		if u.LoadState == "not-found" {
			return handoffTarget{}, fail(ExitRefused, f.zdt()+" status", "there is no service %s", name)
		}
		return handoffTarget{}, err
	}
	if u.MainPID == 0 {
		return handoffTarget{}, fail(ExitRefused, f.systemctl()+" start "+u.Name, "%s is %s: there is no process to hand over from", u.Name, u.ActiveState)
	}
	uid, err := mainUID(u)
	if err != nil {
		return handoffTarget{}, fail(ExitRefused, "", "look at main process %d: %w", u.MainPID, err)
	}
	return handoffTarget{pid: int(u.MainPID), uid: uid, control: p.Control(name), reloads: slices.Contains(u.ExecReload, "handoff"),
		command: execStart(u), unit: u.Name, user: f.globals.user, status: f.zdt() + " status " + name}, nil
}

func runHandoff(ctx context.Context, f *factory, t handoffTarget) error {
	doc := handoffDoc{Schema: "zdt.handoff/1", Incumbent: t.pid}
	err := f.handOver(ctx, t, &doc)
	if doc.ExitCode = codeOf(err); doc.Outcome == "" {
		doc.Outcome = "refused"
		if doc.ExitCode != ExitRefused && doc.ExitCode != ExitBusy {
			return err // there was nothing to report on
		}
	}
	if f.globals.output != outputText {
		return f.printVerdict(doc, err)
	}
	if err == nil {
		if c := doc.Connections; c != nil && c.Cut > 0 && !f.globals.quiet {
			fmt.Fprintf(f.Err, "%s %s cut, still busy at the drain deadline: clients have noticed\n", f.errStyle().warn.Render("warning:"), plural(c.Cut, "connection"))
		}
		_, err = fmt.Fprintln(f.Out, handoffLine(f.outStyle(), doc, f.outWidth()))
	}
	return err
}

func handoffLine(st style, d handoffDoc, width int) string {
	mark := st.good.Render(st.marks.ok)
	pids := fmt.Sprintf("pid %d %s %d", d.Incumbent, st.marks.arrow, d.Candidate)
	if d.Outcome == "held" {
		return fmt.Sprintf("%s %s: the new process is ready and on probation (%s)", mark, clean(d.Service), pids)
	}
	head := fmt.Sprintf("%s %s handed over", mark, clean(d.Service))
	generation, ready := fmt.Sprintf("generation %d", d.Generation), "ready after "+elapsed(d.ReadyAfter)
	if d.Connections == nil && d.Draining { // a helper does not see its program's connections
		return st.line(width, []string{head, pids, generation, ready, fmt.Sprintf("pid %d finishes", d.Incumbent)}, []string{head, pids})
	}
	if d.Connections == nil {
		return st.line(width, []string{head, pids, generation, ready})
	}
	counts := countsVerdict(st, *d.Connections)
	if d.Draining {
		counts = "drains: " + d.Connections.Progress()
	}
	return st.line(width, []string{head, pids, generation, ready, counts}, []string{head, pids, counts}, []string{head, counts})
}

// handOver arms, signals and waits, and fills doc with what it sees.
func (f *factory) handOver(ctx context.Context, t handoffTarget, doc *handoffDoc) error {
	// The pidfd comes first: whatever is proved afterwards is proved of this
	// very process, and the signal cannot reach another that got its number.
	process, err := openPidfd(t.pid)
	if err != nil {
		return fail(ExitRefused, t.status, "main process %d: %w", t.pid, err)
	}
	defer process.close()
	client, st, err := f.connectRuntime(ctx, t.control, t.pid, t.uid)
	if err != nil {
		return handoffRefusal(t, err)
	}
	defer client.Close()
	doc.Service, doc.Generation, doc.Incumbent = st.Service, st.Generation, serving(st)
	if doc.TxID, err = f.armFor(ctx, t, client, st); err != nil {
		return err
	}
	// Watching begins before the signal: no state can be missed, however quickly
	// this generation is done.
	watcher, _, err := f.connectRuntime(ctx, t.control, t.pid, t.uid)
	if err != nil {
		return handoffRefusal(t, err)
	}
	defer watcher.Close()
	watching, leave := context.WithCancelCause(ctx)
	defer leave(nil)
	next, stop := iter.Pull2(watcher.Watch(watching))
	defer stop()
	if _, err, ok := next(); err != nil || !ok {
		return handoffRefusal(t, fmt.Errorf("watch the runtime: %w", err))
	}
	if isHelper(st) && t.reloads {
		defer f.beginReload(ctx, t, leave).join()
	} else if err := process.signal(syscall.SIGUSR2); err != nil {
		client.Disarm(ctx, doc.TxID) // it expires by itself, too
		return fail(ExitRefused, t.status, "signal main process %d: %w", t.pid, err)
	}
	err = f.awaitOutcome(watching, t, next, st, doc)
	if failed := (*reloadError)(nil); errors.As(context.Cause(watching), &failed) && ctx.Err() == nil && err != nil {
		client.Disarm(ctx, doc.TxID)
		doc.Outcome = ""
		code := codeOf(failed)
		if code == ExitUnexpected {
			code = ExitRefused
		}
		return fail(code, t.status, "have systemd start the handoff: %w", failed)
	}
	if err != nil || doc.Outcome != "committed" {
		return err
	}
	glance := time.AfterFunc(drainGlance, func() { leave(nil) })
	defer glance.Stop()
	return glanceAtDrain(watching, t, next, doc, glance)
}

// drainGlance is how long the command looks at the drain after the commit. A
// drain without requests under way is over by then, and all that could be
// moved has moved. Those that take longer are not waited for: systemctl reload
// would not come back for as long as the slowest client wants.
const drainGlance = 500 * time.Millisecond

// armFor arms the runtime and returns the transaction's ID.
func (f *factory) armFor(ctx context.Context, t handoffTarget, client *control.Client, st control.Status) (string, error) {
	var arm control.Arm
	switch a := st.Armed; {
	case !t.reload || a == nil:
	case isHelper(st):
		// Whoever armed a helper asked systemd for this reload, to have the arming completed.
		arm = *a
	case a.Hold:
		return a.TxID, nil // zdt upgrade's; it asked systemd for this reload
	}
	if arm.TxID == "" {
		var err error
		if arm.TxID, err = release.NewTxID(); err != nil {
			return "", err
		}
	}
	switch {
	case !isHelper(st):
	case t.reload:
		arm = f.fresh(ctx, t, arm)
	case t.reloads:
		arm.Command = t.command // ExecReload= replaces the variables
	}
	_, err := client.Arm(ctx, arm)
	var refused *control.Error
	switch {
	case err == nil:
		return arm.TxID, nil
	case errors.As(err, &refused) && refused.Code == control.CodeBusy:
		return "", fail(ExitBusy, "wait for it to end: "+t.status, "handoff refused: %s", refused.Text)
	case errors.As(err, &refused):
		return "", fail(ExitRefused, t.status, "handoff refused: %s", refused.Text)
	}
	return "", fail(ExitRefused, t.status, "arm the runtime: %w", err)
}

func isHelper(st control.Status) bool { return st.Runtime == control.RuntimeHelper }

// serving is the process that serves, by the word of the runtime.
func serving(st control.Status) int {
	if isHelper(st) {
		return st.App
	}
	return st.PID
}

// pidfd names one process for as long as it is open, whatever its number is
// given to afterwards. Not os.FindProcess: where it gets no pidfd it quietly
// goes on with the number.
type pidfd int

// openPidfd needs Linux 5.3. The caller closes the descriptor.
func openPidfd(pid int) (pidfd, error) {
	fd, err := unix.PidfdOpen(pid, 0)
	return pidfd(fd), err
}

func (p pidfd) signal(s syscall.Signal) error { return unix.PidfdSendSignal(int(p), s, nil, 0) }

func (p pidfd) close() { unix.Close(int(p)) }
