package upgrade

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/zdt-dev/zdt/handoff/control"
	"github.com/zdt-dev/zdt/journal"
	"github.com/zdt-dev/zdt/release"
)

// Options are what the operator asked for and what the unit's policy says.
type Options struct {
	Service string
	Binary  string // file to upgrade to
	SHA256  string // expected, hex; "" for any
	Why     string

	Bake         time.Duration // probation of the candidate between READY and commit
	ReadyTimeout time.Duration // bound on fork → READY
	DrainTimeout time.Duration // bound on commit → exit
	Wait         time.Duration // for the lock: 0 not at all, negative without bound
}

// Engine carries one transaction out.
type Engine struct {
	Options Options
	Host    Host
	Store   *release.Store
	// LockPath is the service's lock file.
	LockPath string
	Who      release.Who
	// Check looks at the file before anything is changed; its error says what
	// is wrong with it.
	Check func(path string) error
	// Observe is told of every phase; it must not block.
	Observe func(Update)
	// ExitCode maps an outcome to the exit code that history keeps.
	ExitCode func(Report) int
}

// settle is the shortest probation of a candidate. A program that falls over
// its first request or its first goroutine after READY does so within a few
// milliseconds; before the commit that costs nothing but this time.
const settle = 50 * time.Millisecond

// slack is added to the runtime's own deadlines: it decides first, and zdt only
// when it does not.
const slack = 5 * time.Second

// run is the state of one transaction; one goroutine owns it.
type run struct {
	Engine
	ctx    context.Context // the operator's; ends with an interrupt
	report Report
	txn    release.Txn
	to     release.Release
	unit   Unit
	client *control.Client // commands to the incumbent
	ev     *evidence
	story  *story
	cursor string

	phase      Phase
	phaseStart time.Time
}

// Failure is an error that knows what it means for the operator.
type Failure struct {
	Outcome Outcome
	Reason  string // stable word
	Err     error
	Hint    string
}

func (f *Failure) Error() string { return f.Err.Error() }
func (f *Failure) Unwrap() error { return f.Err }

func refuse(hint string, format string, args ...any) *Failure {
	return &Failure{Outcome: Refused, Err: fmt.Errorf(format, args...), Hint: hint}
}

// Run carries the transaction out and returns its report; the report always
// says what the state of the service is. When ctx ends before the commit the
// handoff is undone, after it the rest is only shortened.
func (e Engine) Run(ctx context.Context) Report {
	r := &run{Engine: e, ctx: ctx}
	r.report = Report{Schema: "zdt.upgrade/1", Service: e.Options.Service, StartedAt: e.Host.Now()}
	err := r.transact()
	r.conclude(err)
	return r.report
}

func (r *run) transact() error {
	r.begin(Preflight, "")
	txid, err := release.NewTxID()
	if err != nil {
		return err
	}
	r.report.TxID = txid
	lock, err := release.Acquire(r.ctx, r.LockPath, release.Holder{TxID: txid, Phase: release.PhasePreflight, Since: r.Host.Now(), Who: r.Who}, r.Options.Wait)
	if err != nil {
		return r.lockFailed(err)
	}
	defer lock.Release()
	if err := r.preflight(); err != nil {
		return err
	}
	defer r.client.Close()
	r.end(Done, fmt.Sprintf("pid %d, generation %d", r.unit.MainPID, r.report.Generation))

	r.begin(Stage, r.Options.Binary)
	if err := r.stage(); err != nil {
		return err
	}
	if r.report.Outcome == Unchanged {
		r.end(Done, "this content serves already")
		return nil
	}
	r.end(Done, r.to.ID)
	return r.handoff()
}

// handoff is everything from the trigger on: whatever fails here is undone.
func (r *run) handoff() error {
	defer r.closeEvidence()
	r.begin(Trigger, "")
	if err := r.trigger(); err != nil {
		return r.undo(err)
	}
	r.end(Done, "SIGUSR2 to the main process")
	for _, step := range []struct {
		phase Phase
		do    func() (string, error)
	}{
		{Listen, r.listen},
		{Bake, r.bake},
		{Commit, r.commit},
		{Drain, r.drain},
		{Exit, r.exit},
	} {
		r.begin(step.phase, "")
		text, err := step.do()
		if err != nil {
			return r.undo(err)
		}
		r.end(Done, text)
	}
	r.begin(Record, "")
	if err := r.record(); err != nil {
		return err
	}
	r.end(Done, "current → "+r.to.ID)
	return nil
}

// stage makes the release and the first record.
func (r *run) stage() error {
	to, err := r.Store.Stage(r.ctx, r.Options.Binary, release.StageOptions{SHA256: r.Options.SHA256})
	if err != nil {
		return &Failure{Outcome: Refused, Err: fmt.Errorf("stage release: %w", err), Hint: hintOf(err)}
	}
	r.to = to
	r.report.To = describe(to)
	current, err := r.Store.Current()
	if err == nil && current.ID == to.ID && r.report.From.ID == to.ID {
		r.report.Outcome = Unchanged
	}
	return nil
}

// writeAhead records the phase that is about to begin.
func (r *run) writeAhead(p Phase) error {
	r.txn.Phase = release.Phase(p)
	if err := r.Store.WriteTxn(r.txn); err != nil {
		return fmt.Errorf("write-ahead record: %w", err)
	}
	return nil
}

func (r *run) trigger() error {
	r.txn = release.Txn{TxID: r.report.TxID, Kind: release.KindUpgrade, To: r.to.ID, Started: r.report.StartedAt, Who: r.Who, Why: r.Options.Why}
	if r.report.From != nil {
		r.txn.From = r.report.From.ID
	}
	var err error
	if r.txn.Runner, err = release.ProcOf(os.Getpid()); err != nil {
		return err
	}
	if r.txn.Incumbent, err = release.ProcOf(r.unit.MainPID); err != nil {
		return refuse("look at: systemctl status "+r.unit.Name, "main process %d is gone", r.unit.MainPID)
	}
	if err := r.writeAhead(Trigger); err != nil {
		return &Failure{Outcome: Refused, Err: err, Hint: "is the disk full?"}
	}
	if r.cursor, err = r.Host.Cursor(r.ctx); err != nil {
		r.warn("the journal cannot be read: %v", err)
	}
	r.Host.Write(r.event(journal.UpgradeBegin))
	r.story = follow(r.ctx, r.Host, r.cursor, r.report.TxID, err == nil)

	watch, err := r.Host.Control(r.ctx)
	if err != nil {
		return refuse("", "connect to the runtime: %w", err)
	}
	if r.ev, err = gather(context.WithoutCancel(r.ctx), r.Host, watch, r.unit); err != nil {
		return refuse("", "watch the service: %w", err)
	}
	ready := r.Options.ReadyTimeout
	arm := control.Arm{TxID: r.report.TxID, Exe: r.to.Path, Hold: true, HoldFor: r.probation() + r.holdMargin(), ReadyTimeout: ready}
	if _, err := r.client.Arm(r.ctx, arm); err != nil {
		return refuse("see what goes on: zdt status "+r.Options.Service, "the running service refuses a handoff: %w", err)
	}
	if err := r.Host.Signal(r.ctx, syscall.SIGUSR2); err != nil {
		r.client.Disarm(context.WithoutCancel(r.ctx), r.report.TxID)
		return refuse(hintOf(err), "trigger: %w", err)
	}
	return nil
}

// probation is how long the candidate is watched between READY and commit.
func (r *run) probation() time.Duration { return max(r.Options.Bake, settle) }

// holdMargin is how much longer than the probation the incumbent waits for
// zdt's decision before it decides by itself and aborts.
func (r *run) holdMargin() time.Duration { return 15 * time.Second }

// listen waits for READY.
func (r *run) listen() (string, error) {
	if err := r.writeAhead(Listen); err != nil {
		return "", err
	}
	limit := r.Options.ReadyTimeout + slack
	err := r.ev.until(r.ctx, limit, func() (verdict, error) {
		if v, err := r.judgeHandoff(); v != undecided {
			return v, err
		}
		if s := r.ev.status; s.Phase == control.Held && mine(s, r.report.TxID) {
			return reached, nil
		}
		return undecided, nil
	})
	if errors.Is(err, errLimit) {
		err = fmt.Errorf("the candidate was not READY within %s", r.Options.ReadyTimeout)
	}
	if err != nil {
		return "", err
	}
	h := r.ev.status.Handoff
	return fmt.Sprintf("pid %d READY after %s", h.Candidate, round(h.ReadyAt.Sub(h.StartedAt))), nil
}

// bake watches the candidate on probation: only new connections see it, and
// the incumbent can take everything back.
func (r *run) bake() (string, error) {
	if err := r.writeAhead(Bake); err != nil {
		return "", err
	}
	d := r.probation()
	err := r.ev.until(r.ctx, d, r.judgeHandoff)
	if !errors.Is(err, errLimit) {
		return "", err
	}
	return "alive for " + round(d), nil
}

// judgeHandoff fails as soon as any source says that the handoff in progress
// cannot come to a good end any more.
func (r *run) judgeHandoff() (verdict, error) {
	if err := r.ev.meet(r.Host); err != nil {
		return failed, err
	}
	if r.ev.candidate != nil {
		r.report.Candidate = r.ev.candidate.pid
	}
	s := r.ev.status
	switch {
	case s.Last != nil && s.Last.TxID == r.report.TxID && !s.Last.Committed:
		if s.Last.Candidate != 0 {
			r.report.Candidate = s.Last.Candidate
		}
		// Wait for the candidate's end, so that its exit status and its last
		// words are there to be shown.
		if s.Phase == control.Aborting && s.Last.Exit == nil && s.Last.Reason != string(journal.ReasonStopping) {
			return undecided, nil
		}
		return failed, &Failure{Reason: s.Last.Reason, Err: errors.New(s.Last.Detail)}
	case s.Phase == control.Stopping || s.Phase == control.Exited || r.ev.unit.ActiveState == "deactivating":
		return failed, &Failure{Reason: string(journal.ReasonStopping), Err: errors.New("the service was told to stop during the upgrade")}
	case r.ev.incumbent.isGone() || r.ev.watchErr != nil:
		return failed, &Failure{Reason: "incumbent-died", Err: errors.New("the running process ended during the upgrade")}
	case r.ev.candidate != nil && r.ev.candidate.isGone():
		return undecided, nil // the incumbent reaps it and says how it ended
	}
	return undecided, nil
}

// commit makes the candidate the service.
func (r *run) commit() (string, error) {
	if r.ev.candidate == nil || r.ev.candidate.isGone() {
		return "", errors.New("the candidate ended")
	}
	var err error
	if r.txn.Candidate, err = release.ProcOf(r.ev.candidate.pid); err != nil {
		return "", errors.New("the candidate ended")
	}
	if err := r.writeAhead(Commit); err != nil {
		return "", err
	}
	// From here on an interrupt does not stop anything half-way.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(r.ctx), 2*slack)
	defer cancel()
	if _, err := r.client.Commit(ctx, r.report.TxID); err != nil {
		return "", fmt.Errorf("commit: %w", err)
	}
	err = r.ev.until(ctx, slack, func() (verdict, error) {
		if r.ev.unit.MainPID == r.ev.candidate.pid {
			return reached, nil
		}
		return r.judgeDrain()
	})
	if errors.Is(err, errLimit) {
		err = fmt.Errorf("systemd keeps %d as the main process, and not the candidate %d: is NotifyAccess= something else than main?", r.ev.unit.MainPID, r.ev.candidate.pid)
	}
	if err != nil {
		return "", err
	}
	r.Host.Write(r.event(journal.UpgradeCommit))
	return fmt.Sprintf("main process is %d", r.ev.candidate.pid), nil
}

// judgeDrain fails when the new main process is lost.
func (r *run) judgeDrain() (verdict, error) {
	s := r.ev.status
	switch {
	case s.TookOver && s.Last != nil && s.Last.TxID == r.report.TxID:
		return failed, &Failure{Reason: s.Last.Reason, Err: errors.New(s.Last.Detail)}
	case r.ev.candidate.isGone() && (r.ev.incumbent.isGone() || r.ev.watchErr != nil):
		return failed, &Failure{Reason: string(journal.ReasonCrashed), Err: errors.New("the new main process ended right after the commit")}
	}
	return undecided, nil
}

// drain waits until the incumbent has finished its connections.
func (r *run) drain() (string, error) {
	if err := r.writeAhead(Drain); err != nil {
		r.warn("%v", err) // committed: the record is behind, the service is not
	}
	var last string
	err := r.ev.until(r.ctx, r.Options.DrainTimeout+2*slack, func() (verdict, error) {
		c := r.ev.status.Connections
		r.report.Connections = &c
		if text := drainText(c); text != last {
			last = text
			r.progress(text)
		}
		if r.ev.incumbent.isGone() || r.ev.status.Phase == control.Exited {
			if !r.ev.candidate.isGone() {
				return reached, nil
			}
		}
		return r.judgeDrain()
	})
	switch {
	case errors.Is(err, errLimit):
		r.warn("the previous process %d still drains after %s; it ends by itself, see: zdt status %s", r.ev.incumbent.pid, r.Options.DrainTimeout+2*slack, r.Options.Service)
		return last, nil
	case err != nil && r.ctx.Err() != nil:
		r.warn("interrupted while the previous process %d drains; it ends by itself", r.ev.incumbent.pid)
		return last, nil
	}
	return last, err
}

// exit makes sure of the end: the incumbent is gone, the candidate is the main
// process of an active unit and answers as such.
func (r *run) exit() (string, error) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(r.ctx), 2*slack)
	defer cancel()
	still := r.ctx.Err() != nil || !r.ev.incumbent.isGone() && r.ev.status.Phase != control.Exited
	if !still {
		err := r.ev.until(ctx, slack, func() (verdict, error) {
			if r.ev.incumbent.isGone() {
				return reached, nil
			}
			return undecided, nil
		})
		if err != nil {
			r.warn("the previous process %d has finished but does not exit", r.ev.incumbent.pid)
		}
	}
	u, err := r.Host.Unit(ctx)
	if err != nil {
		return "", err
	}
	if u.MainPID != r.ev.candidate.pid || r.ev.candidate.isGone() {
		return "", &Failure{Reason: string(journal.ReasonCrashed), Err: errors.New("the new main process ended right after the commit")}
	}
	c, err := r.Host.Control(ctx)
	if err != nil {
		return "", fmt.Errorf("ask the new process: %w", err)
	}
	defer c.Close()
	s, err := c.Status(ctx)
	if err != nil {
		return "", fmt.Errorf("ask the new process: %w", err)
	}
	if s.PID != u.MainPID {
		return "", fmt.Errorf("process %d answers on the control socket, the main process is %d", s.PID, u.MainPID)
	}
	r.report.Generation = s.Generation
	if still {
		return fmt.Sprintf("pid %d still drains", r.ev.incumbent.pid), nil
	}
	return fmt.Sprintf("pid %d ended", r.ev.incumbent.pid), nil
}

// record makes the release the current one: last, when nothing can fail any more.
func (r *run) record() error {
	if err := r.writeAhead(Record); err != nil {
		r.warn("%v", err)
	}
	if err := r.Store.Flip(r.to); err != nil {
		return &Failure{Outcome: NotRestored, Err: fmt.Errorf("the new release serves, but a restart would start the old one: flip current: %w", err),
			Hint: "mend the cause and run the same zdt upgrade again"}
	}
	r.report.Outcome, r.report.Changed = Upgraded, true
	return nil
}

// closeEvidence ends the watching goroutines.
func (r *run) closeEvidence() {
	if r.ev != nil {
		r.ev.close()
	}
	if r.story != nil {
		r.report.Story, r.report.Journal = r.story.finish()
	}
}

func mine(s control.Status, txid string) bool { return s.Handoff != nil && s.Handoff.TxID == txid }

// releaseOf returns the ID of the release that path lies in, or "".
func releaseOf(store *release.Store, path string) string {
	rel, err := filepath.Rel(filepath.Join(store.Dir(), "releases"), path)
	if err != nil || strings.HasPrefix(rel, "..") {
		return ""
	}
	id, _, _ := strings.Cut(rel, string(filepath.Separator))
	return id
}
