package cmd

import (
	"fmt"
)

// show tells what differs, and in a dry run what would be done.
func (p *adoptPlan) show(f *factory, refused bool, o adoptOptions) {
	for _, c := range p.changes {
		if refused || o.DryRun {
			fmt.Fprint(f.Out, colorDiff(f.outStyle(), c.Text))
		}
	}
	st := f.errStyle()
	for _, n := range p.notes {
		f.say("%s %s", st.note.Render("note:"), clean(n.Text))
		if n.Next != "" {
			f.say("      %s", clean(n.Next))
		}
	}
	if refused {
		return
	}
	if o.DryRun {
		for _, s := range p.steps {
			f.say("%s would %s", st.dim.Render(st.marks.todo), clean(s.title))
		}
	}
	if p.gap == "" || len(p.steps) == 0 && p.switched {
		return
	}
	when := "the restart"
	if !o.Restart {
		when = "zdt adopt " + p.name + " --restart, when you call it"
		if o.Undo {
			when = "zdt adopt --undo " + p.name + " --restart"
		}
	}
	for i, line := range wrapWords(when+": "+clean(p.gap)+"; requests under way end as the program's own stop ends them", pageWidth-6) {
		if i == 0 {
			f.say("%s  %s", st.warn.Render("gap:"), line)
		} else {
			f.say("      %s", line)
		}
	}
}
