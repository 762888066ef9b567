package handoffcheck

import "fmt"

// maskedID is the check for a unit of which systemd knows nothing but its name.
const maskedID = "ZDT014"

// stateChecks are about what systemd is about to do.
func stateChecks() []Check {
	return []Check{
		{
			ID: "ZDT083", Severity: Blocker, Family: FamilyUnit, Title: "systemd is about to do something with the service",
			Why: "a stop, start or restart that is queued or under way would meet the upgrade in its middle",
			look: func(f Facts) []sight {
				job := f.Service.job()
				if job == 0 || f.Service.Text("ActiveState") == "reloading" { // an upgrade waits for a reload
					return nil
				}
				return []sight{{seen: fmt.Sprintf("job %d of %s, which is %s", job, f.Service.Name, f.Service.Text("ActiveState")),
					fix: "wait for it (systemctl list-jobs), or take it back: systemctl cancel " + fmt.Sprint(job)}}
			},
		},
	}
}

// job is the number of the job that systemd has for the unit, 0 for none: (uo).
func (u Unit) job() uint32 {
	pair, _ := u.Properties["Job"].([]any)
	if len(pair) == 0 {
		return 0
	}
	n, _ := pair[0].(uint32)
	return n
}
