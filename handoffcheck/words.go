package handoffcheck

import (
	"slices"
	"strings"
)

// wordsChecks are about who speaks for the service, and who is spoken to.
func wordsChecks() []Check {
	return []Check{
		{
			ID: "ZDT080", Severity: Risk, handoff: true, Family: FamilyUnit, Title: "a candidate can stop the service",
			Why: "with NotifyAccess=all systemd obeys every process of the unit: a candidate that gives up and says STOPPING=1 stops the one that serves",
			More: `With NotifyAccess=main systemd listens to the main process alone, which a candidate becomes with its commit. Type=notify
makes main of none. For as long as a generation drains the library itself has systemd (254 and later) listen to all, so that the old
process can take the service back; under zdt run programs speak to zdt, and nothing of this applies.`,
			look: func(f Facts) []sight {
				if f.Helper || f.Runtime.Predecessor != nil || f.Service.Text("NotifyAccess") != "all" {
					return nil
				}
				return f.service("NotifyAccess=all", "NotifyAccess=main")
			},
		},
		{
			ID: "ZDT084", Severity: Note, Family: FamilyUnit, Title: "what is done to the first main process is not done to the next",
			Why: "ExecStartPost= runs after a start by systemd and not after a handoff, so what it does with $MAINPID is not done to the new process",
			look: func(f Facts) (all []sight) {
				if f.Helper { // it stays the main process
					return nil
				}
				for _, argv := range f.Service.Commands("ExecStartPost") {
					if slices.ContainsFunc(argv, func(arg string) bool { return strings.Contains(arg, "MAINPID") }) {
						all = append(all, sight{seen: "ExecStartPost=" + strings.Join(argv, " "),
							fix: "let the program do it when it starts, in place of ExecStartPost="})
					}
				}
				return all
			},
		},
	}
}
