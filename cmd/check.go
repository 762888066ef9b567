package cmd

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"github.com/zdt-dev/zdt/dbusctl"
	"github.com/zdt-dev/zdt/handoff/control"
	"github.com/zdt-dev/zdt/handoffcheck"
	"github.com/zdt-dev/zdt/unitgen"
)

// checkDoc is the document of zdt check.
type checkDoc struct {
	Schema   string   `json:"schema"`  // zdt.check/1
	Outcome  string   `json:"outcome"` // clean, risks, blocked; of a service that could not be looked at among others: unknown
	ExitCode ExitCode `json:"exit_code"`
	Changed  bool     `json:"changed"` // always false
	Service  string   `json:"service"` // "" when it is about Binary alone
	// Binary is the new program that was looked at, if one was.
	Binary   string                 `json:"binary,omitempty"`
	Findings []handoffcheck.Finding `json:"findings"`
	// Unknown is what could not be looked at, so that nothing was found in it.
	Unknown []string `json:"unknown,omitempty"`
}

func newCheckCmd(f *factory) *cobra.Command {
	var binary string
	cmd := &cobra.Command{
		Use:   "check [NAME] [--binary FILE]",
		Short: "Say what stands in the way of an upgrade, and how to mend it",
		Long: `Look at the unit and its sockets as systemd has them, at the running program,
and at FILE, and say what would make an upgrade fail or lose requests. Changes
nothing and takes no lock. zdt explain ID says more about a finding.

Without a NAME look at all services of this host, one after the other; with FILE
alone look whether this host can execute it.`,
		Example: `  zdt check web
  zdt check web --binary ./web-1.4.3
  zdt check
  zdt check --binary ./web-1.4.3
  zdt check web -o json | jq -r '.findings[].id'`,
		Args:              arguments(0, 1, ""),
		ValidArgsFunction: f.completeServices(1),
	}
	cmd.Flags().StringVar(&binary, "binary", "", "the new program, too: a `FILE`")
	return f.command(cmd, func(ctx context.Context, args []string) error {
		switch {
		case len(args) == 0 && binary != "":
			return runCheckFile(f, binary)
		case len(args) == 0:
			return runCheckAll(ctx, f)
		}
		name, err := serviceName(args[0])
		if err != nil {
			return err
		}
		return runCheck(ctx, f, name, binary)
	}, ExitOK, ExitUnexpected, ExitNoService, ExitRefused, ExitUsage, ExitUnavailable)
}

func runCheck(ctx context.Context, f *factory, name, binary string) error {
	h, err := f.openHost(ctx, name)
	if err != nil {
		return err
	}
	defer h.close()
	doc, err := h.check(ctx, binary)
	if err != nil {
		if errors.Is(err, dbusctl.ErrNoUnit) {
			return &Failure{Code: ExitNoService, Err: err, Hint: hintOf(err)}
		}
		return err
	}
	return f.printCheck(doc)
}

func (f *factory) printCheck(doc checkDoc) (err error) {
	if f.globals.output == outputText {
		_, err = f.Out.Write([]byte(checkText(f.outStyle(), doc)))
	} else {
		err = f.print(doc)
	}
	if err == nil && doc.ExitCode != ExitOK {
		err = &Failure{Code: doc.ExitCode, Told: true}
	}
	return err
}

// check looks at the service and, if there is one, at the new program.
func (h *host) check(ctx context.Context, binary string) (checkDoc, error) {
	facts, unknown, err := h.facts(ctx)
	if err != nil {
		return checkDoc{}, err
	}
	doc := checkDoc{Schema: "zdt.check/1", Outcome: "clean", Service: h.service, Binary: binary, Findings: []handoffcheck.Finding{}, Unknown: unknown}
	doc.Findings = append(doc.Findings, handoffcheck.Look(facts)...)
	if binary != "" {
		doc.Findings = append(doc.Findings, handoffcheck.CandidateFor(binary, facts)...)
		handoffcheck.Accept(doc.Findings, facts.Accepted)
		handoffcheck.Sort(doc.Findings)
	}
	doc.judge()
	return doc, nil
}

// judge is the verdict on what was found.
func (d *checkDoc) judge() {
	switch {
	case d.count(handoffcheck.Blocker) > 0:
		d.Outcome, d.ExitCode = "blocked", ExitRefused
	case d.count(handoffcheck.Risk) > 0:
		d.Outcome = "risks"
	}
}

// count is how many findings are as severe, without those that were accepted.
func (d checkDoc) count(s handoffcheck.Severity) (n int) {
	for _, found := range d.Findings {
		if found.Severity == s && !found.Accepted {
			n++
		}
	}
	return n
}

// runningUnknown begins what is said when nothing is known of the running program.
const runningUnknown = "the running program: "

// facts gathers what checks look at. unknown is what could not be found out, and why.
func (h *host) facts(ctx context.Context) (facts handoffcheck.Facts, unknown []string, err error) {
	u, err := h.ask(ctx)
	if err != nil {
		return facts, nil, err
	}
	if facts.Service, err = h.properties(ctx, u.Name); err != nil {
		return facts, nil, err
	}
	for _, name := range socketsOf(u, facts.Service) {
		socket, err := h.properties(ctx, name)
		if err != nil {
			unknown = append(unknown, fmt.Sprintf("%s: %v", name, err))
			continue
		}
		facts.Sockets = append(facts.Sockets, socket)
	}
	h.ownChanges(ctx, facts)
	if facts.Systemd, _, err = h.sd.Version(ctx); err != nil {
		return facts, nil, err
	}
	policy, err := h.policy(u)
	facts.Unmanaged = err == nil && !policy.Managed && !h.manages(u)
	if err != nil {
		unknown = append(unknown, fmt.Sprintf("[%s] of the unit: %v", "X-Zdt", err))
	} else {
		facts.Accepted = policy.AcceptRisk
		facts.Ready, facts.Drain, facts.Helper = policy.ReadyTimeout, policy.DrainTimeout, policy.Runtime == unitgen.RuntimeHelper
		facts.Gates = h.gatesSeen(policy, u.MainPID != 0)
		facts.Balancer = h.balancer(policy)
	}
	journal, also := journalSeen()
	facts.Journal, unknown = journal, append(unknown, also...)
	if facts.Zdt, err = h.f.executable(); err != nil {
		return facts, nil, err
	}
	facts.Releases = filepath.Join(h.paths.StateDir(h.service), "releases")
	facts.HostNoExec = hostNoExec(facts.Releases)
	visible := false
	if facts.Host, visible = h.surroundings(ctx, u); !visible {
		return facts, unknown, nil
	}
	if u.MainPID != 0 {
		unknown = append(unknown, h.process(&facts, u)...)
	} else if hostRoot(facts.Service) {
		facts.Process.Root = "/"
	}
	if facts.Unmanaged { // nobody to ask, and no releases to see
		if u.MainPID == 0 {
			return facts, unknown, nil
		}
		resources, also := h.resources(u, control.Status{})
		facts.Resources = resources
		return facts, append(unknown, also...), nil
	}
	if err := h.releases(&facts.Live, u); err != nil {
		unknown = append(unknown, "the current release: "+err.Error())
	}
	if u.MainPID == 0 {
		return facts, append(unknown, runningUnknown+"there is none"), nil
	}
	switch facts.Runtime, err = h.runtime(ctx, u); {
	case errors.Is(err, errNoRuntime) && facts.Service.Text("ActiveState") == "active":
		facts.Live.Silent = err.Error()
		return facts, unknown, nil
	case err != nil && h.elsewhere(ctx, facts.Runtime, u):
		facts.Live.Silent, facts.Live.Elsewhere, facts.Runtime = err.Error(), facts.Runtime.PID, control.Status{}
		return facts, unknown, nil
	case err != nil:
		facts.Runtime = control.Status{}
		return facts, append(unknown, runningUnknown+err.Error()), nil
	}
	facts.Helper = isHelper(facts.Runtime)
	readEnviron(&facts.Process, serving(facts.Runtime))
	resources, also := h.resources(u, facts.Runtime)
	facts.Resources = resources
	facts.Live.LongestQueue = longestQueue()
	if facts.Live.Listeners, err = h.listeners(u, facts.Runtime); err != nil {
		also = append(also, "the sockets of the running program: "+err.Error())
	}
	return facts, append(unknown, also...), nil
}

// ownChanges takes back that systemd calls the units changed, where it says so of every unit: since 257 it does when any of them
// was enabled or disabled after it has read them, which is none of these units' business.
func (h *host) ownChanges(ctx context.Context, facts handoffcheck.Facts) {
	const changed = "NeedDaemonReload"
	units := append([]handoffcheck.Unit{facts.Service}, facts.Sockets...)
	if !slices.ContainsFunc(units, func(u handoffcheck.Unit) bool { return u.Is(changed) }) {
		return
	}
	root, err := h.properties(ctx, "-.slice") // which every manager has, and nobody's file
	for _, u := range units {
		now, errNow := h.properties(ctx, u.Name) // a daemon-reload may have come between
		if err == nil && root.Is(changed) || errNow == nil && !now.Is(changed) {
			delete(u.Properties, changed)
		}
	}
}

// manages reports whether zdt has had a hand in a service whose units have no [X-Zdt]: it has a store, or the directory that zdt's
// control sockets are in.
func (h *host) manages(u dbusctl.Unit) bool {
	_, err := os.Stat(h.paths.disk(h.paths.StateDir(h.service)))
	return !errors.Is(err, fs.ErrNotExist) || slices.Contains(u.RuntimeDirectory, "zdt/"+h.service)
}

// runtime is what the runtime in the main process says of itself, and with an error what one in another process does.
func (h *host) runtime(ctx context.Context, u dbusctl.Unit) (control.Status, error) {
	uid, err := mainUID(u)
	if err != nil {
		return control.Status{}, err
	}
	client, st, err := h.f.connectRuntime(ctx, h.paths.Control(h.service), int(u.MainPID), uid)
	switch {
	case errors.Is(err, fs.ErrPermission):
		return control.Status{}, errors.New("only root and the service's user may ask the runtime")
	case err != nil:
		return st, err
	}
	return st, client.Close()
}

// elsewhere reports whether the runtime that has answered is that of the service and its process is, for good, not the main one: for a
// moment a commit looks like that, and so does for longer what has taken over from a successor that died.
func (h *host) elsewhere(ctx context.Context, s control.Status, u dbusctl.Unit) bool {
	if s.PID == 0 || s.PID == int(u.MainPID) || s.TookOver || s.Phase != control.Idle || s.Handoff != nil || s.Predecessor != nil {
		return false
	}
	inside, err := inUnit(s.PID, unitOf(u))
	now, askErr := h.ask(ctx)
	return err == nil && inside && askErr == nil && now.MainPID == u.MainPID && now.ActiveState == "active"
}

func (h *host) properties(ctx context.Context, name string) (handoffcheck.Unit, error) {
	all, err := h.sd.Properties(ctx, name)
	return handoffcheck.Unit{Name: name, Properties: all}, err
}

// socketsOf are the socket units that the service gets descriptors from.
func socketsOf(u dbusctl.Unit, service handoffcheck.Unit) []string {
	names := slices.Concat(u.TriggeredBy, service.Texts("Sockets"))
	names = slices.DeleteFunc(names, func(name string) bool { return !strings.HasSuffix(name, ".socket") })
	slices.Sort(names)
	return slices.Compact(names)
}

// pageWidth is how wide text is that zdt breaks into lines itself.
const pageWidth = 78

// checkText is the document for people.
func checkText(st style, d checkDoc) string {
	var b strings.Builder
	writeFindings(&b, st, d, "")
	name := d.Service
	if name == "" {
		name = clean(d.Binary)
	}
	verdict := st.good.Render(st.marks.ok) + " " + st.bold.Render(name) + ": "
	switch {
	case len(d.Findings) == 0 && d.Service == "":
		return b.String() + verdict + "nothing that can be seen in it stands in the way of an upgrade\n"
	case len(d.Findings) == 0 && len(d.Unknown) > 0:
		return b.String() + verdict + "nothing of what is known stands in the way of an upgrade\n"
	case len(d.Findings) == 0:
		return b.String() + verdict + "nothing stands in the way of an upgrade\n"
	}
	if d.ExitCode != ExitOK {
		verdict = st.bad.Render(st.marks.fail) + " " + st.bold.Render(name) + ": "
	}
	fmt.Fprintf(&b, "%s%s, %s, %s; more about one: zdt explain %s\n", verdict, plural(d.count(handoffcheck.Blocker), "blocker"),
		plural(d.count(handoffcheck.Risk), "risk"), plural(d.count(handoffcheck.Note), "note"), d.Findings[0].ID)
	return b.String()
}

// writeFindings has every finding with its fix, and what is not known.
func writeFindings(b *strings.Builder, st style, d checkDoc, indent string) {
	marks := map[handoffcheck.Severity]string{
		handoffcheck.Blocker: st.bad.Render(st.marks.fail), handoffcheck.Risk: st.warn.Render(st.marks.warn), handoffcheck.Note: st.note.Render(st.marks.dot),
	}
	for _, found := range d.Findings {
		if found.Accepted { // in one line: who wrote AcceptRisk= knows
			fmt.Fprintf(b, "%s%s %s accepted: %s\n", indent, st.dim.Render(st.marks.off), found.ID, clean(found.Seen))
			continue
		}
		fmt.Fprintf(b, "%s%s %s %s: %s\n", indent, marks[found.Severity], st.bold.Render(found.ID), found.Severity, clean(found.Seen))
		for _, line := range wrapWords(clean(found.Why), pageWidth-4-len(indent)) {
			fmt.Fprintf(b, "%s    %s\n", indent, line)
		}
		if found.DropIn == "" {
			fmt.Fprintf(b, "%s    fix: %s\n", indent, clean(found.Fix))
			continue
		}
		fmt.Fprintf(b, "%s    fix: systemctl edit %s\n", indent, found.Unit)
		for line := range strings.Lines(found.DropIn) {
			fmt.Fprintf(b, "%s        %s\n", indent, clean(strings.TrimSuffix(line, "\n")))
		}
	}
	for _, u := range d.Unknown {
		fmt.Fprintf(b, "%s%s not known: %s\n", indent, st.dim.Render(st.marks.off), clean(u))
	}
}
