package handoffcheck

import "strings"

// Severity says what a finding means for an upgrade.
type Severity string

const (
	Blocker Severity = "blocker" // an upgrade is bound to fail
	Risk    Severity = "risk"    // it may fail, or lose requests, or leave the service without protection
	Note    Severity = "note"    // worth knowing
)

// Finding is one thing that was found. IDs are stable; they are never reused.
type Finding struct {
	ID       string   `json:"id"` // ZDT0xx
	Severity Severity `json:"severity"`
	Seen     string   `json:"seen"` // the very value
	Why      string   `json:"why"`
	Fix      string   `json:"fix"`

	// DropIn is the fix as the text of a drop-in of Unit, where it is one.
	DropIn string `json:"drop_in,omitempty"`
	Unit   string `json:"unit,omitempty"`

	// Accepted: AcceptRisk= of the unit has its ID, so it stops no upgrade.
	Accepted bool `json:"accepted,omitempty"`
}

// Error makes a blocker out of findings: an error that names all of them and
// whose Hint is the fix of the first.
type Error struct{ Findings []Finding }

func (e *Error) Error() string {
	var lines []string
	for _, f := range e.Findings {
		lines = append(lines, f.Seen+": "+f.Why+" ("+f.ID+")")
	}
	return strings.Join(lines, "; ")
}

// Hint returns what to do about the first finding.
func (e *Error) Hint() string {
	if len(e.Findings) == 0 {
		return ""
	}
	return e.Findings[0].Fix
}

// Blockers returns an *Error with the findings that block, or nil.
func Blockers(findings []Finding) error {
	var blockers []Finding
	for _, f := range findings {
		if f.Severity == Blocker {
			blockers = append(blockers, f)
		}
	}
	if len(blockers) == 0 {
		return nil
	}
	return &Error{blockers}
}
