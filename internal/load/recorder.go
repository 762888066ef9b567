package load

import (
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"
)

// recorder gathers what all clients see.
type recorder struct {
	start  time.Time
	bucket time.Duration
	keep   int // failures in detail

	mu       sync.Mutex
	deaf     bool // nothing is counted any more
	done     bool
	r        Report // without what report computes
	all      tally
	inside   tally
	outside  tally
	clients  map[Client]*tally
	open     bool      // a window
	windowed time.Time // the end of the last one
}

// tally is a Part while it is counted.
type tally struct {
	Part
	hist histogram
}

func (t *tally) part() Part {
	p := t.Part
	p.Statuses = maps.Clone(p.Statuses)
	p.Latency = Latency{t.hist.quantile(0.50), t.hist.quantile(0.99), t.hist.max}
	return p
}

func newRecorder(cfg Config) *recorder {
	return &recorder{
		start:   time.Now(),
		bucket:  cfg.Bucket,
		keep:    cfg.Failures,
		r:       Report{Kinds: make(map[Kind]int), Versions: make(map[string]int)},
		clients: make(map[Client]*tally),
	}
}

// count changes the tallies that something belongs to which began at began and ends now.
func (rec *recorder) count(c *client, began time.Time, change func(*tally)) (counted bool) {
	rec.mu.Lock()
	defer rec.mu.Unlock()
	return rec.countLocked(c, began, change)
}

func (rec *recorder) countLocked(c *client, began time.Time, change func(*tally)) bool {
	if rec.deaf {
		return false
	}
	mine := rec.clients[c.kind]
	if mine == nil {
		mine = &tally{}
		rec.clients[c.kind] = mine
	}
	change(&rec.all)
	change(mine)
	if rec.within(began) {
		change(&rec.inside)
	} else {
		change(&rec.outside)
	}
	return true
}

// within tells whether something that began at began and ends now was under way within a window. Windows follow one
// another: the last one's end is the latest.
func (rec *recorder) within(began time.Time) bool {
	return rec.open || began.Before(rec.windowed)
}

func (rec *recorder) answered(c *client, a answer, began time.Time, asked time.Duration) {
	latency := max(0, time.Since(began)-asked)
	rec.mu.Lock()
	defer rec.mu.Unlock()
	counted := rec.countLocked(c, began, func(t *tally) {
		t.Requests++
		t.hist.add(latency)
		if a.status != 0 {
			if t.Statuses == nil {
				t.Statuses = make(map[int]int)
			}
			t.Statuses[a.status]++
		}
	})
	if counted {
		version := rec.version(a.version)
		rec.r.Versions[version]++
		rec.now().Versions[version]++
	}
}

// maxVersions and maxVersion bound what a service can make the report remember.
const (
	maxVersions = 1000
	maxVersion  = 100
)

// version is the name under which a version is counted; the caller holds mu.
func (rec *recorder) version(v string) string {
	if len(v) > maxVersion {
		v = v[:maxVersion]
	}
	if _, known := rec.r.Versions[v]; !known && len(rec.r.Versions) >= maxVersions {
		return "others"
	}
	return v
}

// failed counts a request that began at began.
func (rec *recorder) failed(c *client, err error, began time.Time) {
	rec.note(c, kindOf(err), 1, err.Error(), began, func(t *tally) { t.Requests++; t.Failed++ })
}

func (rec *recorder) refused(c *client, err error, began time.Time) {
	rec.note(c, Refused, 1, err.Error(), began, func(t *tally) { t.Refused++ })
}

func (rec *recorder) cut(c *client, err error) {
	rec.note(c, Cut, 1, err.Error(), time.Now(), func(t *tally) { t.Cut++ })
}

func (rec *recorder) lost(c *client, n int, text string) {
	rec.note(c, Lost, n, text, time.Now(), func(t *tally) { t.Lost += n })
}

func (rec *recorder) doubled(c *client, n int, text string) {
	rec.note(c, Doubled, n, text, time.Now(), func(t *tally) { t.Doubled += n })
}

func (rec *recorder) wrong(c *client, text string) {
	rec.note(c, Wrong, 1, text, time.Now(), func(t *tally) { t.Wrong++ })
}

// message counts a message and judges its number.
func (rec *recorder) message(c *client, seq *sequence, n uint64) {
	expected := seq.next
	lost, doubled, reordered := seq.take(n)
	rec.count(c, time.Now(), func(t *tally) { t.Messages += 1 - doubled })
	if lost|doubled|reordered == 0 {
		return
	}
	text := fmt.Sprintf("number %d where %d is expected", n, expected)
	if lost > 0 {
		rec.lost(c, lost, text)
	}
	if doubled > 0 {
		rec.doubled(c, doubled, text)
	}
	if reordered > 0 {
		rec.note(c, Reordered, reordered, text, time.Now(), func(t *tally) { t.Lost += lost; t.Reordered += reordered })
	}
}

func (rec *recorder) polite(c *client) {
	rec.count(c, time.Now(), func(t *tally) { t.PoliteCloses++ })
}

func (rec *recorder) idleClosed(c *client) {
	rec.count(c, time.Now(), func(t *tally) { t.IdleCloses++ })
}

// reconnected counts by the time when the connection before was lost.
func (rec *recorder) reconnected(c *client, ended time.Time) {
	rec.count(c, ended, func(t *tally) { t.Reconnects++ })
}

// note counts n failures, and keeps one in detail.
func (rec *recorder) note(c *client, kind Kind, n int, text string, began time.Time, change func(*tally)) {
	rec.mu.Lock()
	defer rec.mu.Unlock()
	if !rec.countLocked(c, began, change) {
		return
	}
	rec.r.Kinds[kind] += n // report overwrites those that a Part has
	rec.now().Failed += n
	if len(rec.r.Failures) < rec.keep {
		rec.r.Failures = append(rec.r.Failures, Failure{
			At: time.Since(rec.start), Kind: kind, Client: c.kind, Window: rec.within(began), Text: text,
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

func (rec *recorder) window() (end func()) {
	rec.mu.Lock()
	defer rec.mu.Unlock()
	i := len(rec.r.Windows)
	rec.open = true
	rec.r.Windows = append(rec.r.Windows, Span{From: time.Since(rec.start)})
	return func() {
		rec.mu.Lock()
		defer rec.mu.Unlock()
		rec.open, rec.windowed = false, time.Now()
		rec.r.Windows[i].To = rec.windowed.Sub(rec.start)
	}
}

// deafen ends the counting: what happens to the clients from now on is not the service's doing.
func (rec *recorder) deafen() {
	rec.mu.Lock()
	defer rec.mu.Unlock()
	rec.deaf = true
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
	r.Windows = slices.Clone(r.Windows)
	r.Part, r.Inside, r.Outside = rec.all.part(), rec.inside.part(), rec.outside.part()
	for kind, n := range map[Kind]int{Refused: r.Refused, Cut: r.Cut, Lost: r.Lost, Doubled: r.Doubled, Reordered: r.Reordered, Wrong: r.Wrong} {
		if n > 0 {
			r.Kinds[kind] = n
		} else {
			delete(r.Kinds, kind)
		}
	}
	r.Clients = make(map[Client]Part, len(rec.clients))
	for kind, t := range rec.clients {
		r.Clients[kind] = t.part()
	}
	return r
}
