package rehearse

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/zdt-dev/zdt/dbusctl"
	"github.com/zdt-dev/zdt/internal/sockowner"
	"github.com/zdt-dev/zdt/unitgen"
)

// Host is what a rehearsal needs of systemd and the journal.
type Host struct {
	Unit        func(ctx context.Context, name string) (dbusctl.Unit, error)
	Settings    func(ctx context.Context, name string) (map[string]string, error)
	Pin         func(ctx context.Context, name string) error
	Forget      func(ctx context.Context, name string) error
	Watch       func(ctx context.Context, name string) (<-chan dbusctl.Unit, error)
	Start, Stop func(ctx context.Context, name string) error
	Kill        func(ctx context.Context, name string) error // its main process, at once
	ResetFailed func(ctx context.Context, name string) error
	// Log returns the last lines that the unit has written, and how many there were before.
	Log func(ctx context.Context, unit string) (lines []string, cut int)
	Now func() time.Time
}

const (
	// acceptTimeout is how long a program that said READY may take to accept a connection.
	acceptTimeout = 5 * time.Second
	// cleanTimeout bounds what is done after the verdict.
	cleanTimeout = 30 * time.Second
)

// run is a rehearsal that goes on.
type run struct {
	Host
	plan   *Plan
	opt    Options
	unit   string
	ns     *namespace
	tell   func(string)
	result Result
	main   int // the candidate's main process

	stopTimeout time.Duration // TimeoutStopSec=
}

// Rehearse plays the rehearsal of a plan. Its error is *Impossible, or that nothing could be found out; a candidate that fails is a
// Result. When it returns nothing of the rehearsal is left, and whatever is left all the same is told. tell gets progress.
func (h Host) Rehearse(ctx context.Context, s Service, o Options, tell func(string)) (_ Result, err error) {
	p, files, err := New(s, o)
	if err != nil {
		return Result{}, err
	}
	if tell == nil {
		tell = func(string) {}
	}
	r := &run{Host: h, plan: p, opt: o, unit: p.Name + ".service", tell: tell, stopTimeout: s.Facts.TimeoutStop}
	r.result = Result{
		Schema: "zdt.rehearse/1", TxID: o.TxID, Service: s.Name, Release: o.Release.ID, Path: o.Release.Path, Unit: r.unit,
		Sockets: p.Sockets, Skipped: p.Skipped, StartedAt: h.Now(), Phase: Prepare,
	}
	if r.ns, err = openNamespace(); err != nil {
		return Result{}, err
	}
	defer r.ns.close()
	err = r.carryOut(ctx, s, files)
	r.clean(ctx, files)
	r.result.Differences, r.result.EndedAt = p.Differences, h.Now()
	return r.result, err
}

// carryOut plays the rehearsal and judges it.
func (r *run) carryOut(ctx context.Context, s Service, files []unitgen.File) error {
	if err := r.write(files); err != nil {
		return impossible("", "%v", err)
	}
	if err := r.compare(ctx, s); err != nil {
		return err
	}
	err := r.play(ctx)
	var i *Impossible
	switch {
	case err == nil:
		r.result.Outcome, r.result.Phase = Passed, ""
		return nil
	case ctx.Err() != nil:
		return context.Cause(ctx)
	case errors.As(err, &i), errors.Is(err, dbusctl.ErrNoBus), errors.Is(err, dbusctl.ErrNotAuthorised):
		return err
	}
	r.result.Outcome, r.result.Cause = Failed, err.Error()
	r.result.Hint = "journalctl -u " + r.unit + " has all that it wrote"
	if r.result.Phase == Stop {
		r.result.Hint = "SuccessExitStatus= of the unit says which other ends are good ones; " + r.result.Hint
	}
	// Before it is ended: what it writes then is about that.
	logs, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanTimeout)
	defer cancel()
	r.result.Log, r.result.LogCut = r.Log(logs, r.unit)
	return nil
}

// write writes the units. systemd finds them without a daemon-reload: it looks for what it does not know.
func (r *run) write(files []unitgen.File) error {
	if err := os.MkdirAll(r.opt.UnitDir, 0o755); err != nil {
		return fmt.Errorf("make the directory of units: %w", err)
	}
	for _, f := range files {
		data := strings.ReplaceAll(string(f.Data), namespacePlaceholder, r.ns.path())
		w, err := os.OpenFile(f.Path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, f.Mode)
		if err != nil {
			return fmt.Errorf("write a unit: %w", err)
		}
		_, err = w.WriteString(data)
		if err = errors.Join(err, w.Close()); err != nil {
			return fmt.Errorf("write a unit: %w", err)
		}
	}
	return nil
}

// compare looks at what systemd has made of the unit, before it is started.
func (r *run) compare(ctx context.Context, s Service) error {
	u, err := r.Unit(ctx, r.unit)
	if err != nil {
		return impossible("", "systemd does not take its unit: %v", err)
	}
	service, err := r.Settings(ctx, s.Facts.Name)
	if err != nil {
		return err
	}
	mine, err := r.Settings(ctx, r.unit)
	if err != nil {
		return err
	}
	for key, want := range map[string]string{"OnFailure": "[]", "OnSuccess": "[]", "Restart": "no", "ExecStartPre": "[]", "ExecStopPost": "[]", "ExecStop": "[]"} {
		if got, ok := mine[key]; ok && got != want {
			return impossible("", "a drop-in for all services sets %s= of it, too (%s)", key, strings.Join(u.DropInPaths, ", "))
		}
	}
	worthless, told := contradiction(service, mine, r.plan.additions(s.Facts.RuntimeDirectory, r.opt.RunDir))
	if len(worthless) > 0 {
		return impossible("after a change of the unit's files: systemctl daemon-reload", "its sandbox would not be the service's (%s)", strings.Join(worthless, ", "))
	}
	for _, key := range told {
		r.plan.differ("%s is another one than the service's", key)
	}
	return nil
}

// play is the rehearsal itself.
func (r *run) play(ctx context.Context) error {
	r.result.Phase = Ready
	began := r.Now()
	r.tell("starting " + r.opt.Release.ID + " beside the service")
	// Pinned before, or systemd might have forgotten how it ended. Without a bus that counts
	// references its verdict is what is left.
	if err := r.Pin(ctx, r.unit); err != nil {
		return impossible("", "%v", err)
	}
	if err := r.Start(ctx, r.unit); err != nil {
		return r.whyNotStarted(ctx, err)
	}
	u, err := r.look(ctx)
	if err != nil {
		return err
	}
	if u.ActiveState != "active" || u.MainPID == 0 {
		return fmt.Errorf("it ended right after READY: %s", ending(u))
	}
	r.main = int(u.MainPID)
	r.result.ReadyAfter = r.Now().Sub(began)
	r.tell("ready after " + r.result.ReadyAfter.Round(time.Millisecond).String())

	if err := r.whileItLives(ctx, r.try); err != nil {
		return r.unlessDead(ctx, err)
	}
	if u, err := r.look(ctx); err != nil {
		return err
	} else if u.ActiveState != "active" || int(u.MainPID) != r.main {
		return fmt.Errorf("it ended by itself: %s", ending(u))
	}
	r.result.MemoryPeak = r.memory(ctx)
	r.result.Phase = Stop
	r.tell("ending it with SIGTERM")
	began = r.Now()
	err = r.Stop(ctx, r.unit)
	r.result.StopAfter = r.Now().Sub(began)
	var job *dbusctl.JobError // it has stopped, and not well
	if err != nil && !errors.As(err, &job) {
		return impossible("", "stop it: %v", err)
	}
	if u, err = r.look(ctx); err != nil {
		return err
	}
	return r.judgeEnd(u)
}

// look asks systemd for the unit. That it does not answer is not the candidate's fault.
func (r *run) look(ctx context.Context) (dbusctl.Unit, error) {
	u, err := r.Unit(ctx, r.unit)
	if err != nil && !errors.Is(err, dbusctl.ErrNoUnit) {
		return u, impossible("", "%v", err)
	}
	return u, nil
}

// try asks the candidate all that it is asked.
func (r *run) try(ctx context.Context) error {
	r.result.Phase = Accept
	if err := r.accept(ctx); err != nil {
		return err
	}
	r.result.Phase = Gating
	return r.askGates(ctx)
}

// whileItLives does something with a context that ends with the candidate: nobody has to wait for the answers of a dead one.
func (r *run) whileItLives(ctx context.Context, do func(context.Context) error) error {
	ctx, cancel := context.WithCancel(ctx)
	states, err := r.Watch(ctx, r.unit)
	if err != nil {
		cancel()
		return impossible("", "%v", err)
	}
	joined := make(chan struct{})
	go func() { // ends with states, which end with ctx
		defer close(joined)
		for u := range states {
			if u.ActiveState != "active" || int(u.MainPID) != r.main {
				cancel()
			}
		}
	}()
	err = do(ctx)
	cancel()
	<-joined
	return err
}

// judgeEnd says what is wrong with the end of a candidate that got SIGTERM.
func (r *run) judgeEnd(u dbusctl.Unit) error {
	status, signalled, ok := u.Exited()
	switch {
	case u.Result == "timeout":
		return fmt.Errorf("it did not end within %s after SIGTERM (TimeoutStopSec=), and was killed", u.TimeoutStop)
	case u.Result == "success" && ok && !signalled, u.Result == "success" && !ok:
		return nil // systemd counts SuccessExitStatus= as success
	case r.plan.helper && (signalled && u.Result == "success" || !signalled && status == 128+15):
		r.plan.differ("the program ended by SIGTERM, and not by itself: what it was doing was cut")
		return nil
	case signalled && u.Result == "success":
		return errors.New("SIGTERM killed it: it does not finish what it is doing")
	}
	return fmt.Errorf("it did not end well after SIGTERM: %s", ending(u))
}

// ending says how a unit ended.
func ending(u dbusctl.Unit) string {
	status, signalled, ok := u.Exited()
	switch {
	case u.Result == "oom-kill":
		return "the kernel killed it, as memory was short (oom-kill)"
	case !ok:
		return "result " + u.Result
	case signalled:
		return "killed by " + signalName(status)
	}
	return fmt.Sprintf("exit status %d", status)
}

// unlessDead is err, or that the candidate is gone, which is the better reason.
func (r *run) unlessDead(ctx context.Context, err error) error {
	u, uerr := r.Unit(ctx, r.unit)
	if uerr != nil || u.ActiveState == "active" && int(u.MainPID) == r.main {
		return err
	}
	return fmt.Errorf("it ended after READY: %s", ending(u))
}

// whyNotStarted is the reason of a start that failed.
func (r *run) whyNotStarted(ctx context.Context, err error) error {
	var job *dbusctl.JobError
	if !errors.As(err, &job) {
		return err
	}
	if job.Result == "dependency" {
		return impossible("journalctl -u '"+r.plan.Name+"*'", "systemd could not open its sockets")
	}
	u, uerr := r.Unit(ctx, r.unit)
	if uerr != nil {
		return err
	}
	status, signalled, ok := u.Exited()
	switch {
	case u.Result == "timeout":
		return fmt.Errorf("it was not READY within %s", r.plan.startTimeout)
	case u.Result == "protocol":
		return errors.New("it ended with status 0 before READY")
	case u.Result == "resources", ok && !signalled && status >= firstOfSystemd && status <= lastOfSystemd && status != statusExec:
		return impossible("journalctl -u "+r.unit, "systemd could not set its sandbox up (%s)", ending(u))
	}
	return fmt.Errorf("it ended before READY: %s", ending(u))
}

// Exit statuses of systemd's own, from between fork and exec: systemd.exec(5), "Process Exit Codes". 203 is that the
// program could not be executed, which is the program's fault.
const (
	firstOfSystemd = 200
	lastOfSystemd  = 243
	statusExec     = 203
)

// accept opens a connection to each socket, and waits until the candidate has accepted it.
func (r *run) accept(ctx context.Context) error {
	for _, s := range r.plan.Sockets {
		if !s.stream() || !s.asked {
			continue
		}
		if err := r.acceptOn(ctx, s); err != nil {
			return fmt.Errorf("socket %q (%s): %w", s.Name, s.Address, err)
		}
	}
	return nil
}

func (r *run) acceptOn(ctx context.Context, s Socket) error {
	ctx, cancel := context.WithTimeout(ctx, acceptTimeout)
	defer cancel()
	conn, err := r.ns.dial(ctx, s.Network, s.dial())
	if err != nil {
		return err
	}
	defer conn.Close()
	owner, err := r.ns.whose(ctx, conn, r.main, nil)
	switch {
	case errors.Is(err, sockowner.ErrClosed), owner == sockowner.Mine:
		return nil
	case owner == sockowner.Unknown:
		r.plan.differ("who accepts on %s was not to be seen: %v", s.Address, err)
		return nil
	case owner == sockowner.Other:
		return errors.New("another process than the candidate's accepted a connection")
	}
	return fmt.Errorf("it did not accept a connection within %s", acceptTimeout)
}

// memory is the most that the candidate has had.
func (r *run) memory(ctx context.Context) uint64 {
	if all, err := r.Settings(ctx, r.unit); err == nil {
		for _, key := range []string{"MemoryPeak", "MemoryCurrent"} { // the first one since 256
			if n, err := strconv.ParseUint(all[key], 10, 64); err == nil && n > 0 && n != 1<<64-1 {
				return n
			}
		}
	}
	var sum uint64 // without the controller of memory
	for _, pid := range append(sockowner.Members(r.main, sockowner.Table()), r.main) {
		sum += highWater(pid)
	}
	return sum
}

// highWater is VmHWM of a process in bytes.
func highWater(pid int) uint64 {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0
	}
	for line := range strings.Lines(string(data)) {
		if rest, ok := strings.CutPrefix(line, "VmHWM:"); ok {
			var kb uint64
			fmt.Sscan(rest, &kb)
			return kb << 10
		}
	}
	return 0
}
