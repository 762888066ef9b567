package rehearse

import (
	"fmt"
	"strings"
	"time"

	"github.com/zdt-dev/zdt/internal/health"
	"github.com/zdt-dev/zdt/release"
)

// Outcome is the verdict.
type Outcome string

const (
	Passed    Outcome = "passed"
	Failed    Outcome = "failed"     // something is wrong with the candidate
	NotPlayed Outcome = "impossible" // the service cannot be rehearsed; of the candidate nothing is known
)

// Phase is a step of a rehearsal.
type Phase string

const (
	Prepare Phase = "prepare"
	Ready   Phase = "ready"
	Accept  Phase = "accept"
	Gating  Phase = "gates"
	Stop    Phase = "stop"
)

// Result is the document of zdt rehearse. Fields are only ever added.
type Result struct {
	Schema   string       `json:"schema"` // zdt.rehearse/1
	Outcome  Outcome      `json:"outcome"`
	ExitCode int          `json:"exit_code"`
	Changed  bool         `json:"changed"` // never
	TxID     string       `json:"txid"`
	Service  string       `json:"service"`
	Release  string       `json:"release"`
	Path     string       `json:"path"` // the program
	Unit     string       `json:"unit"` // it ran in; its journal stays
	Who      *release.Who `json:"who,omitempty"`

	// Phase is where it failed, Cause why, in one line.
	Phase Phase  `json:"phase,omitempty"`
	Cause string `json:"cause,omitempty"`
	Hint  string `json:"hint,omitempty"`
	// Log are the last lines of the candidate, LogCut how many there were before.
	Log    []string `json:"log,omitempty"`
	LogCut int      `json:"log_cut,omitempty"`

	// ReadyAfter is the time from the start to READY, StopAfter from SIGTERM to the end (nanoseconds).
	ReadyAfter time.Duration `json:"ready_after,omitempty"`
	StopAfter  time.Duration `json:"stop_after,omitempty"`
	// MemoryPeak is the most memory that it had (bytes); 0: not known.
	MemoryPeak uint64 `json:"memory_peak,omitempty"`

	Sockets []Socket        `json:"sockets,omitempty"`
	Gates   []health.Result `json:"gates,omitempty"`
	Skipped []Skipped       `json:"skipped_gates,omitempty"`
	// Differences are what the rehearsal had otherwise than the service has.
	Differences []string `json:"differences,omitempty"`
	// Warnings are about this host: something of the rehearsal is left.
	Warnings []string `json:"warnings,omitempty"`

	StartedAt time.Time `json:"started_at"`
	EndedAt   time.Time `json:"ended_at"`
}

// FailedError is the error of a rehearsal that did not pass.
type FailedError struct{ Result Result }

func (e *FailedError) Error() string {
	if rest, ok := strings.CutPrefix(e.Result.Cause, "it "); ok {
		return "the new program " + rest
	}
	return e.Result.Cause
}

// Hint returns what to do about it.
func (e *FailedError) Hint() string { return e.Result.Hint }

// LastWords are the last lines that the candidate has written, and how many there were before.
func (e *FailedError) LastWords() ([]string, int) { return e.Result.Log, e.Result.LogCut }

// Err is nil if it passed.
func (r Result) Err() error {
	if r.Outcome == Passed {
		return nil
	}
	return &FailedError{r}
}

// Summary is what is worth knowing of a rehearsal that passed, in one line.
func (r Result) Summary() string {
	s := fmt.Sprintf("ready after %s, ended after %s", r.ReadyAfter.Round(time.Millisecond), r.StopAfter.Round(time.Millisecond))
	if r.MemoryPeak > 0 {
		s += fmt.Sprintf(", %d MiB of memory", (r.MemoryPeak+1<<20-1)>>20)
	}
	if n := len(r.Gates); n > 0 {
		s += fmt.Sprintf(", %s passed", count(n, "gate"))
	}
	if n := len(r.Skipped); n > 0 {
		s += fmt.Sprintf(", %s not asked", count(n, "gate"))
	}
	if n := len(r.Differences); n > 0 {
		s += ", " + count(n, "difference")
	}
	return s
}

func count(n int, what string) string {
	if n != 1 {
		what += "s"
	}
	return fmt.Sprintf("%d %s", n, what)
}
