package cmd

import (
	"cmp"
	"fmt"
	"math"
	"strings"
	"time"

	"github.com/charmbracelet/lipgloss"

	"github.com/zdt-dev/zdt/unitgen"
	"github.com/zdt-dev/zdt/upgrade"
)

// planText writes a plan for a person: one row a subject, wrapped to the terminal.
type planText struct {
	b     strings.Builder
	st    style
	width int
	zdt   string
}

const planLabel = 11 // columns of a row's name

func (f *factory) printPlan(doc planDoc) error {
	t := planText{st: f.outStyle(), width: f.outWidth(), zdt: f.zdt()}
	t.plan(doc, f.systemctl(), f.now())
	_, err := f.Out.Write([]byte(t.b.String()))
	return err
}

// row writes a label and text, which has been cleaned. Lines of its own are kept, the others are wrapped.
func (t *planText) row(label, format string, args ...any) {
	t.painted(t.st.dim.Render(fmt.Sprintf("%*s", planLabel, label)), format, args...)
}

func (t *planText) painted(label, format string, args ...any) {
	for _, line := range wrapWords(fmt.Sprintf(format, args...), t.width-planLabel-2) {
		fmt.Fprintf(&t.b, "%s  %s\n", label, line)
		label = strings.Repeat(" ", planLabel)
	}
}

// wrapWords breaks a line between words, never in one.
func wrapWords(text string, width int) (lines []string) {
	if width <= 0 || width > math.MaxInt/2 {
		return []string{text}
	}
	line := ""
	for _, word := range strings.Fields(text) {
		if line != "" && lipgloss.Width(line)+1+lipgloss.Width(word) > width {
			lines = append(lines, line)
			line = ""
		}
		if line != "" {
			line += " "
		}
		line += word
	}
	return append(lines, line)
}

func (t *planText) plan(doc planDoc, systemctl string, now time.Time) {
	p := doc.Plan
	mark, verdict := t.st.good.Render(t.st.marks.on), string(p.Kind)
	switch p.Outcome {
	case upgrade.PlanUnchanged:
		mark, verdict = t.st.good.Render(t.st.marks.ok), "this content serves already: nothing to do"
	case upgrade.PlanRefused, upgrade.PlanLocked:
		mark, verdict = t.st.bad.Render(t.st.marks.fail), t.st.bad.Render(string(p.Kind)+" would be refused")
	}
	fmt.Fprintf(&t.b, "%s %s  %s\n", mark, t.st.bold.Render(p.Service), verdict)
	for _, problem := range p.Problems {
		t.painted(t.st.bad.Render(fmt.Sprintf("%*s", planLabel, t.st.marks.fail)), "%s", clean(problem.Cause))
		if problem.Hint != "" {
			t.row("", "%s %s", t.st.note.Render("hint:"), clean(problem.Hint))
		}
	}
	t.release("from", p.From)
	if p.Outcome != upgrade.PlanUnchanged {
		t.release("to", p.To)
	}
	t.how(p)
	for _, s := range p.Steps {
		t.step(s)
	}
	for _, g := range p.Gates {
		t.row("gate", "%s", clean(g))
	}
	for _, r := range p.Room {
		t.room(r)
	}
	t.settings(doc, systemctl, now)
	for _, n := range p.Notes {
		t.painted(t.st.warn.Render(fmt.Sprintf("%*s", planLabel, t.st.marks.warn)), "%s", clean(n))
	}
	if p.ID != "" && p.Outcome == upgrade.PlanUpgrade {
		t.row("plan-id", "%s", p.ID)
	}
}

func (t *planText) release(label string, r *upgrade.PlanRelease) {
	if r == nil {
		return
	}
	if r.Program != "" {
		t.row(label, "%s, which is no release", clean(r.Program))
		return
	}
	var parts []string
	if r.Build != nil && meaningful(r.Build.Version) {
		parts = append(parts, clean(r.Build.Version))
	}
	if r.ID != "" {
		parts = append(parts, r.ID)
	} else {
		text := "not staged yet"
		if len(r.SHA256) > 12 {
			text += ", sha256 " + r.SHA256[:12]
		}
		parts = append(parts, text)
	}
	if r.Size > 0 {
		parts = append(parts, bytesWords(uint64(r.Size)))
	}
	if b := r.Build; b != nil {
		build := clean(b.GoVersion)
		if len(b.Revision) >= 12 {
			build += ", " + clean(b.Revision[:12])
			if b.Modified {
				build += " with local changes"
			}
		}
		parts = append(parts, build)
	}
	t.row(label, "%s", strings.Join(parts, "  "))
}

func (t *planText) how(p upgrade.Plan) {
	if p.Strategy == "" {
		return
	}
	text := string(p.Strategy)
	switch p.Runtime {
	case "library":
		text += fmt.Sprintf(", by the program itself, pid %d, generation %d", p.Incumbent, p.Generation)
	case "helper":
		text += fmt.Sprintf(", by zdt run, pid %d; the program is pid %d, generation %d", p.MainPID, p.Incumbent, p.Generation)
	default:
		if p.Incumbent != 0 {
			text += fmt.Sprintf(", pid %d", p.Incumbent)
		}
	}
	t.row("strategy", "%s", text)
}

func (t *planText) step(s upgrade.PlanStep) {
	text := clean(s.Text)
	if s.Within > 0 {
		text += ", within " + elapsed(s.Within)
	}
	switch {
	case s.Then != "" && s.Within > 0:
		text += ", else " + clean(s.Then)
	case s.Then != "" && s.Phase == upgrade.Bake:
		text += "; if it fails: " + clean(s.Then)
	case s.Then != "":
		text += "; " + clean(s.Then)
	}
	t.row(string(s.Phase), "%s", text)
	for _, h := range s.Hooks {
		t.row("hook", "%s: %s, within %s, else %s", h.Point, clean(h.Path), elapsed(h.Within), clean(h.Else))
	}
}

func (t *planText) room(r upgrade.Room) {
	amount := bytesWords
	if r.What == "tasks" {
		amount = func(n uint64) string { return fmt.Sprint(n) }
	}
	needs := "a second generation needs about " + amount(r.Needs)
	if r.Resident {
		needs += " (resident)"
	}
	bound := map[string]string{"host": " are available on the host", "slice": fmt.Sprintf(" are left of %s for its slice", amount(r.Limit))}[r.Bound]
	if bound == "" && r.Bound != "" {
		bound = fmt.Sprintf(" are left of %s=%s", r.Bound, amount(r.Limit))
	}
	switch r.Verdict {
	case upgrade.RoomFits:
		t.row(r.What, "fits: %s, %s%s", needs, amount(r.Free), bound)
	case upgrade.RoomTight:
		t.row(r.What, "%s: %s, %s%s", t.st.warn.Render(t.st.marks.warn+" tight"), needs, amount(r.Free), bound)
	case upgrade.RoomNone:
		t.row(r.What, "%s: %s, %s%s", t.st.bad.Render(t.st.marks.fail+" does not fit"), needs, amount(r.Free), bound)
	default:
		t.row(r.What, "not known: %s", needs)
	}
}

// settings tells what waits for more than the upgrade, and then what does not.
func (t *planText) settings(doc planDoc, systemctl string, now time.Time) {
	s := doc.Settings
	if s == nil {
		return
	}
	service := doc.Service + ".service"
	since := "since the service was started"
	if !s.Since.IsZero() {
		since = "since the start " + age(max(0, now.Sub(s.Since))) + " ago"
	}
	switch {
	case s.Known == "times" && len(s.Files) > 0:
		t.row("settings", "%s changed %s, it is not known how:", plural(len(s.Files), "file"), since)
		for _, f := range s.Files {
			text := clean(f.Path)
			if !f.Read {
				text += ", not read by systemd yet"
			}
			t.painted(t.st.warn.Render(fmt.Sprintf("%*s", planLabel, t.st.marks.warn)), "%s", text)
		}
		t.row("", "a handoff applies little of it, a restart all: %s restart %s", systemctl, service)
	case s.Known == "times":
		t.row("settings", "no file of the unit is newer than the start of the service")
	case len(s.Changes) == 0:
		t.row("settings", "none changed %s", since)
	default:
		waiting := 0
		for _, c := range s.Changes {
			if !c.Applied {
				waiting++
			}
		}
		t.row("settings", "%d changed %s, %d of them not applied by this %s", len(s.Changes), since, waiting, cmp.Or(string(doc.Strategy), "upgrade"))
		for _, applied := range []bool{false, true} {
			for _, c := range s.Changes {
				if c.Applied == applied {
					t.setting(c)
				}
			}
		}
		t.remedies(s, service, systemctl)
	}
	if s.DaemonReload {
		t.row("", "systemd has not read all of it: %s daemon-reload", systemctl)
	}
}

func (t *planText) setting(c planSetting) {
	label := t.st.dim.Render(fmt.Sprintf("%*s", planLabel, t.st.marks.todo))
	if !c.Applied {
		label = t.st.warn.Render(fmt.Sprintf("%*s", planLabel, t.st.marks.warn))
	}
	what := strings.ReplaceAll(clean(c.SettingChange.String()), " -> ", " "+t.st.marks.arrow+" ")
	if strings.HasSuffix(c.Unit, ".socket") {
		what = c.Unit + " " + what
	}
	t.painted(label, "%s: %s", what, c.When)
}

// remedies are the commands for what the upgrade does not apply.
func (t *planText) remedies(s *planSettings, service, systemctl string) {
	restart := false
	var sockets []string
	for _, c := range s.Changes {
		switch {
		case c.Applied:
		case c.Remedy == unitgen.RemedyRestart:
			restart = true
		case c.Remedy == unitgen.RemedySocket && (len(sockets) == 0 || sockets[len(sockets)-1] != c.Unit):
			sockets = append(sockets, c.Unit)
		}
	}
	if restart || len(sockets) > 0 {
		t.row("", "a restart applies it, and clients may notice: %s restart %s", systemctl, strings.Join(append(sockets, service), " "))
	}
}

// bytesWords is a size in the unit that fits it.
func bytesWords(n uint64) string {
	v, unit := float64(n), "B"
	for _, u := range []string{"KiB", "MiB", "GiB", "TiB"} {
		if v < 1024 {
			break
		}
		v, unit = v/1024, u
	}
	if unit == "B" || v >= 100 {
		return fmt.Sprintf("%.0f %s", v, unit)
	}
	return fmt.Sprintf("%.1f %s", v, unit)
}
