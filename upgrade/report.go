package upgrade

import (
	"time"

	"github.com/zdt-dev/zdt/handoff/control"
	"github.com/zdt-dev/zdt/handoffcheck"
	"github.com/zdt-dev/zdt/release"
)

// Phase is a step of the transaction.
type Phase string

const (
	Preflight Phase = "preflight"
	Stage     Phase = "stage"
	Rehearse  Phase = "rehearse" // only with Engine.Rehearsal
	Trigger   Phase = "trigger"
	Listen    Phase = "listen"
	Bake      Phase = "bake"
	Commit    Phase = "commit"
	Drain     Phase = "drain"
	Exit      Phase = "exit"
	Record    Phase = "record"
	Rollback  Phase = "rollback" // only after a failure behind the trigger
)

// Phases returns the steps of an upgrade that succeeds, in order.
func Phases() []Phase {
	return []Phase{Preflight, Stage, Trigger, Listen, Bake, Commit, Drain, Exit, Record}
}

// State is how far a phase has come.
type State string

const (
	Running State = "running"
	Done    State = "done"
	Skipped State = "skipped"
	Failed  State = "failed"
)

// Update is told to the observer when a phase begins, makes progress or ends.
type Update struct {
	Phase Phase     `json:"phase"`
	State State     `json:"state"`
	Text  string    `json:"text,omitempty"` // what is known so far, one line
	At    time.Time `json:"at"`
	// Elapsed is the time since the phase began (nanoseconds).
	Elapsed time.Duration `json:"elapsed"`
}

// Outcome is the verdict.
type Outcome string

const (
	Upgraded    Outcome = "upgraded"     // the new release serves
	Unchanged   Outcome = "unchanged"    // it served already
	Refused     Outcome = "refused"      // nothing was changed
	RolledBack  Outcome = "rolled-back"  // failed; the old release serves and is healthy
	NotRestored Outcome = "not-restored" // failed; the service needs a person
	Interrupted Outcome = "interrupted"  // stopped half-way by a signal, undone
	Locked      Outcome = "locked"       // another zdt works on this service, or somebody holds it
	Frozen      Outcome = "frozen"       // the candidate is on probation until somebody decides
	Aborted     Outcome = "aborted"      // undone because an operator wanted that; the old release serves
)

// Report is the result of a transaction; it is the document "-o json" prints.
// Fields are only ever added.
type Report struct {
	Schema   string  `json:"schema"` // zdt.upgrade/1
	Outcome  Outcome `json:"outcome"`
	ExitCode int     `json:"exit_code"`
	Changed  bool    `json:"changed"` // another release serves than before
	TxID     string  `json:"txid,omitempty"`
	Service  string  `json:"service"`
	// Kind is what was asked for: upgrade or rollback. The outcome of a rollback that came to a good end
	// is "upgraded" as well: the release that was asked for serves.
	Kind release.Kind `json:"kind"`
	Who  release.Who  `json:"who"`
	Why  string       `json:"why,omitempty"`

	From *Release `json:"from,omitempty"`
	To   *Release `json:"to,omitempty"`

	// Phase is where a failed transaction failed.
	Phase Phase `json:"phase,omitempty"`
	// Cause is what failed, in one line; Reason its stable word where there is one.
	Cause  string `json:"cause,omitempty"`
	Reason string `json:"reason,omitempty"`
	// Action is what was done about it, Hint the next command or step.
	Action string `json:"action,omitempty"`
	Hint   string `json:"hint,omitempty"`
	// CandidateLog are the candidate's last journal lines, LogCut how many
	// earlier ones were left out.
	CandidateLog []string `json:"candidate_log,omitempty"`
	LogCut       int      `json:"log_cut,omitempty"`

	Incumbent int `json:"incumbent,omitempty"` // pid
	Candidate int `json:"candidate,omitempty"` // pid
	// Generation is that of the process that serves at the end.
	Generation  int             `json:"generation,omitempty"`
	Connections *control.Counts `json:"connections,omitempty"` // the incumbent's, at its end
	// Gap is how long nobody served (nanoseconds), where a program cannot run twice at a time.
	Gap time.Duration `json:"gap,omitempty"`
	// Lost counts connections that had moved to the new process and ended with it:
	// it died, and another serves.
	Lost     int      `json:"connections_lost,omitempty"`
	Warnings []string `json:"warnings,omitempty"`
	// Journal says how much of the story the journal told: complete, partial, absent.
	Journal string `json:"journal,omitempty"`

	// Rehearsal is what became of it, where one was wanted.
	Rehearsal *RehearsalReport `json:"rehearsal,omitempty"`
	// Findings are what zdt check found in the unit and the running program, the worst first; AcceptedRisks the IDs of blockers
	// that --accept-risk or the unit named.
	Findings      []handoffcheck.Finding `json:"findings,omitempty"`
	AcceptedRisks []string               `json:"accepted_risks,omitempty"`
	// Gates are what the candidate had to pass.
	Gates []GateResult `json:"gates,omitempty"`
	// Hooks are those that ran, in their order.
	Hooks []HookRun `json:"hooks,omitempty"`

	// Story are the events of this transaction in the journal, in order.
	Story []StoryLine `json:"story,omitempty"`

	// Pruned are the old releases that were deleted when all was done, oldest first.
	Pruned []PrunedRelease `json:"pruned,omitempty"`

	// Deadline is when a frozen transaction is undone unless somebody decides.
	Deadline *time.Time `json:"deadline,omitempty"`

	StartedAt time.Time      `json:"started_at"`
	EndedAt   time.Time      `json:"ended_at"`
	Timings   []Timing       `json:"timings,omitempty"`
	Holder    map[string]any `json:"holder,omitempty"` // of the lock, when Locked
}

// StoryLine is one journal event of the service, believed because journald
// says that its writer is inside the unit.
type StoryLine struct {
	At    time.Time `json:"at"`
	Event string    `json:"event"` // fork, listen, drain, exit, abort
	PID   int       `json:"pid"`
	Text  string    `json:"text"`
}

// Timing is how long a phase took (nanoseconds).
type Timing struct {
	Phase Phase         `json:"phase"`
	State State         `json:"state"`
	Took  time.Duration `json:"took"`
}

// PrunedRelease is a release that is gone.
type PrunedRelease struct {
	ID    string `json:"id"`
	Bytes int64  `json:"bytes"` // of its files
}

// Release is a release as reports show it.
type Release struct {
	ID      string `json:"id"` // <utc>-<sha12>
	SHA256  string `json:"sha256"`
	Path    string `json:"path"`
	Version string `json:"version,omitempty"` // from Go build information, where there is some
}
