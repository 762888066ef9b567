package cmd

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/pflag"

	"github.com/zdt-dev/zdt/handoffcheck"
)

// acceptRisk is --accept-risk.
type acceptRisk struct{ ids *[]string }

func addAcceptRisk(flags *pflag.FlagSet, ids *[]string) {
	flags.Var(acceptRisk{ids}, "accept-risk", "go on in spite of these blockers of zdt check: `ID,...` (repeat)")
}

// Set reads IDs of the catalog.
func (a acceptRisk) Set(s string) error {
	for id := range strings.SplitSeq(s, ",") {
		c, ok := handoffcheck.Find(strings.TrimSpace(id))
		if !ok {
			return fmt.Errorf("there is no check %.40q; zdt check names those that it finds", id)
		}
		if !slices.Contains(*a.ids, c.ID) {
			*a.ids = append(*a.ids, c.ID)
		}
	}
	return nil
}

func (a acceptRisk) String() string { return "" }

// Type names the flag's value in --help.
func (a acceptRisk) Type() string { return "ID,..." }

// findings are those of zdt check NAME. Of the file that is upgraded to, if there is one, they have what does not block: for blockers
// upgrade.Engine.Check is asked.
func (h *host) findings(ctx context.Context, binary string) ([]handoffcheck.Finding, error) {
	facts, _, err := h.facts(ctx)
	if err != nil {
		return nil, err
	}
	for i := range facts.Gates {
		facts.Gates[i].Problem = "" // they are read before, unless --skip-gates leaves them out
	}
	found := handoffcheck.Look(facts)
	if binary != "" {
		of := handoffcheck.CandidateFor(binary, facts)
		found = append(found, slices.DeleteFunc(of, func(f handoffcheck.Finding) bool { return f.Severity == handoffcheck.Blocker })...)
		handoffcheck.Accept(found, facts.Accepted)
		handoffcheck.Sort(found)
	}
	return found, nil
}

// blockers refuses a file that is bound to fail for the service, or, of a service about which nothing can be known, for the host.
func (h *host) blockers(ctx context.Context, path string) error {
	facts, _, err := h.facts(ctx)
	if err != nil {
		return handoffcheck.Blockers(handoffcheck.Candidate(path))
	}
	return handoffcheck.Blockers(handoffcheck.CandidateFor(path, facts))
}

// blockers is that of a host, for who has none; below --root nothing is known but the file.
func (f *factory) blockers(ctx context.Context, service, path string) error {
	if f.globals.root != "" {
		return handoffcheck.Blockers(handoffcheck.Candidate(path))
	}
	h, err := f.openHost(ctx, service)
	if err != nil {
		return err
	}
	defer h.close()
	return h.blockers(ctx, path)
}

// risks counts what may go wrong.
func risks(found []handoffcheck.Finding) (n int) {
	for _, f := range found {
		if f.Severity == handoffcheck.Risk {
			n++
		}
	}
	return n
}
