package cmd

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/zdt-dev/zdt/dbusctl"
	"github.com/zdt-dev/zdt/handoffcheck"
)

// checksDoc is the document of zdt check without a NAME.
type checksDoc struct {
	Schema   string   `json:"schema"`  // zdt.checks/1
	Outcome  string   `json:"outcome"` // the worst of the services': clean, unknown, risks, blocked
	ExitCode ExitCode `json:"exit_code"`
	Changed  bool     `json:"changed"` // always false
	// Services has what zdt check NAME says of each.
	Services []checkDoc `json:"services"`
}

// outcomeUnknown is that of a service that could not be looked at.
const outcomeUnknown = "unknown"

// runCheckAll looks at all services of the host. With -o ndjson what is said of each is a line as soon as it is known.
func runCheckAll(ctx context.Context, f *factory) error {
	p, err := f.paths()
	if err != nil {
		return err
	}
	names, err := p.Services()
	if err != nil {
		return fmt.Errorf("list services: %w", err)
	}
	bus, err := f.dialSystemd(ctx, f.globals.user)
	if err != nil {
		return err
	}
	defer bus.Close()
	all := checksDoc{Schema: "zdt.checks/1", Outcome: "clean", Services: []checkDoc{}}
	for _, name := range names {
		h := &host{f: f, sd: bus, paths: p, service: name, unit: name + ".service"}
		doc, err := h.check(ctx, "")
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if err != nil { // it must not hide the others
			doc = unlooked(name, err)
		}
		all.add(doc)
		if f.globals.output == outputNDJSON {
			if err := f.print(doc); err != nil {
				return err
			}
		}
	}
	if f.globals.output == outputText {
		if len(names) == 0 {
			f.say("no services yet; make one with: %s init NAME --exec FILE --listen :8080", f.zdt())
			return nil
		}
		_, err = f.Out.Write([]byte(checksText(f.outStyle(), all)))
	} else {
		err = f.print(all)
	}
	if err == nil && all.ExitCode != ExitOK {
		err = &Failure{Code: all.ExitCode, Told: true}
	}
	return err
}

// unlooked is said of a service that could not be looked at. One without a unit cannot be upgraded, and needs not.
func unlooked(name string, err error) checkDoc {
	doc := checkDoc{Schema: "zdt.check/1", Outcome: outcomeUnknown, ExitCode: ExitUnexpected, Service: name, Findings: []handoffcheck.Finding{}, Unknown: []string{err.Error()}}
	if errors.Is(err, dbusctl.ErrNoUnit) {
		doc.ExitCode, doc.Unknown = ExitOK, []string{"all of it: it has releases, and systemd no unit of that name"}
	}
	return doc
}

// add takes in what was found of one service. A blocker is worse than what is not known.
func (d *checksDoc) add(doc checkDoc) {
	d.Services = append(d.Services, doc)
	order := []string{"clean", outcomeUnknown, "risks", "blocked"}
	for i := len(order) - 1; order[i] != d.Outcome; i-- {
		if order[i] == doc.Outcome {
			d.Outcome = doc.Outcome
			break
		}
	}
	d.ExitCode = max(d.ExitCode, doc.ExitCode)
}

// checksText is the document for people: each service begins with its name and verdict.
func checksText(st style, d checksDoc) string {
	var b strings.Builder
	blockers, risks := 0, 0
	for _, s := range d.Services {
		blockers, risks = blockers+s.count(handoffcheck.Blocker), risks+s.count(handoffcheck.Risk)
		mark, verdict := st.good.Render(st.marks.ok), ""
		switch {
		case s.Outcome == "blocked":
			mark = st.bad.Render(st.marks.fail)
		case s.Outcome != "clean":
			mark = st.warn.Render(st.marks.warn)
		case len(s.Findings) == 0 && len(s.Unknown) == 0:
			verdict = ": nothing stands in the way of an upgrade"
		}
		fmt.Fprintf(&b, "%s %s%s\n", mark, st.bold.Render(s.Service), verdict)
		writeFindings(&b, st, s, "    ")
	}
	mark := st.good.Render(st.marks.ok)
	if blockers > 0 {
		mark = st.bad.Render(st.marks.fail)
	} else if d.Outcome != "clean" {
		mark = st.warn.Render(st.marks.warn)
	}
	fmt.Fprintf(&b, "%s %s, %s, %s\n", mark, plural(len(d.Services), "service"), plural(blockers, "blocker"), plural(risks, "risk"))
	return b.String()
}

// runCheckFile looks at a file alone: whether this host can execute it. It needs no systemd.
func runCheckFile(f *factory, binary string) error {
	doc := checkDoc{Schema: "zdt.check/1", Outcome: "clean", Binary: binary, Findings: append([]handoffcheck.Finding{}, handoffcheck.Candidate(binary)...)}
	if info, err := os.Stat(binary); err == nil && info.IsDir() {
		doc.Unknown = append(doc.Unknown, "the program in the directory "+binary+": it is looked at when the release is staged")
	}
	doc.judge()
	return f.printCheck(doc)
}
