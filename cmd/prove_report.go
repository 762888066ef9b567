package cmd

import (
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/zdt-dev/zdt/internal/load"
)

// proveDoc is the document of zdt prove.
type proveDoc struct {
	Schema   string   `json:"schema"` // zdt.prove/1
	Outcome  string   `json:"outcome"`
	ExitCode ExitCode `json:"exit_code"`
	Changed  bool     `json:"changed"` // another process serves than before; never another release
	TxID     string   `json:"txid"`    // of the last handoff
	Service  string   `json:"service"`
	// Runtime is "helper" where zdt run starts the program. What such a program does with its
	// connections is its own affair: that clients have to reconnect is expected then.
	Runtime string `json:"runtime,omitempty"`

	Cause  string      `json:"cause,omitempty"` // what clients noticed, or what went wrong
	Hint   string      `json:"hint,omitempty"`
	Target proveTarget `json:"target"`

	Clients int           `json:"clients"`
	Fresh   int           `json:"fresh"` // of them, with a connection for each request
	Think   time.Duration `json:"think"` // nanoseconds

	proveCounts             // of the whole time
	During      proveCounts `json:"during"` // the handoffs, from the signal to the end of the old process
	Rest        proveCounts `json:"rest"`   // of the time

	Handoffs []proveHandoff `json:"handoffs"`
	Timeline proveTimeline  `json:"timeline"`
	Failures []proveFailure `json:"failures,omitempty"` // the first ones
	Warnings []string       `json:"warnings,omitempty"`

	StartedAt time.Time `json:"started_at"`
	EndedAt   time.Time `json:"ended_at"`
}

// The outcomes.
const (
	proveProved      = "proved"      // nothing was lost
	proveNoticed     = "noticed"     // clients noticed something
	proveUndone      = "undone"      // a handoff was; the old process serves on
	proveRefused     = "refused"     // there was no handoff
	proveUnfinished  = "unfinished"  // an old process still has connections
	proveInterrupted = "interrupted" // by a signal
	proveUnknown     = "unknown"     // the main process went away
)

type proveTarget struct {
	Network string `json:"network"`
	Address string `json:"address"`
	Socket  string `json:"socket,omitempty"` // its name; absent with --url
	Host    string `json:"host"`
	Path    string `json:"path"`
}

// proveCounts is what clients saw in some time.
type proveCounts struct {
	Requests     int         `json:"requests"` // answered or failed
	Failed       int         `json:"failed"`
	Refused      int         `json:"refused"`
	Reconnected  int         `json:"reconnected"`   // clients that keep their connection, and had to open another
	PoliteCloses int         `json:"polite_closes"` // announced with an answer
	IdleCloses   int         `json:"idle_closes"`   // between two requests, unannounced
	Statuses     map[int]int `json:"statuses"`      // answers by their status

	Latency proveLatency `json:"latency"`
}

// proveLatency is in nanoseconds.
type proveLatency struct {
	P50 time.Duration `json:"p50"`
	P99 time.Duration `json:"p99"`
	Max time.Duration `json:"max"`
}

// proveTimeline counts answers by the time they came at.
type proveTimeline struct {
	Every   time.Duration `json:"every"` // nanoseconds
	Answers []int         `json:"answers"`
}

type proveFailure struct {
	At     time.Duration `json:"at"` // since the start of the load; nanoseconds
	Kind   string        `json:"kind"`
	During bool          `json:"during"` // a handoff
	Fresh  bool          `json:"fresh"`  // a client with a connection for each request
	Text   string        `json:"text"`
}

func countsOf(p load.Part) proveCounts {
	c := proveCounts{
		Requests: p.Requests, Failed: p.Failed, Refused: p.Refused, Reconnected: p.Reconnects, PoliteCloses: p.PoliteCloses,
		IdleCloses: p.IdleCloses, Statuses: p.Statuses, Latency: proveLatency{p.P50, p.P99, p.Max},
	}
	if c.Statuses == nil {
		c.Statuses = map[int]int{}
	}
	return c
}

// errors5xx counts answers by which a service says that it has failed.
func (c proveCounts) errors5xx() (n int) {
	for status, count := range c.Statuses {
		if status >= 500 {
			n += count
		}
	}
	return n
}

// good counts answers with what was asked for, or a word on where it is.
func (c proveCounts) good() (n int) {
	for status, count := range c.Statuses {
		if status < 400 {
			n += count
		}
	}
	return n
}

// timelineSlots bounds the length of a timeline: it fits into a terminal.
const timelineSlots = 60

// fill takes down what the clients saw.
func (d *proveDoc) fill(r load.Report) {
	d.proveCounts, d.During, d.Rest = countsOf(r.Part), countsOf(r.Inside), countsOf(r.Outside)
	for _, f := range r.Failures {
		d.Failures = append(d.Failures, proveFailure{At: f.At, Kind: string(f.Kind), During: f.Window, Fresh: f.Client == load.Fresh, Text: clean(f.Text)})
	}
	width := max(1, (len(r.Buckets)+timelineSlots-1)/timelineSlots)
	d.Timeline = proveTimeline{Every: time.Duration(width) * proveBucket, Answers: make([]int, (len(r.Buckets)+width-1)/width)}
	for i, b := range r.Buckets {
		for _, n := range b.Versions {
			d.Timeline.Answers[i/width] += n
		}
	}
}

// judge decides the outcome. err is what went wrong beside the clients. What it returns is nil if all is well.
func (d *proveDoc) judge(err error) error {
	d.warn()
	noticed := d.noticed()
	verdict := d.decide(err, noticed)
	if verdict == nil {
		d.Outcome = proveProved
		return nil
	}
	switch {
	case err == nil:
	case noticed != "":
		verdict.Err = errors.Join(verdict.Err, errors.New(noticed))
	case len(d.Handoffs) > 0:
		verdict.Details = append(verdict.Details, "the clients noticed nothing")
	}
	for _, f := range d.Failures {
		when := "at another time"
		if f.During {
			when = "during the handoff"
		}
		verdict.Details = append(verdict.Details, fmt.Sprintf("+%.3f s, %s: %s: %s", f.At.Seconds(), when, f.Kind, f.Text))
	}
	d.ExitCode, d.Cause, d.Hint = verdict.Code, strings.ReplaceAll(verdict.Error(), "\n", "; "), verdict.Hint
	return verdict
}

func (d *proveDoc) decide(err error, noticed string) *Failure {
	code := codeOf(err)
	switch {
	case err == nil && noticed == "":
		return nil
	case err == nil:
		d.Outcome = proveNoticed
		return fail(ExitUnexpected, "what happened when: "+d.journal(), "%s", noticed)
	case code == ExitInt || code == ExitTerm || code == ExitHangup:
		d.Outcome = proveInterrupted
		var told *Failure
		switch n := len(d.Handoffs); {
		case errors.As(err, &told): // in the middle of a handoff
			return &Failure{Code: code, Err: err, Hint: told.Hint}
		case n == 0:
			return fail(code, "", "stopped before there was a handoff: %w", err)
		default:
			return fail(code, "", "stopped after %s: %w", plural(n, "handoff"), err)
		}
	case code == ExitRolledBack:
		d.Outcome = proveUndone
	case code == ExitDeadline:
		d.Outcome = proveUnfinished
	case code == ExitNotRestored:
		d.Outcome = proveUnknown
	default:
		d.Outcome = proveRefused
	}
	return &Failure{Code: code, Err: err, Hint: hintOf(err)}
}

// journal is the command that shows what the service wrote in the time of the last handoff.
func (d *proveDoc) journal() string {
	if d.TxID == "" {
		return "journalctl -u " + d.Service
	}
	return "journalctl ZDT_TXID=" + d.TxID
}

// noticed says in one line what clients noticed that they should not have. An error status is the service's affair,
// unless it only ever comes with a handoff.
func (d *proveDoc) noticed() string {
	var parts []string
	for _, n := range []struct {
		during, all int
		noun, what  string
	}{
		{d.During.Failed, d.Failed, "request", "lost"},
		{d.During.Refused, d.Refused, "connection", "refused"},
	} {
		if n.all == 0 {
			continue
		}
		verb := "were"
		if n.all == 1 {
			verb = "was"
		}
		text := fmt.Sprintf("%s %s %s", plural(n.all, n.noun), verb, n.what)
		switch {
		case n.during == n.all:
			text += " during the handoff"
		case n.during == 0:
			text += ", all of them outside the handoff"
		default:
			text += fmt.Sprintf(", %d of them during the handoff", n.during)
		}
		parts = append(parts, text)
	}
	if n := d.During.errors5xx(); n > 0 && d.Rest.errors5xx() == 0 {
		parts = append(parts, plural(n, "answer")+" had a status of 500 or more during the handoff, and none at other times")
	}
	return strings.Join(parts, "; ")
}

// warn notes what makes the proof weaker than it looks.
func (d *proveDoc) warn() {
	add := func(format string, args ...any) { d.Warnings = append(d.Warnings, fmt.Sprintf(format, args...)) }
	if d.Requests > d.Failed && d.good() == 0 {
		add("every answer had an error status: choose with --path what the service serves")
	} else if n := d.errors5xx(); n > 0 && d.Rest.errors5xx() > 0 {
		add("%s had a status of 500 or more, %d of them during the handoff", plural(n, "answer"), d.During.errors5xx())
	}
	committed := false
	for _, h := range d.Handoffs {
		committed = committed || h.Outcome == "committed"
		if c := h.Connections; c != nil && c.Cut > 0 {
			add("pid %d cut %s that did not end in time", h.Incumbent, plural(c.Cut, "connection"))
		}
	}
	if committed && d.During.Requests == 0 {
		add("no request was under way during the handoff: raise --clients")
	}
}
