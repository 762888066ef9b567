package cmd

import (
	"context"
	"fmt"

	"github.com/zdt-dev/zdt/internal/health"
	"github.com/zdt-dev/zdt/journal"
	"github.com/zdt-dev/zdt/unitgen"
	"github.com/zdt-dev/zdt/upgrade"
)

// gates are those of the unit, Health= and Gate=, and those of the command line. nil: there are none.
func (s *site) gates(o upgradeOptions) (*upgrade.Gates, error) {
	if o.SkipGates {
		return nil, nil
	}
	gates, err := parseGates(s.policy, gatesOf(o.Service, o.Gates))
	if err != nil || len(gates) == 0 {
		return nil, err
	}
	p := health.Prober{Lines: health.Journal(journal.Query{Source: s.source()})}
	if err := p.Check(gates); err != nil {
		return nil, &Failure{Code: ExitRefused, Err: err, Hint: hintOf(err)}
	}
	return &upgrade.Gates{Within: health.Longest(gates), Start: func(ctx context.Context, c upgrade.Candidate, tell func(string)) upgrade.GateWatch {
		w := p.Run(ctx, gates, health.Candidate(c), func(p health.Progress) { tell(p.String()) })
		return upgrade.GateWatch{Passed: w.Passed(), Failed: w.Failed(), Settle: w.Settle, Wait: func() []upgrade.GateResult { return gateResults(w.Wait()) }}
	}}, nil
}

// gatesOf are the gates of the command line, for one service.
func gatesOf(service string, gates []string) []string {
	var filled []string
	for _, g := range gates {
		filled = append(filled, unitgen.FillName(service, g))
	}
	return filled
}

func parseGates(policy unitgen.Policy, flags []string) ([]health.Gate, error) {
	var gates []health.Gate
	for _, from := range []struct {
		name  string
		lines []string
		code  ExitCode
	}{
		{"Health= of [X-Zdt]", policy.Health, ExitRefused},
		{"Gate= of [X-Zdt]", policy.Gates, ExitRefused},
		{"--gate", flags, ExitUsage},
	} {
		for _, line := range from.lines {
			g, err := health.Parse(line)
			if err != nil {
				return nil, &Failure{Code: from.code, Err: fmt.Errorf("%s: %w", from.name, err), Hint: hintOf(err)}
			}
			gates = append(gates, g)
		}
	}
	return gates, nil
}

func gateResults(results []health.Result) []upgrade.GateResult {
	var out []upgrade.GateResult
	for _, r := range results {
		out = append(out, upgrade.GateResult{
			Gate: r.Gate, State: string(r.State), PassedAfter: r.PassedAfter, Tries: r.Tries, OK: r.OK,
			Others: r.Connections.Others, Unknown: r.Connections.Unknown, Blind: r.Blind, Errors: r.Errors, Doubt: r.Doubt, Last: r.Last, Why: r.Why,
		})
	}
	return out
}
