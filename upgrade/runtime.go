package upgrade

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"syscall"
	"time"

	"github.com/zdt-dev/zdt/handoff/control"
	"github.com/zdt-dev/zdt/journal"
)

// This file is all that differs between the two runtimes, the program itself with
// the handoff library and the helper "zdt run" that starts a program of any kind:
//
//	                library                         helper
//	who answers     the program that serves         the helper, which stays
//	who serves      who answers                     App of its status
//	trigger         SIGUSR2                         a reload, which brings the unit's environment
//	committed       systemd's MainPID changes       MainPID stays, App is the candidate
//	drained         the incumbent has ended         its status has no Predecessor any more
//	new one dies    the incumbent serves on         the helper starts the old program again
//	in the drain
//	incumbent dies  before the commit: undone;      undone: systemd starts the service anew,
//	                in the drain: no harm           because the helper holds the sockets

func isHelper(s control.Status) bool { return s.Runtime == control.RuntimeHelper }

// helperOf is the pid of a helper, or 0.
func helperOf(s control.Status) int {
	if isHelper(s) {
		return s.PID
	}
	return 0
}

// serving is the process that serves, by the word of the runtime.
func serving(s control.Status) int {
	if isHelper(s) {
		return s.App
	}
	return s.PID
}

// said is the file that a helper says its program was started from. A program
// that is its own runtime has no say: the kernel knows.
func said(s control.Status) string {
	if isHelper(s) {
		return s.Exe
	}
	return ""
}

// said is the same of the candidate.
func (e *evidence) said() string {
	if e.helper {
		return e.exe
	}
	return ""
}

// up reports whether systemd holds the unit for running. It does so as well while
// ExecReload= runs.
func up(u Unit) bool { return u.ActiveState == "active" || u.ActiveState == "reloading" }

// incumbent is the process that was asked for the handoff, in words.
func (r *run) incumbent() string {
	what := "the running process"
	if isHelper(r.before) {
		what = "the helper"
	}
	return fmt.Sprintf("%s %d", what, r.unit.MainPID)
}

// deliver starts the handoff that was armed. A helper gets it by way of
// ExecReload=: only what systemd itself starts has the environment and the command that the
// unit has now, and "zdt handoff" passes them on.
func (r *run) deliver(ctx context.Context) (string, error) {
	switch {
	case !r.ev.helper:
		return "SIGUSR2 to the main process", r.Host.Signal(ctx, syscall.SIGUSR2)
	case !r.reloads():
		r.warn("ExecReload= of %s does not run zdt handoff: the new process gets the environment and the arguments of the running one", r.unit.Name)
		return "SIGUSR2 to the helper", r.Host.Signal(ctx, syscall.SIGUSR2)
	}
	r.ev.reload(r.Host)
	err := r.ev.until(ctx, 2*r.slack, func() (verdict, error) {
		switch s := r.ev.status; {
		case mine(s, r.report.TxID) || undone(s, r.report.TxID):
			return reached, nil
		case r.ev.reloadErr != nil:
			return failed, r.ev.reloadErr
		case r.ev.over():
			return failed, fmt.Errorf("%s has ended", r.incumbent())
		}
		return undecided, nil
	})
	if errors.Is(err, errLimit) || err != nil && errors.Is(err, context.DeadlineExceeded) { // the limit of both is the same
		err = errors.New("systemd's reload did not reach the helper in time")
	}
	return "reloaded by systemd", err
}

// reloads reports whether the handoff goes by way of ExecReload=.
func (r *run) reloads() bool { return r.ev.helper && slices.Contains(r.unit.ExecReload, "handoff") }

// reload begins a reload and notes its end.
func (e *evidence) reload(h Host) {
	ended := make(chan error, 1)
	e.reloads = ended
	e.wg.Go(func() { ended <- h.Reload(e.ctx) })
}

// reloaded waits for the end of ExecReload=, which looks no longer than to READY: what
// comes now shall not find a job of systemd in its way.
func (r *run) reloaded() error {
	err := r.ev.until(r.ctx, r.slack, func() (verdict, error) {
		if r.ev.reloads == nil {
			return reached, nil
		}
		return r.judgeHandoff()
	})
	if errors.Is(err, errLimit) {
		r.warn("systemd still reloads %s; see: %s", r.unit.Name, r.systemctl("list-jobs"))
		return nil
	}
	if r.ev.reloadErr != nil && err == nil {
		r.warn("the candidate is READY, but the reload that started it failed: %v", r.ev.reloadErr)
	}
	return err
}

// readyLimit bounds the wait for READY. The runtime's own limit is shorter, and
// its word comes with it. A program that cannot run twice at a time is stopped before.
func (r *run) readyLimit() time.Duration {
	limit := r.Options.ReadyTimeout + r.slack
	if r.ev.helper {
		limit += r.Options.DrainTimeout
	}
	return limit
}

// committed reports whether the candidate is the service.
func (e *evidence) committed(txid string) bool {
	if e.helper {
		return e.done(txid) && serving(e.status) == e.candidate.pid && e.unit.MainPID == e.incumbent.pid
	}
	return e.unit.MainPID == e.candidate.pid
}

// done reports whether the runtime says that txid's handoff was committed.
func (e *evidence) done(txid string) bool {
	l := e.status.Last
	return l != nil && l.TxID == txid && l.Committed
}

// whatCommitted is a commit in words.
func (r *run) whatCommitted() string {
	pid := r.ev.candidate.pid
	if !r.ev.helper {
		return fmt.Sprintf("main process is %d", pid)
	}
	if gap := r.ev.status.Last.Gap; gap > 0 {
		r.report.Gap = gap
		r.warn("nobody served for %s: the program cannot run twice at a time, and new clients waited", round(gap))
	}
	return fmt.Sprintf("pid %d serves", pid)
}

// notCommitted is the failure of a commit that was answered and did not show.
func (r *run) notCommitted() *Failure {
	pid := r.ev.candidate.pid
	if r.ev.helper {
		return failure(string(journal.ReasonProtocol), "%s has committed and does not say that %d serves", r.incumbent(), pid)
	}
	return &Failure{Reason: string(journal.ReasonSystemd), Hint: "it has to be NotifyAccess=main: " + r.systemctl("show -p NotifyAccess", r.unit.Name),
		Err: fmt.Errorf("systemd was told of the new main process %d and keeps %d", pid, r.ev.unit.MainPID)}
}

// newMain is systemd's main process once the candidate is the service.
func (e *evidence) newMain() int {
	if e.helper {
		return e.incumbent.pid
	}
	return e.candidate.pid
}

// asMain says in words what the candidate then is.
func (r *run) asMain() string {
	if r.ev.helper {
		return "under " + r.incumbent()
	}
	return "as the main process"
}

// draining returns the connections of the processes that drain, and whether
// anything is known of them. A helper sees no connections of the program but by what the
// program or the kernel tells it: all zero is ignorance there, and no news.
func (e *evidence) draining() (control.Counts, bool) {
	switch s := e.status; {
	case !e.helper:
		return s.Connections, s.Phase == control.Draining || s.Phase == control.Exited
	case s.Predecessor != nil:
		c := s.Predecessor.Connections
		return c, c != control.Counts{}
	}
	return control.Counts{}, false
}

// rolling bounds the time in which a helper replaces the workers but the first after the commit, or
// brings the earlier program back: one after the other, each within its time to be READY.
func (r *run) rolling() time.Duration {
	if w := r.before.Workers; w != nil {
		return time.Duration(w.Want-1) * (r.Options.ReadyTimeout + r.slack)
	}
	return 0
}

// replaced says how far that is; "" where there is but one worker.
func (e *evidence) replaced() string {
	w := e.status.Workers
	if w == nil {
		return ""
	}
	return fmt.Sprintf("%d of %d workers replaced", w.Want-w.Left, w.Want)
}

// finished reports whether the old processes have said their last word.
func (e *evidence) finished() bool {
	if e.helper {
		return e.status.Predecessor == nil
	}
	return e.status.Phase == control.Exited || e.over()
}

// left reports whether they have ended.
func (e *evidence) left() bool {
	if e.helper {
		return e.status.Predecessor == nil
	}
	return e.incumbent.isGone()
}

// toldToStop reports whether the unit is on its way down because somebody wants that. A
// helper ends when its program does, and then systemd goes the same way, but notes a result
// that is no success.
func (e *evidence) toldToStop(u Unit) bool {
	if e.helper && u.Result != "" && u.Result != "success" {
		return false
	}
	return u.ActiveState == "deactivating" || u.ActiveState == "inactive"
}

// settleProgram completes what is known of the old program's connections from the
// exit events that the helper wrote of its processes: how many they had when they were killed.
func (r *run) settleProgram() {
	cut, killed := 0, 0
	for _, e := range r.story.all(journal.Exit) {
		if e.PID == r.ev.candidate.pid {
			continue
		}
		cut += countsOf(e).Cut
		if e.Get(journal.FieldExitCode) == "killed" && e.Get(journal.FieldExitStatus) == "KILL" {
			killed = e.PID
		}
	}
	if cut > 0 {
		c := control.Counts{}
		if r.report.Connections != nil {
			c = *r.report.Connections
		}
		c.Cut = cut
		r.report.Connections = &c
		r.tellCut()
	} else if killed != 0 {
		r.warn("the previous process %d did not end within the drain timeout and was killed: clients may have noticed; to allow more time: %s",
			killed, r.zdt("init", r.Options.Service, "--drain-timeout D"))
	}
}
