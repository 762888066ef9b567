package handoffcheck

import (
	"fmt"
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
			look: func(f Facts) []sight {
				limit, ok := f.Service.Span("TimeoutStopUSec")
				if !ok || f.Drain == 0 || limit == endless || limit >= f.Drain+stopMargin {
					return nil
				}
				return f.service(fmt.Sprintf("TimeoutStopSec=%s, drain timeout %s", limit, f.Drain), "TimeoutStopSec="+seconds(f.Drain+2*stopMargin))
			},
		},
		{
			ID: "ZDT006", Severity: Risk, Family: FamilyUnit, Title: "a reload ends before the new program had its time",
			Why: "TimeoutStartSec= also bounds ExecReload=, and the runtime waits for READY as long as its ready timeout",
			look: func(f Facts) []sight {
				limit, ok := f.Service.Span("TimeoutStartUSec")
				if !ok || f.Ready == 0 || limit == endless || limit >= f.Ready+stopMargin {
					return nil
				}
				return f.service(fmt.Sprintf("TimeoutStartSec=%s, ready timeout %s", limit, f.Ready), "TimeoutStartSec="+seconds(f.Ready+3*stopMargin))
			},
		},
	}
}

// seconds is a time as systemd reads it.
func seconds(d time.Duration) string {
	if d%time.Second != 0 {
		d += time.Second - d%time.Second
	}
	return fmt.Sprintf("%ds", int64(d/time.Second))
}
