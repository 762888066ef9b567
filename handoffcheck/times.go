package handoffcheck

import (
	"fmt"
	"path"
	"strings"
	"time"
)

// stopMargin is what a stop needs besides the time that requests have to finish: zdt and systemd tell each other
// what has ended, and on a busy host each of them waits for a processor.
const stopMargin = 5 * time.Second

// timeChecks compare systemd's limits with those of the runtime.
func timeChecks() []Check {
	return []Check{
		{
			ID: "ZDT005", Severity: Risk, Family: FamilyUnit, Title: "a stop does not wait until requests have finished",
			Why: "systemd kills what is left after TimeoutStopSec=, and the runtime gives requests as long as its drain timeout",
			More: `An ExecStop= has that time for itself, and what it has left has it once more; but the unit has failed (Result=timeout) when the
first one is over.`,
			look: func(f Facts) []sight {
				limit, ok := f.Service.Span("TimeoutStopUSec")
				drain := f.given("--drain-timeout", "ZDT_DRAIN_TIMEOUT", f.Drain)
				if !ok || drain == 0 || limit == endless || limit >= drain+stopMargin {
					return nil
				}
				return f.service(fmt.Sprintf("TimeoutStopSec=%s, drain timeout %s", limit, drain), "TimeoutStopSec="+seconds(drain+2*stopMargin))
			},
		},
		{
			ID: "ZDT006", Severity: Risk, Family: FamilyUnit, Title: "a reload ends before the new program had its time",
			Why: "TimeoutStartSec= also bounds ExecReload=, and the runtime waits for READY as long as its ready timeout",
			look: func(f Facts) []sight {
				limit, ok := f.Service.Span("TimeoutStartUSec")
				ready := f.given("--ready-timeout", "ZDT_READY_TIMEOUT", f.Ready)
				if !ok || ready == 0 || limit == endless || limit >= ready+stopMargin {
					return nil
				}
				return f.service(fmt.Sprintf("TimeoutStartSec=%s, ready timeout %s", limit, ready), "TimeoutStartSec="+seconds(ready+3*stopMargin))
			},
		},
	}
}

// given is the limit that the runtime goes by: what a flag of zdt run says in a unit that somebody wrote by hand, or else a
// variable of the unit, or else the policy.
func (f Facts) given(flag, variable string, policy time.Duration) time.Duration {
	for _, argv := range f.Service.Commands("ExecStart") {
		if len(argv) < 2 || path.Base(argv[0]) != "zdt" || argv[1] != "run" {
			continue
		}
		for i, a := range argv {
			if a == "--" {
				break
			}
			value, ok := strings.CutPrefix(a, flag+"=")
			if a == flag && i+1 < len(argv) {
				value, ok = argv[i+1], true
			}
			if d, err := time.ParseDuration(value); ok && err == nil {
				return d
			}
		}
	}
	for _, e := range f.Service.Texts("Environment") {
		if value, ok := strings.CutPrefix(e, variable+"="); ok {
			if d, err := time.ParseDuration(value); err == nil {
				return d
			}
		}
	}
	return policy
}

// seconds is a time as systemd reads it.
func seconds(d time.Duration) string {
	if d%time.Second != 0 {
		d += time.Second - d%time.Second
	}
	return fmt.Sprintf("%ds", int64(d/time.Second))
}
