package handoffcheck

import (
	"cmp"
	"slices"
	"strings"
)

// Family is what a check is about.
type Family string

// The families, in the order of the catalog.
const (
	FamilyUnit      Family = "unit"
	FamilySandbox   Family = "sandbox"
	FamilyResources Family = "resources"
	FamilyRuntime   Family = "runtime"
	FamilyCandidate Family = "candidate"
	FamilyHost      Family = "host"
	FamilyBalancer  Family = "load balancer in front"
)

// Check is one thing that can be wrong.
type Check struct {
	ID       string   `json:"id"`
	Severity Severity `json:"severity"`
	Family   Family   `json:"family"`
	Title    string   `json:"title"`          // in a few words
	Why      string   `json:"why"`            // in one sentence
	More     string   `json:"more,omitempty"` // in Markdown: how it comes about, what one sees, what to think of when mending it

	// handoff: it says nothing about a start by systemd.
	handoff bool
	// unmanaged: it counts for a service that zdt does not manage, too. What zdt adopt mends by itself does not.
	unmanaged bool
	look      func(Facts) []sight // nil: about something that is looked at elsewhere
}

// sight is one place where a check finds what it is about.
type sight struct {
	seen string // the very value
	fix  string // what to do, if there is no drop-in
	unit string // whose drop-in it is
	// dropIn are the lines of the drop-in that mends it.
	dropIn []string
}

// Catalog is all checks by ID.
func Catalog() []Check {
	all := slices.Concat(serviceChecks(), restartChecks(), stateChecks(), wordsChecks(), timeChecks(), socketChecks(), sandboxChecks(), resourceChecks(), runtimeChecks(), listenerChecks(), candidateChecks(), serviceCandidateChecks(),
		journalChecks(), hostChecks(), balancerChecks())
	slices.SortFunc(all, func(a, b Check) int { return cmp.Compare(a.ID, b.ID) })
	return all
}

// Find is the check with an ID, in whatever case.
func Find(id string) (Check, bool) {
	for _, c := range Catalog() {
		if strings.EqualFold(c.ID, id) {
			return c, true
		}
	}
	return Check{}, false
}

// HandoffOnly reports whether a finding stands in the way of handoffs alone: systemd can start the service all the same.
func HandoffOnly(id string) bool {
	c, _ := Find(id)
	return c.handoff
}

// Look returns what the checks find, the worst first.
func Look(f Facts) []Finding {
	var found []Finding
	masked := f.Service.Text("LoadState") == "masked" // then systemd knows nothing else of it
	for _, c := range Catalog() {
		if c.look == nil || f.Unmanaged && !c.unmanaged || masked && c.ID != maskedID {
			continue
		}
		for _, s := range c.look(f) {
			found = append(found, c.finding(s))
		}
	}
	Accept(found, f.Accepted)
	Sort(found)
	return found
}

// Accept marks the findings that somebody has decided to live with.
func Accept(found []Finding, ids []string) {
	for i, f := range found {
		found[i].Accepted = f.Accepted || slices.Contains(ids, f.ID)
	}
}

// Sort puts the worst findings first.
func Sort(found []Finding) {
	slices.SortStableFunc(found, func(a, b Finding) int { return cmp.Compare(a.Severity.rank(), b.Severity.rank()) })
}

func (c Check) finding(s sight) Finding {
	f := Finding{ID: c.ID, Severity: c.Severity, Seen: s.seen, Why: c.Why, Fix: s.fix}
	if len(s.dropIn) > 0 {
		f.Unit, f.DropIn = s.unit, strings.Join(s.dropIn, "\n")+"\n"
	}
	if f.Fix == "" {
		f.Fix = "put " + strings.Join(s.dropIn[1:], ", ") + " into " + s.dropIn[0] + " of " + s.unit
	}
	return f
}

func (s Severity) rank() int { return slices.Index([]Severity{Blocker, Risk, Note}, s) }
