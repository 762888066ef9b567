package cmd

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/zdt-dev/zdt/handoff/control"
)

// printStatus shows services to a person, one block each.
func (f *factory) printStatus(doc statusDoc) error {
	var b strings.Builder
	st := f.outStyle()
	for i, s := range doc.Services {
		if i > 0 {
			b.WriteByte('\n')
		}
		writeStatus(&b, st, s, f.now())
	}
	_, err := f.Out.Write([]byte(b.String()))
	return err
}

func writeStatus(b *strings.Builder, st style, s serviceStatus, now time.Time) {
	mark, paint := st.marks.off, st.dim
	switch s.State {
	case stateServing:
		mark, paint = st.marks.on, st.good
	case stateStarting, stateStopping:
		mark, paint = st.marks.on, st.warn
	case stateFailed, stateNone:
		mark, paint = st.marks.fail, st.bad
	}
	head := fmt.Sprintf("%s %s  %s", paint.Render(mark), st.bold.Render(s.Name), paint.Render(strings.ReplaceAll(string(s.State), "-", " ")))
	if r := s.Runtime; r != nil && s.RuntimeProblem == "" {
		if r.Phase != control.Idle && string(r.Phase) != string(s.State) {
			head += ", " + phaseWords(r)
		}
		head += st.dim.Render(fmt.Sprintf("  generation %d", r.Generation))
	}
	b.WriteString(head + "\n")
	row := func(label, format string, args ...any) {
		fmt.Fprintf(b, "%s  %s\n", st.dim.Render(fmt.Sprintf("%11s", label)), fmt.Sprintf(format, args...))
	}
	if s.State == stateNone && !s.Managed {
		row("", "systemd knows no %s", s.Unit.Name)
		return
	}
	if r := cmp.Or(s.Running, s.Current); r != nil {
		text := releaseName(r)
		if s.Current != nil && r.ID == s.Current.ID && !r.StagedAt.IsZero() {
			text += st.dim.Render(" staged " + age(now.Sub(r.StagedAt)) + " ago")
		}
		row("release", "%s", text)
	}
	if s.Running != nil && s.Current != nil && s.Running.ID != s.Current.ID {
		row("current", "%s", releaseName(s.Current))
	}
	if pid := s.Unit.MainPID; pid != 0 {
		text := fmt.Sprintf("%d", pid)
		if r := s.Runtime; r != nil && s.RuntimeProblem == "" {
			if isHelper(*r) {
				text = fmt.Sprintf("%d", r.App)
			}
			text += ", up " + age(now.Sub(r.StartedAt))
			if sees(*r) {
				text += ", " + countsWords(r.Connections)
			}
		} else if s.Unit.Since != nil {
			text += ", up " + age(now.Sub(*s.Unit.Since))
		}
		if s.Unit.Restarts > 0 {
			text += ", " + plural(int(s.Unit.Restarts), "restart")
		}
		row("pid", "%s", text)
		if r := s.Runtime; r != nil && s.RuntimeProblem == "" && isHelper(*r) {
			row("helper", "pid %d, zdt run, the main process", pid)
			if w := r.Workers; w != nil {
				row("workers", "%s", workersWords(*w))
			}
		}
	} else if s.Unit.Result != "" && s.Unit.Result != "success" {
		row("result", "%s", clean(s.Unit.Result))
	}
	if r := s.Runtime; r != nil && s.RuntimeProblem == "" {
		writeRuntime(row, st, r, now)
	} else if s.Unit.MainPID != 0 && s.Unit.StatusText != "" {
		row("says", "%s", clean(s.Unit.StatusText))
	}
	if t := s.Txn; t != nil {
		row("upgrade", "%s %s %s, begun %s ago by %s", shortID(t.From), st.marks.arrow, shortID(t.To), age(now.Sub(t.Started)), clean(cmp.Or(t.Who, "?")))
	}
	for _, n := range s.Notes {
		row(st.warn.Render(fmt.Sprintf("%11s", st.marks.warn)), "%s", clean(n.Text))
		if n.Next != "" {
			row("", "%s %s", st.note.Render("next:"), clean(n.Next))
		}
	}
}

func writeRuntime(row func(string, string, ...any), st style, r *control.Status, now time.Time) {
	var sockets []string
	for _, s := range r.Sockets {
		text := clean(s.Name) + " " + clean(s.Address)
		if s.Network != "tcp" {
			text += "/" + clean(s.Network)
		}
		if !s.InUse {
			text += " (not used)"
		}
		sockets = append(sockets, text)
	}
	if len(sockets) > 0 {
		row("sockets", "%s", strings.Join(sockets, ", "))
	}
	if h := r.Handoff; h != nil {
		exe := h.Exe
		// /var/lib/zdt/NAME/releases/ID/…; the store of which service is clear.
		if dir, _, found := strings.Cut(exe, "/releases/"); found {
			if id := releaseIn(dir, exe); id != "" {
				exe = "release " + shortID(id)
			}
		}
		text := control.Process(h.Candidate) + ", " + clean(exe)
		if !h.Deadline.IsZero() {
			text += ", decided within " + age(max(0, h.Deadline.Sub(now)))
		}
		row("candidate", "%s", text)
	}
	if p := r.Predecessor; p != nil {
		c := p.Connections
		left := ": " + countsWords(c)
		if c.Tasks > 0 {
			left += ", " + plural(c.Tasks, "task")
		}
		if left += " left"; isHelper(*r) && c == (control.Counts{}) {
			left = ""
		}
		row("draining", "%s, generation %d%s", control.Process(p.PID), p.Generation, left)
		if text := fateWords(c); text != "" {
			row("so far", "%s", text)
		}
	}
	if text := fateWords(r.Connections); text != "" { // it drains, too
		row("so far", "%s", text)
	}
	if m := r.Moves; m != nil && m.Taken+m.Refused > 0 {
		text := plural(m.Taken, "connection") + " taken over"
		if m.Refused > 0 {
			text += fmt.Sprintf(", %d refused: they stayed where they were", m.Refused)
		}
		row("moves", "%s", text)
	}
}

// workersWords says how many workers there are, and their pids.
func workersWords(w control.Workers) string {
	text := fmt.Sprintf("%d", w.Want)
	if w.Ready != w.Want {
		text = fmt.Sprintf("%d of %d serve", w.Ready, w.Want)
	}
	var pids []string
	for _, one := range w.List {
		if one.PID != 0 {
			pids = append(pids, fmt.Sprint(one.PID))
		}
	}
	if n := len(pids); n > 8 {
		pids = append(pids[:8], "…")
	}
	text += ": pid " + strings.Join(pids, " ")
	if w.Left > 0 {
		text += fmt.Sprintf(", %d to be replaced", w.Left)
	}
	if w.Restarts > 0 {
		text += ", " + plural(w.Restarts, "restart")
	}
	return text
}

// phaseWords says what a runtime is doing besides serving.
func phaseWords(r *control.Status) string {
	switch r.Phase {
	case control.Forked:
		return "waiting for the candidate"
	case control.Held:
		return "candidate on probation"
	case control.Aborting:
		return "undoing a handoff"
	}
	return clean(string(r.Phase))
}

// sees reports whether a runtime knows the connections of its program. To a helper they
// are the program's affair, unless something is known of them.
func sees(s control.Status) bool { return !isHelper(s) || s.Connections != (control.Counts{}) }

// fateWords says what became of the connections of a generation that drains
// and are not open any more.
func fateWords(c control.Counts) string {
	c = control.Counts{Moved: c.Moved, Drained: c.Drained, Closed: c.Closed, Cut: c.Cut}
	if c == (control.Counts{}) {
		return ""
	}
	return c.Progress()
}

func countsWords(c control.Counts) string {
	text := plural(c.Open(), "connection")
	var parts []string
	for _, p := range []struct {
		n    int
		word string
	}{{c.Active, "active"}, {c.Idle, "idle"}, {c.Streams, "streaming"}} {
		if p.n > 0 && p.n != c.Open() {
			parts = append(parts, fmt.Sprintf("%d %s", p.n, p.word))
		} else if p.n > 0 {
			parts = append(parts, p.word)
		}
	}
	if len(parts) > 0 {
		text += " (" + strings.Join(parts, ", ") + ")"
	}
	return text
}

// releaseName is the version where it says something, and the ID.
func releaseName(r *releaseStatus) string {
	name := r.ID
	if meaningful(r.Version) {
		name = clean(r.Version) + "  " + name
	}
	if r.Damage != "" {
		name += "  (not usable: " + clean(r.Damage) + ")"
	}
	return name
}

// meaningful: Go writes "(devel)" where it knows no version.
func meaningful(version string) bool {
	return !slices.Contains([]string{"", "(devel)", "unknown"}, version)
}

// shortID is the content part of a release's ID.
func shortID(id string) string {
	if _, sum, ok := strings.Cut(id, "-"); ok {
		return sum
	}
	return cmp.Or(id, "nothing")
}
