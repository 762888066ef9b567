package cmd

import (
	"fmt"
	"strings"

	"github.com/zdt-dev/zdt/handoffcheck"
)

// doctorText is the document for people: what is in order takes one line.
func doctorText(st style, d doctorDoc) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s\n", st.dim.Render(fmt.Sprintf("zdt %s, systemd %s, Linux %s", d.Host.Zdt, d.Host.Systemd, d.Host.Kernel)))
	writeNotes(&b, st, d.Host.Notes)
	blockers, risks := 0, 0
	for _, s := range d.Services {
		found := checkDoc{Service: s.Name, Findings: s.Findings, Unknown: s.Unknown}
		blockers, risks = blockers+found.count(handoffcheck.Blocker), risks+found.count(handoffcheck.Risk)
		mark := st.good.Render(st.marks.ok)
		switch {
		case s.waits():
			mark = st.bad.Render(st.marks.fail)
		case len(s.Findings)+len(s.Notes)+len(s.Unknown) > 0:
			mark = st.warn.Render(st.marks.warn)
		}
		fmt.Fprintf(&b, "%s %s  %s\n", mark, st.bold.Render(s.Name), st.dim.Render(strings.ReplaceAll(string(s.State), "-", " ")))
		writeNotes(&b, st, s.Notes)
		writeFindings(&b, st, found, "    ")
	}
	for i, l := range d.Leftovers {
		if i == 0 {
			fmt.Fprintf(&b, "%s %s\n", st.warn.Render(st.marks.warn), st.bold.Render("left behind"))
		}
		fmt.Fprintf(&b, "    %s\n      %s\n      %s %s\n", clean(l.Path), l.Text, st.marks.arrow, clean(l.Next))
	}
	switch d.Outcome {
	case "healthy":
		fmt.Fprintf(&b, "%s %s, nothing to do\n", st.good.Render(st.marks.ok), plural(len(d.Services), "service"))
	case "attention":
		fmt.Fprintf(&b, "%s %s, %s; no upgrade would be refused\n", st.warn.Render(st.marks.warn), plural(len(d.Services), "service"), plural(risks, "risk"))
	default:
		fmt.Fprintf(&b, "%s %s, %s, %s: something waits for somebody\n", st.bad.Render(st.marks.fail), plural(len(d.Services), "service"), plural(blockers, "blocker"), plural(risks, "risk"))
	}
	return b.String()
}

func writeNotes(b *strings.Builder, st style, notes []note) {
	for _, n := range notes {
		lines := wrapWords(clean(n.Text), pageWidth-6)
		fmt.Fprintf(b, "    %s %s\n", st.warn.Render(st.marks.warn), strings.Join(lines, "\n      "))
		if n.Next != "" {
			fmt.Fprintf(b, "      %s %s\n", st.marks.arrow, clean(n.Next))
		}
	}
}
