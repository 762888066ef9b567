package cmd

import (
	"testing"

	"github.com/zdt-dev/zdt/handoffcheck"
)

// What an operator reads, in a terminal without colours.
func TestCheckText(t *testing.T) {
	unit := func(properties map[string]any) handoffcheck.Facts {
		return handoffcheck.Facts{Service: handoffcheck.Unit{Name: "web.service", Properties: properties}}
	}
	for name, d := range map[string]checkDoc{
		"clean": {Findings: nil},
		"blocked": {ExitCode: ExitRefused, Unknown: []string{"the running program: there is none"}, Findings: handoffcheck.Look(unit(map[string]any{
			"Type": "simple", "Restart": "no", "Job": []any{uint32(7), "/"}, "ActiveState": "deactivating", "ExecStartPost": [][]any{{"/usr/bin/choom", []string{"/usr/bin/choom", "-p", "$MAINPID", "-n", "-500"}}},
		}))},
		"accepted": {Findings: handoffcheck.Look(accepting(unit(map[string]any{"Type": "simple", "Restart": "no"}), "ZDT001"))},
	} {
		t.Run(name, func(t *testing.T) {
			d.Service = "web"
			golden(t, "check/"+name, checkText(newStyle(nil, false, true), d))
		})
	}
}

func accepting(f handoffcheck.Facts, ids ...string) handoffcheck.Facts {
	f.Accepted = ids
	return f
}
