package load

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
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
	Refused   Kind = "refused"             // the connection could not be opened; counted apart from the others
	Other     Kind = "other"               // something else; the text says what
)

// Failure is one thing a client noticed.
type Failure struct {
	At    time.Duration // since the start of the load
	Kind  Kind
	Fresh bool   // seen by a client with a connection per request
	Text  string // the error
}

// Bucket counts the answers of one stretch of time.
type Bucket struct {
	At       time.Duration  // its beginning, since the start of the load
	Versions map[string]int // answers by their X-Version header; "" for answers without
	Failed   int            // Failed and Refused of that time
}

// Report is what the clients saw.
type Report struct {
	Elapsed      time.Duration
	Requests     int // answered and failed; refused ones were never sent
	Failed       int
	Refused      int
	Reconnects   int // of clients that keep their connection, for whatever reason
	PoliteCloses int
	IdleCloses   int

	Kinds    map[Kind]int // Failed and Refused
	Failures []Failure    // the first of them
	Versions map[string]int
	Buckets  []Bucket

	P50, P99, Max time.Duration // latency of answered requests, to about 3 %; Max is exact
}

// String summarises the report for people, in one line and one more per failure.
func (r Report) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%d requests in %.1fs: %d failed, %d refused; %d reconnects (%d polite closes, %d idle closes); p50 %s, p99 %s, max %s",
		r.Requests, r.Elapsed.Seconds(), r.Failed, r.Refused, r.Reconnects, r.PoliteCloses, r.IdleCloses,
		short(r.P50), short(r.P99), short(r.Max))
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
		client := "kept"
		if f.Fresh {
			client = "fresh"
		}
		fmt.Fprintf(&b, "\n  +%.3fs %s (%s connection): %s", f.At.Seconds(), f.Kind, client, f.Text)
	}
	if more := r.Failed + r.Refused - len(r.Failures); more > 0 {
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

// recorder gathers what all clients see.
type recorder struct {
	start  time.Time
	bucket time.Duration
	keep   int // failures in detail

	mu   sync.Mutex
	r    Report // without what report computes
	hist histogram
	done bool
}

func newRecorder(cfg Config) *recorder {
	return &recorder{
		start:  time.Now(),
		bucket: cfg.Bucket,
		keep:   cfg.Failures,
		r:      Report{Kinds: make(map[Kind]int), Versions: make(map[string]int)},
	}
}

func (rec *recorder) answered(version string, latency time.Duration) {
	rec.mu.Lock()
	defer rec.mu.Unlock()
	rec.r.Requests++
	rec.r.Versions[version]++
	rec.hist.add(latency)
	rec.now().Versions[version]++
}

func (rec *recorder) failed(c *client, err error) {
	rec.mu.Lock()
	defer rec.mu.Unlock()
	rec.r.Requests++
	rec.r.Failed++
	rec.note(c, kindOf(err), err)
}

func (rec *recorder) refused(c *client, err error) {
	rec.mu.Lock()
	defer rec.mu.Unlock()
	rec.r.Refused++
	rec.note(c, Refused, err)
}

func (rec *recorder) polite()      { rec.count(&rec.r.PoliteCloses) }
func (rec *recorder) idleClosed()  { rec.count(&rec.r.IdleCloses) }
func (rec *recorder) reconnected() { rec.count(&rec.r.Reconnects) }

func (rec *recorder) count(n *int) {
	rec.mu.Lock()
	defer rec.mu.Unlock()
	*n++
}

// note keeps a failure; the caller holds mu.
func (rec *recorder) note(c *client, kind Kind, err error) {
	rec.r.Kinds[kind]++
	rec.now().Failed++
	if len(rec.r.Failures) < rec.keep {
		rec.r.Failures = append(rec.r.Failures, Failure{
			At: time.Since(rec.start), Kind: kind, Fresh: !c.keep, Text: err.Error(),
		})
	}
}

// now returns the current bucket; the caller holds mu. Buckets without answers exist too: a gap is worth seeing.
func (rec *recorder) now() *Bucket {
	i := int(time.Since(rec.start) / rec.bucket)
	for len(rec.r.Buckets) <= i {
		at := time.Duration(len(rec.r.Buckets)) * rec.bucket
		rec.r.Buckets = append(rec.r.Buckets, Bucket{At: at, Versions: make(map[string]int)})
	}
	return &rec.r.Buckets[i]
}

func (rec *recorder) end() {
	rec.mu.Lock()
	defer rec.mu.Unlock()
	rec.done = true
	rec.r.Elapsed = time.Since(rec.start)
}

// report returns a copy that nobody writes to any more.
func (rec *recorder) report() Report {
	rec.mu.Lock()
	defer rec.mu.Unlock()
	r := rec.r
	if !rec.done {
		r.Elapsed = time.Since(rec.start)
	}
	r.Kinds = maps.Clone(r.Kinds)
	r.Failures = slices.Clone(r.Failures)
	r.Versions = maps.Clone(r.Versions)
	r.Buckets = slices.Clone(r.Buckets)
	for i := range r.Buckets {
		r.Buckets[i].Versions = maps.Clone(r.Buckets[i].Versions)
	}
	r.P50, r.P99, r.Max = rec.hist.quantile(0.50), rec.hist.quantile(0.99), rec.hist.max
	return r
}
