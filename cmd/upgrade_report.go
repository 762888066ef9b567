package cmd

import (
	"cmp"
	"fmt"
	"io"
	"math"
	"strings"
	"time"

	"github.com/zdt-dev/zdt/handoff/control"
	"github.com/zdt-dev/zdt/release"
	"github.com/zdt-dev/zdt/upgrade"
)

// tellReport tells the verdict: a good one on stdout as one line, a bad one on
// stderr: the cause, the candidate's last words, what was done, what to do.
func (f *factory) tellReport(r upgrade.Report) {
	st := f.errStyle()
	if !f.globals.quiet {
		for _, w := range r.Warnings {
			fmt.Fprintf(f.Err, "%s %s\n", st.warn.Render("warning:"), clean(w))
		}
		if n := risks(r.Findings); n > 0 {
			fmt.Fprintf(f.Err, "%s %s: %s check %s\n", st.note.Render("note:"), plural(n, "risk"), f.zdt(), r.Service)
		}
		if q := r.Rehearsal; q != nil && q.State == upgrade.RehearsalLeftOut && f.live() { // elsewhere the line of the phase says so
			fmt.Fprintf(f.Err, "%s not rehearsed: %s\n", st.note.Render("note:"), clean(q.Text))
		}
	}
	if n := len(r.Pruned); n > 0 && f.globals.output == outputText {
		var freed int64
		for _, p := range r.Pruned {
			freed += p.Bytes
		}
		f.say("%s", st.dim.Render(fmt.Sprintf("%s deleted, %s", plural(n, "old release"), byteSize(freed))))
	}
	switch {
	case r.Cause != "" || r.Outcome == "":
		writeFailedReport(f.Err, st, r)
	case f.globals.output == outputText:
		fmt.Fprintln(f.Out, goodReport(f.outStyle(), r, f.outWidth()))
	}
}

// outWidth is how long a line on Out may be: as long as it takes, except on a terminal.
func (f *factory) outWidth() int {
	if !f.OutTTY {
		return math.MaxInt
	}
	return f.Width()
}

// goodReport is the one line an upgrade comes down to.
func goodReport(st style, r upgrade.Report, width int) string {
	mark := st.good.Render(st.marks.ok)
	name := st.bold.Render(r.Service)
	from, to := releaseNames(r)
	switch {
	case r.Outcome == upgrade.Unchanged && r.To == nil:
		return fmt.Sprintf("%s %s: nothing is open, there is nothing to do", mark, name)
	case r.Outcome == upgrade.Unchanged:
		return fmt.Sprintf("%s %s %s serves already: nothing to do", mark, name, to)
	case r.Outcome == upgrade.Aborted || r.Outcome == upgrade.Interrupted: // and that was wanted
		return st.line(width, []string{fmt.Sprintf("%s %s: %s to %s is undone", mark, name, r.Kind, to), clean(r.Action)}, []string{fmt.Sprintf("%s %s: %s to %s is undone", mark, name, r.Kind, to)})
	}
	head := fmt.Sprintf("%s %s %s %s %s", mark, name, from, st.marks.arrow, to)
	if r.Kind == release.KindRollback {
		head = fmt.Sprintf("%s %s rolled back %s %s %s", mark, name, from, st.marks.arrow, to)
	}
	pids := fmt.Sprintf("pid %d %s %d", r.Incumbent, st.marks.arrow, r.Candidate)
	took := elapsed(r.EndedAt.Sub(r.StartedAt))
	long := took
	if q := r.Rehearsal; q != nil && q.State == upgrade.RehearsalPassed {
		long = fmt.Sprintf("%s, %s of it rehearsal", took, elapsed(tookOf(r, upgrade.Rehearse)))
	}
	if r.Connections == nil {
		return st.line(width, []string{head, pids, long}, []string{head, pids, took}, []string{head, took})
	}
	counts := countsVerdict(st, *r.Connections)
	short := strings.NewReplacer(" connections", "", " connection", "", " politely", "").Replace(counts)
	return st.line(width, []string{head, pids, counts, long}, []string{head, pids, counts, took}, []string{head, counts, long}, []string{head, counts, took}, []string{head, counts}, []string{head, short})
}

// tookOf is how long a phase took.
func tookOf(r upgrade.Report, p upgrade.Phase) (d time.Duration) {
	for _, t := range r.Timings {
		if t.Phase == p {
			d += t.Took
		}
	}
	return d
}

// countsVerdict is what became of the connections. What was cut stands out.
func countsVerdict(st style, c control.Counts) string {
	parts := strings.Split(c.Summary(), ", ")
	for i, p := range parts {
		if strings.HasSuffix(p, " cut") && c.Cut > 0 {
			parts[i] = st.warn.Render(st.marks.warn + " " + p)
		}
	}
	return strings.Join(parts, ", ")
}

// releaseNames are the two versions where they tell the releases apart, else
// the beginnings of their checksums.
func releaseNames(r upgrade.Report) (from, to string) {
	f, t := r.From, r.To
	if f == nil {
		f = &upgrade.Release{}
	}
	if t == nil {
		t = f
	}
	fv, tv := clean(f.Version), clean(t.Version)
	if r.Outcome == upgrade.Unchanged {
		fv = ""
	}
	if meaningful(tv) && fv != tv && (meaningful(fv) || r.Outcome == upgrade.Unchanged) && len(fv)+len(tv) < 32 {
		return fv, tv
	}
	return shortID(f.ID), shortID(t.ID)
}

func writeFailedReport(w io.Writer, st style, r upgrade.Report) {
	where := r.Service
	if r.Phase != "" {
		where += ": " + string(r.Phase)
	}
	for i, line := range strings.Split(strings.TrimRight(cmp.Or(r.Cause, string(r.Outcome)), "\n"), "\n") {
		if i == 0 {
			fmt.Fprintf(w, "%s%s: %s\n", st.bad.Render("zdt: "), where, clean(line))
		} else {
			fmt.Fprintf(w, "     %s\n", clean(line))
		}
	}
	// Who was interrupted knows the cause; the candidate is not it.
	if len(r.CandidateLog) > 0 && r.Outcome != upgrade.Interrupted {
		title := "the new program's last words"
		if r.Candidate != 0 {
			title += fmt.Sprintf(" (pid %d)", r.Candidate)
		}
		fmt.Fprintf(w, "  %s\n", st.dim.Render(title+":"))
		bar := st.dim.Render("|")
		if r.LogCut > 0 {
			fmt.Fprintf(w, "  %s %s\n", bar, st.dim.Render("("+plural(r.LogCut, "earlier line")+" left out)"))
		}
		for _, l := range r.CandidateLog {
			fmt.Fprintf(w, "  %s %s\n", bar, clean(l))
		}
	}
	fmt.Fprintln(w, verdict(st, r))
	if r.Hint != "" {
		fmt.Fprintf(w, "%s%s\n", st.note.Render("hint: "), clean(r.Hint))
	}
}

// verdict says in one line what state the service is in, and whether somebody
// has to get up.
func verdict(st style, r upgrade.Report) string {
	action := ""
	if r.Action != "" {
		action = ": " + clean(r.Action)
	}
	switch r.Outcome {
	case upgrade.RolledBack:
		return st.good.Render(st.marks.ok) + " rolled back, healthy on the old release" + action
	case upgrade.Interrupted:
		return st.good.Render(st.marks.ok) + " undone" + action
	case upgrade.Aborted:
		return st.good.Render(st.marks.ok) + " undone, healthy on the old release" + action
	case upgrade.Frozen:
		return st.warn.Render(st.marks.warn+" frozen: "+r.Service+" waits for a decision") + action
	case upgrade.Refused:
		return st.dim.Render(st.marks.todo) + " nothing was changed" + action
	case upgrade.Locked:
		if _, held := r.Holder["why"]; held {
			return st.dim.Render(st.marks.todo) + " nothing was changed"
		}
		return st.dim.Render(st.marks.todo) + " nothing was changed: somebody else works on " + r.Service
	case upgrade.NotRestored:
		return st.bad.Render(st.marks.fail+" NOT RESTORED: "+r.Service+" needs a person now") + action
	}
	return st.bad.Render(st.marks.fail) + " " + string(r.Outcome) + action
}
