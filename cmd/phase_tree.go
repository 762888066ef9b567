package cmd

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/zdt-dev/zdt/upgrade"
)

// phaseTree is the picture of a running upgrade: every phase with its mark,
// its time and what is known about it.
type phaseTree struct {
	service string
	rows    []phaseRow
	begun   bool
	start   time.Time
}

type phaseRow struct {
	phase   upgrade.Phase
	state   upgrade.State // "": not begun
	text    string
	elapsed time.Duration // when at was
	at      time.Time
}

func newPhaseTree(service string) *phaseTree {
	t := &phaseTree{service: service}
	for _, p := range upgrade.Phases() {
		t.rows = append(t.rows, phaseRow{phase: p})
	}
	return t
}

// apply takes an update in. A phase that is not part of a good upgrade (the
// rollback) takes the place of all that cannot come any more.
func (t *phaseTree) apply(u upgrade.Update) {
	if !t.begun {
		t.begun, t.start = true, u.At.Add(-u.Elapsed)
	}
	row := phaseRow{phase: u.Phase, state: u.State, text: u.Text, elapsed: u.Elapsed, at: u.At}
	for i := range t.rows {
		if t.rows[i].phase == u.Phase {
			t.rows[i] = row
			return
		}
	}
	if u.Phase == upgrade.Rehearse { // not every upgrade has one
		at := slices.IndexFunc(t.rows, func(r phaseRow) bool { return r.phase == upgrade.Trigger })
		if at >= 0 {
			t.rows = slices.Insert(t.rows, at, row)
			return
		}
	}
	kept := t.rows[:0]
	for _, r := range t.rows {
		if r.state != "" {
			kept = append(kept, r)
		}
	}
	t.rows = append(kept, row)
}

// render returns the lines of the picture, none wider than width.
func (t *phaseTree) render(st style, now time.Time, width int) []string {
	lines := []string{st.clip(fmt.Sprintf("%s %s  %s", st.note.Render(st.spin(now)), st.bold.Render("upgrading "+t.service), st.dim.Render(elapsed(now.Sub(t.start)))), width)}
	for _, r := range t.rows {
		mark, name, took := st.dim.Render(st.marks.todo), fmt.Sprintf("%-10s", r.phase), ""
		switch r.state {
		case "":
			name = st.dim.Render(name)
		case upgrade.Running:
			mark, name = st.note.Render(st.spin(now)), st.bold.Render(name)
			took = elapsed(r.elapsed + max(0, now.Sub(r.at)))
		case upgrade.Done:
			mark, took = st.good.Render(st.marks.ok), elapsed(r.elapsed)
		case upgrade.Skipped:
			mark, took = st.dim.Render(st.marks.todo), "skipped"
		case upgrade.Failed:
			mark, took = st.bad.Render(st.marks.fail), elapsed(r.elapsed)
		}
		line := fmt.Sprintf("  %s %s %8s", mark, name, took)
		if r.text != "" {
			line += "  " + clean(r.text)
		}
		lines = append(lines, st.clip(strings.TrimRight(line, " "), width))
	}
	return lines
}

// spin is the picture of something that moves, at this moment.
func (s style) spin(now time.Time) string {
	return s.marks.spin[int(now.UnixMilli()/int64(frame/time.Millisecond))%len(s.marks.spin)]
}
