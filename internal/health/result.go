package health

import (
	"fmt"
	"strings"
	"time"
)

// State is how far a gate has come.
type State string

const (
	Asking State = "asking"
	Passed State = "passed"
	Failed State = "failed"
)

// Result is what a gate has said so far, and at the end all that it said.
type Result struct {
	Gate  string `json:"gate"`
	State State  `json:"state"`
	// PassedAfter is the time until it had passed (nanoseconds).
	PassedAfter time.Duration `json:"passed_after,omitempty"`
	// Tries are all tries that came to an end, OK those that were a success, Need how many in a row make it pass.
	Tries int `json:"tries"`
	OK    int `json:"ok"`
	Need  int `json:"need,omitempty"`
	// Connections counts who accepted the connections that were opened.
	Connections Accepted `json:"connections,omitzero"`
	// Blind is why it could not be seen, when it could not, who accepted a connection.
	Blind string `json:"blind,omitempty"`
	// Errors is how many lines the candidate wrote that errors: counts, Doubt why there may have been more.
	Errors int    `json:"errors,omitempty"`
	Doubt  string `json:"doubt,omitempty"`
	// Last is what came of the last try, Why the reason of a failure.
	Last string `json:"last,omitempty"`
	Why  string `json:"why,omitempty"`

	row int // successes at present, without a failure between
	bad int // failures likewise, since it has passed
}

// Accepted counts connections by who accepted them.
type Accepted struct {
	Candidate int `json:"candidate,omitempty"`
	Others    int `json:"others,omitempty"`  // these do not count
	Unknown   int `json:"unknown,omitempty"` // these count, and it was not to be seen whose answers they are
}

// answer is what came of one try.
type answer struct {
	ok   bool
	text string
	cut  bool // it had less time than a try has
	by   Accepted
	// blind is why Unknown.
	blind string
}

// add counts a try. elapsed is the time since the first began.
func (r *Result) add(g Gate, a answer, elapsed time.Duration) {
	r.Tries++
	r.Connections.Candidate += a.by.Candidate
	r.Connections.Others += a.by.Others
	r.Connections.Unknown += a.by.Unknown
	if a.blind != "" {
		r.Blind = a.blind
	}
	// One that was cut short by the deadline of all says the least.
	if !a.cut || r.Last == "" {
		r.Last = a.text
	}
	switch {
	case a.ok:
		r.OK, r.row, r.bad = r.OK+1, r.row+1, 0
		if r.State == Asking && r.row >= g.successes {
			r.State, r.PassedAfter = Passed, elapsed
		}
	case r.State == Passed:
		if r.bad++; r.bad >= g.failures {
			r.fail(fmt.Sprintf("it failed %s in a row after it had passed", times(r.bad)))
		}
	default:
		r.row = 0
	}
}

// overdue is the end of the time to pass.
func (r *Result) overdue(g Gate) {
	if r.State == Asking {
		r.fail("it did not pass within " + short(g.within))
	}
}

func (r *Result) fail(why string) { r.State, r.Why = Failed, why }

// Failure is why a gate failed.
type Failure struct{ Result Result }

func (f *Failure) Error() string {
	r := f.Result
	var details []string
	if r.Tries > 0 {
		details = append(details, fmt.Sprintf("%s, %d ok", tries(r.Tries), r.OK))
	}
	if n := r.Connections.Others; n > 0 {
		details = append(details, fmt.Sprintf("%d of %d connections were accepted by another process than the candidate's", n, n+r.Connections.Candidate+r.Connections.Unknown))
	}
	if r.Last != "" {
		details = append(details, "last: "+r.Last)
	}
	text := fmt.Sprintf("gate %s: %s", r.Gate, r.Why)
	if len(details) > 0 {
		text += " (" + strings.Join(details, "; ") + ")"
	}
	return text
}

// Progress is told after each try, and at the end of a gate.
type Progress struct {
	Index int // of the gate
	Result
}

// String is one line.
func (p Progress) String() string {
	r := p.Result
	head := "gate " + r.Gate + ": "
	switch {
	case r.State == Failed:
		return (&Failure{r}).Error()
	case r.State == Asking && r.row > 0:
		return fmt.Sprintf("%s%d/%d ok", head, r.row, r.Need)
	case r.State == Asking && r.Errors == 0:
		return fmt.Sprintf("%snot yet (%s; last: %s)", head, tries(r.Tries), r.Last)
	case r.bad > 0:
		return fmt.Sprintf("%sfailing (%s in a row): %s", head, times(r.bad), r.Last)
	case r.Errors > 0:
		return fmt.Sprintf("%s%s so far", head, errorLines(r.Errors))
	case r.Tries == 0 && r.Doubt != "":
		return fmt.Sprintf("%spassed, but %s", head, r.Doubt)
	case r.Tries == 0:
		return head + "passed"
	}
	return fmt.Sprintf("%spassed after %s, %d of %s ok%s", head, round(r.PassedAfter), r.OK, tries(r.Tries), r.unseen())
}

// unseen says how much of it is not proved to be the candidate's.
func (r Result) unseen() string {
	if n := r.Connections.Unknown; n > 0 {
		return fmt.Sprintf(" (of %s it was not to be seen who answered)", tries(n))
	}
	return ""
}

func errorLines(n int) string {
	if n == 1 {
		return "1 error line"
	}
	return fmt.Sprintf("%d error lines", n)
}

func tries(n int) string {
	if n == 1 {
		return "1 try"
	}
	return fmt.Sprintf("%d tries", n)
}

func times(n int) string {
	if n == 1 {
		return "once"
	}
	return fmt.Sprintf("%d times", n)
}

// round leaves what is worth reading.
func round(d time.Duration) time.Duration {
	switch {
	case d >= 10*time.Second:
		return d.Round(100 * time.Millisecond)
	case d >= time.Second:
		return d.Round(10 * time.Millisecond)
	case d >= 10*time.Millisecond:
		return d.Round(time.Millisecond)
	}
	return d.Round(10 * time.Microsecond)
}
