package handoffcheck

import (
	"fmt"
	"time"

	"github.com/zdt-dev/zdt/handoff"
)

// Balancer is what stands in front of the service, as [X-Zdt] describes it, and what became of connections from there. What is
// not known is zero.
type Balancer struct {
	LongestRequest time.Duration // how long a request may take
	IdleTimeout    time.Duration // how long the load balancer keeps an idle connection
	// ClosedIdle is how many idle connections the last upgrade had to close: they could not move.
	ClosedIdle int
}

// drainSlack is what a drain is given beyond the longest request.
const drainSlack = 5 * time.Second

// balancerChecks are about clients that the service does not see: those of the load balancer in front of it.
func balancerChecks() []Check {
	return []Check{
		{
			ID: "ZDT070", Severity: Risk, Family: FamilyBalancer, Title: "requests may take longer than an old program has to finish them",
			Why: "what is still open at the end of the drain is cut, and its client gets half an answer or none",
			More: `LongestRequest= in [X-Zdt] says how long a request may take: usually the time limit that the load balancer in front has for an
answer. DrainTimeout= is what an old generation has to finish what it has begun, ` + "`ZDT_DRAIN_TIMEOUT`" + ` is how its runtime learns it, and
TimeoutStopSec= has to be longer than both. They are in force after a restart.

Streams (WebSocket, server-sent events) are no requests: those that can move do, and the others end at ` + "`ZDT_STREAM_TIMEOUT`" + `.`,
			look: func(f Facts) []sight {
				b, drain := f.Balancer, f.given("--drain-timeout", "ZDT_DRAIN_TIMEOUT", f.Drain)
				if b.LongestRequest == 0 || drain == 0 || drain >= b.LongestRequest {
					return nil
				}
				return f.longerDrain(fmt.Sprintf("LongestRequest=%s, DrainTimeout=%s", b.LongestRequest, drain), b.LongestRequest+drainSlack)
			},
		},
		{
			ID: "ZDT071", Severity: Risk, handoff: true, Family: FamilyBalancer, Title: "an old program closes connections that the load balancer still uses",
			Why: "idle connections that cannot move are closed before the load balancer lets go of them, and a request that it sends at that moment is lost",
			More: `Most connections move to the new program. Those of TLS and HTTP/2 cannot: on these the old program answers what still comes, with the
announcement that it closes, and closes what has been idle for ` + "`ZDT_IDLE_GRACE`" + ` (5s). IdleTimeout= in [X-Zdt] says how long the load
balancer keeps an idle connection. When the grace is longer than that, the load balancer is always the one who closes, and nothing can be
on its way. The price is that the old program stays for as long.

It is found when the last upgrade did close such connections. A program under ` + "`zdt run`" + ` does as it likes with its own.`,
			look: func(f Facts) []sight {
				b, grace := f.Balancer, f.given("", "ZDT_IDLE_GRACE", handoff.DefaultIdleGrace)
				if f.Helper || b.IdleTimeout == 0 || b.ClosedIdle == 0 || grace > b.IdleTimeout {
					return nil
				}
				want := b.IdleTimeout + drainSlack
				seen := fmt.Sprintf("IdleTimeout=%s, ZDT_IDLE_GRACE=%s, and the last upgrade closed %d that were idle", b.IdleTimeout, grace, b.ClosedIdle)
				if f.given("--drain-timeout", "ZDT_DRAIN_TIMEOUT", f.Drain) > want {
					return f.service(seen, "Environment=ZDT_IDLE_GRACE="+want.String())
				}
				s := f.longerDrain(seen, want+drainSlack)
				s[0].dropIn = append(s[0].dropIn, "Environment=ZDT_IDLE_GRACE="+want.String())
				return s
			},
		},
	}
}

// longerDrain gives the old program more time, wherever it is said how much it has.
func (f Facts) longerDrain(seen string, drain time.Duration) []sight {
	return []sight{{
		seen: seen, unit: f.Service.Name, fix: fmt.Sprintf("give it DrainTimeout=%s in [X-Zdt], ZDT_DRAIN_TIMEOUT in the environment, and TimeoutStopSec=", drain),
		dropIn: []string{"[X-Zdt]", "DrainTimeout=" + drain.String(), "[Service]", "Environment=ZDT_DRAIN_TIMEOUT=" + drain.String(), "TimeoutStopSec=" + seconds(drain+2*stopMargin)},
	}}
}
