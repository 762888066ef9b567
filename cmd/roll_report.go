package cmd

import (
	"cmp"
	"fmt"
	"strings"
	"time"

	"github.com/zdt-dev/zdt/release"
	"github.com/zdt-dev/zdt/upgrade"
)

// rollDoc is the document of a roll.
type rollDoc struct {
	Schema string `json:"schema"` // zdt.roll/1
	// Outcome: done, unchanged, refused (before the first instance), stopped, or undone (stopped, and all are back).
	Outcome  string       `json:"outcome"`
	ExitCode ExitCode     `json:"exit_code"`
	Changed  bool         `json:"changed"` // some instance serves another release than before
	Service  string       `json:"service"` // the template, web@
	Kind     release.Kind `json:"kind"`

	// Instances are those that the command is about, in the order of the roll.
	Instances []rollInstance `json:"instances"`
	// Stopped is the instance at which the roll stopped; the template, when that was not because of one.
	Stopped string `json:"stopped,omitempty"`
	Cause   string `json:"cause,omitempty"`
	Hint    string `json:"hint,omitempty"`

	StartedAt time.Time `json:"started_at"`
	EndedAt   time.Time `json:"ended_at"`
}

// rollState is how far a roll has come with an instance.
type rollState string

const (
	rollPending   rollState = "pending" // not touched
	rollChanged   rollState = "changed"
	rollUnchanged rollState = "unchanged" // there is nothing to do
	rollFailed    rollState = "failed"
	rollBack      rollState = "brought-back" // changed, and taken back because another one failed
	rollLeftOut   rollState = "left-out"     // it is stopped
)

// rollInstance is an instance in a roll.
type rollInstance struct {
	Service  string    `json:"service"`
	State    rollState `json:"state"`
	ExitCode int       `json:"exit_code"`      // of its own transaction
	From     string    `json:"from,omitempty"` // release IDs: what served before,
	To       string    `json:"to,omitempty"`   // what it was to go to
	Runs     string    `json:"runs,omitempty"` // and what serves now, or would after a start
	Version  string    `json:"version,omitempty"`
	Cause    string    `json:"cause,omitempty"`

	Report *upgrade.Report `json:"report,omitempty"` // of its transaction
	Back   *upgrade.Report `json:"back,omitempty"`   // of the one that brought it back
}

// tell takes over how a transaction ended.
func (m *rollInstance) tell(report upgrade.Report, err error) {
	if err != nil {
		m.ExitCode, m.Cause = int(codeOf(err)), strings.Join(causeLines(err), "; ")
		return
	}
	m.Report, m.ExitCode, m.Cause = &report, report.ExitCode, report.Cause
	if report.From != nil && m.From == "" {
		m.From = report.From.ID
	}
	if report.To != nil {
		if m.To = report.To.ID; meaningful(report.To.Version) {
			m.Version = report.To.Version
		}
	}
}

// count is how many instances are in a state.
func (d *rollDoc) count(state rollState) (n int) {
	for _, m := range d.Instances {
		if m.State == state {
			n++
		}
	}
	return n
}

// conclude says what became of it all.
func (d *rollDoc) conclude(zdt string) {
	changed, back := d.count(rollChanged), d.count(rollBack)
	d.Changed = changed > 0
	switch {
	case d.Stopped == "" && d.Changed:
		d.Outcome = "done"
	case d.Stopped == "":
		d.Outcome = "unchanged"
	case back > 0 && changed == 0:
		d.Outcome = "undone"
	default:
		d.Outcome = "stopped"
	}
	d.ExitCode = rollCode(d.ExitCode, changed+back, back)
	if d.Stopped != "" && d.Hint == "" {
		d.Hint = d.next(zdt)
	}
}

// next is what to do about a roll that stopped; zdt is how it is called.
func (d *rollDoc) next(zdt string) string {
	again := "mend what failed and run the same command again: it goes on with " + d.Stopped
	switch {
	case d.ExitCode == ExitNotRestored:
		return zdt + " status " + d.Stopped
	case d.ExitCode == ExitFrozen:
		return zdt + " promote " + d.Stopped + ", or " + zdt + " abort " + d.Stopped
	case d.ExitCode == ExitInterrupted:
		return zdt + " resume " + d.Stopped
	case d.Kind != release.KindRollback && d.count(rollChanged) > 0:
		return again + "; or " + zdt + " rollback " + d.Service + " takes back what was upgraded"
	}
	return again
}

// tellRoll tells how a roll ended: a good end on stdout, a bad one on stderr, with what runs where.
func (f *factory) tellRoll(d rollDoc) {
	if d.Stopped == "" {
		if f.globals.output == outputText {
			fmt.Fprintln(f.Out, goodRoll(f.outStyle(), d))
		}
		return
	}
	st := f.errStyle()
	where := d.Stopped
	if where != d.Service {
		where = "at " + d.Stopped
	}
	head := fmt.Sprintf("%s: the %s stopped", d.Service, describe(d.Kind))
	if where != d.Service {
		head += " " + where
	}
	fmt.Fprintf(f.Err, "%s%s: %s\n", st.bad.Render("zdt: "), head, clean(d.Cause))
	width := 0
	for _, m := range d.Instances {
		width = max(width, len(m.Service))
	}
	for _, m := range d.Instances {
		fmt.Fprintf(f.Err, "  %-*s  %s\n", width, m.Service, rollWords(st, m))
	}
	if d.Hint != "" {
		fmt.Fprintf(f.Err, "%s%s\n", st.note.Render("hint: "), clean(d.Hint))
	}
}

// rollWords are what became of an instance, and what it runs.
func rollWords(st style, m rollInstance) string {
	runs := cmp.Or(shortID(m.Runs), "?")
	switch m.State {
	case rollChanged:
		return st.good.Render(st.marks.ok) + " runs " + runs + " now"
	case rollBack:
		return st.good.Render(st.marks.ok) + " runs " + runs + " again"
	case rollUnchanged:
		return st.good.Render(st.marks.ok) + " runs " + runs + ": nothing to do"
	case rollFailed:
		mark, words := st.warn.Render(st.marks.warn), "failed, runs "+runs
		if ExitCode(m.ExitCode) == ExitNotRestored {
			mark, words = st.bad.Render(st.marks.fail), "failed and not restored"
		}
		return mark + " " + words
	case rollLeftOut:
		return st.dim.Render(st.marks.todo) + " stopped, left out"
	}
	return st.dim.Render(st.marks.todo) + " runs " + runs + ": not touched"
}

// goodRoll is the one line that a roll comes down to.
func goodRoll(st style, d rollDoc) string {
	mark, name := st.good.Render(st.marks.ok), st.bold.Render(d.Service)
	if !d.Changed {
		return fmt.Sprintf("%s %s: nothing to do", mark, name)
	}
	var versions []string
	for _, m := range d.Instances {
		v := cmp.Or(m.Version, shortID(m.Runs))
		if m.State == rollChanged && (len(versions) == 0 || versions[len(versions)-1] != v) {
			versions = append(versions, v)
		}
	}
	text := plural(d.count(rollChanged), "instance") + " upgraded to "
	if d.Kind == release.KindRollback {
		text = plural(d.count(rollChanged), "instance") + " rolled back to "
	}
	text += strings.Join(versions, ", ")
	if n := d.count(rollUnchanged); n > 0 {
		text += fmt.Sprintf(", %d ran it already", n)
	}
	if n := d.count(rollLeftOut); n > 0 {
		text += fmt.Sprintf(", %d stopped and left out", n)
	}
	dot := " " + st.dim.Render(st.marks.dot) + " "
	return fmt.Sprintf("%s %s: %s", mark, name, text) + dot + elapsed(d.EndedAt.Sub(d.StartedAt))
}
