package load

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"
)

// Kind sorts failures.
type Kind string

// The kinds of failures.
const (
	Reset     Kind = "reset"               // connection reset, or broken pipe, before the first byte of an answer
	NoAnswer  Kind = "eof-before-response" // connection closed in order, before the first byte of an answer
	Timeout   Kind = "timeout"             // no complete answer within Config.Timeout
	BadAnswer Kind = "bad-response"        // wrong status, wrong body, or cut off half way
	Other     Kind = "other"               // something else; the text says what

	Refused Kind = "refused" // the connection could not be opened; counted apart from those above

	Cut       Kind = "cut"       // of a stream; these, too, are counted apart
	Lost      Kind = "lost"      // a message
	Doubled   Kind = "doubled"   // a message
	Reordered Kind = "reordered" // a message
	Wrong     Kind = "wrong"     // a message with other bytes than it must have
)

// Failure is one thing a client noticed.
type Failure struct {
	At     time.Duration // since the start of the load
	Kind   Kind
	Client Client // who noticed
	Window bool   // within a Window
	Text   string // the error
}

// Bucket counts the answers of one stretch of time.
type Bucket struct {
	At       time.Duration  // its beginning, since the start of the load
	Versions map[string]int // answers by their X-Version header; "" for answers without
	Failed   int            // failures of any kind
}

// Latency is how long answers took, to about 3 %; Max is exact. What the client itself asked for, such as the pauses in
// what it sends in pieces, is not counted.
type Latency struct {
	P50, P99, Max time.Duration
}

// Part is what the clients saw in a part of the time, or some of the clients.
type Part struct {
	Requests     int // answered and failed; refused ones were never sent
	Failed       int
	Refused      int
	Reconnects   int // of clients that keep their connection, for whatever reason
	PoliteCloses int
	IdleCloses   int

	Cut       int // streams
	Messages  int // of streams, each counted once
	Lost      int
	Doubled   int
	Reordered int
	Wrong     int

	Statuses map[int]int // answers by their status
	Latency
}

// Losses counts everything that a client noticed of what it should not have: all kinds of failures together.
func (p Part) Losses() int {
	return p.Failed + p.Refused + p.Cut + p.Lost + p.Doubled + p.Reordered + p.Wrong
}

// Report is what the clients saw.
type Report struct {
	Part
	Elapsed time.Duration

	Kinds    map[Kind]int // Losses by their kind
	Failures []Failure    // the first of them
	Versions map[string]int
	Buckets  []Bucket

	Clients map[Client]Part // by the kind of client
	Windows []Span          // as Load.Window marked them
	Inside  Part            // what was under way at some time within a window
	Outside Part            // the rest
}

// Span is a stretch of time.
type Span struct {
	From, To time.Duration // since the start of the load; To is 0 while it lasts
}

// String summarises the report for people, in one line and one more per failure.
func (r Report) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%d requests in %.1fs: %d failed, %d refused; %d reconnects (%d polite closes, %d idle closes); p50 %s, p99 %s, max %s",
		r.Requests, r.Elapsed.Seconds(), r.Failed, r.Refused, r.Reconnects, r.PoliteCloses, r.IdleCloses,
		short(r.P50), short(r.P99), short(r.Max))
	if r.Messages+r.Cut+r.Lost+r.Doubled+r.Reordered+r.Wrong > 0 {
		fmt.Fprintf(&b, "; %d messages: %d lost, %d doubled, %d reordered, %d wrong; %d streams cut",
			r.Messages, r.Lost, r.Doubled, r.Reordered, r.Wrong, r.Cut)
	}
	for i, v := range slices.Sorted(maps.Keys(r.Versions)) {
		sep := ", "
		if i == 0 {
			sep = "; answers "
		}
		name := v
		if v == "" {
			name = "without version"
		}
		fmt.Fprintf(&b, "%s%s: %d", sep, name, r.Versions[v])
	}
	for _, f := range r.Failures {
		fmt.Fprintf(&b, "\n  +%.3fs %s (%s): %s", f.At.Seconds(), f.Kind, f.Client, f.Text)
	}
	if more := r.Losses() - len(r.Failures); more > 0 {
		fmt.Fprintf(&b, "\n  and %d more", more)
	}
	return b.String()
}

func short(d time.Duration) string {
	if d < time.Second {
		return fmt.Sprintf("%.1fms", float64(d.Microseconds())/1000)
	}
	return fmt.Sprintf("%.2fs", d.Seconds())
}
