package cmd

import (
	"encoding/json"

	"github.com/zdt-dev/zdt/handoffcheck"
	"github.com/zdt-dev/zdt/release"
	"github.com/zdt-dev/zdt/unitgen"
	"github.com/zdt-dev/zdt/upgrade"
)

// balancer is what the policy says of the load balancer in front, and what the last upgrade did to connections from there.
func (h *host) balancer(policy unitgen.Policy) handoffcheck.Balancer {
	b := handoffcheck.Balancer{LongestRequest: policy.LongestRequest, IdleTimeout: policy.IdleTimeout}
	if b.IdleTimeout == 0 {
		return b
	}
	store, err := release.Open(h.paths.disk(h.paths.StateDir(h.service)), release.Options{})
	if err != nil {
		return b // no upgrade yet, or not for this user to see
	}
	defer store.Close()
	reports, err := store.Reports()
	if err != nil || len(reports) == 0 {
		return b
	}
	var last upgrade.Report
	data, err := store.ReadReport(reports[len(reports)-1])
	if err == nil && json.Unmarshal(data, &last) == nil && last.Connections != nil {
		b.ClosedIdle = int(last.Connections.Closed)
	}
	return b
}
