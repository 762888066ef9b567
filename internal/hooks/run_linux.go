package hooks

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/zdt-dev/zdt/internal/script"
	"github.com/zdt-dev/zdt/internal/trustpath"
	"github.com/zdt-dev/zdt/release"
)

// Schema names the document that hooks read. Fields are only ever added.
const Schema = "zdt.hook/1"

// DefaultTimeout is how long a hook may take.
const DefaultTimeout = 30 * time.Second

const (
	// grace is the time between SIGTERM and SIGKILL for a hook whose time is over.
	grace = 5 * time.Second
	// slack is what it may take after that until the hook counts as ended.
	slack = 6 * time.Second
	// tailKept is how many of the last lines of a hook are in its result.
	tailKept = 10
)

// Doc is what a hook reads on its standard input. Schema and Point are set by Run; what is not known at a point is left out.
type Doc struct {
	Schema  string `json:"schema"`
	Point   Point  `json:"point"`
	Service string `json:"service"`
	TxID    string `json:"txid"`
	// Kind is what was asked for: upgrade or rollback.
	Kind release.Kind `json:"kind,omitempty"`
	From *Release     `json:"from,omitempty"`
	To   *Release     `json:"to,omitempty"`
	// Incumbent and Candidate are pids.
	Incumbent int         `json:"incumbent,omitempty"`
	Candidate int         `json:"candidate,omitempty"`
	Who       release.Who `json:"who"`
	Why       string      `json:"why,omitempty"`
	// Outcome, Reason and Cause say at the rollback point what happened, as the document of zdt upgrade does.
	Outcome string `json:"outcome,omitempty"`
	Reason  string `json:"reason,omitempty"`
	Cause   string `json:"cause,omitempty"`
}

// Release is one of the two.
type Release struct {
	ID     string `json:"id"`
	Path   string `json:"path,omitempty"`
	SHA256 string `json:"sha256,omitempty"`
}

// Options say how hooks run.
type Options struct {
	Timeout time.Duration // of each; 0: DefaultTimeout
	// Line gets each line that a hook writes. It must not block for long. May be nil.
	Line func(h Hook, text string)
	// Started is told before each hook, from the goroutine of Run. May be nil.
	Started func(h Hook)
}

func (o Options) timeout() time.Duration {
	if o.Timeout > 0 {
		return o.Timeout
	}
	return DefaultTimeout
}

// Budget is the longest that Run takes for so many hooks.
func (o Options) Budget(hooks int) time.Duration {
	return time.Duration(hooks) * (o.timeout() + grace + slack)
}

// Result is what became of one hook.
type Result struct {
	Hook     string        `json:"hook"` // its path
	Point    Point         `json:"point"`
	OK       bool          `json:"ok"`
	ExitCode int           `json:"exit_code"` // -1: it did not exit by itself
	Took     time.Duration `json:"took"`      // nanoseconds
	Error    string        `json:"error,omitempty"`
	Tail     []string      `json:"tail,omitempty"` // its last lines
	Cut      int           `json:"cut,omitempty"`  // how many lines there were before
}

// String says in one line what happened.
func (r Result) String() string {
	text := fmt.Sprintf("hook %s %s", r.Hook, "went well")
	if !r.OK {
		text = fmt.Sprintf("hook %s: %s", r.Hook, r.Error)
		if n := len(r.Tail); n > 0 {
			text += fmt.Sprintf(": %q", r.Tail[n-1])
		}
	}
	return text
}

// Run runs the hooks one after the other, and returns what became of each that was started. At a point where they can
// stop the upgrade none runs after one that failed; at the others all run. The end of ctx ends the one that runs, in
// the way its deadline does, and no other is started.
func Run(ctx context.Context, hooks []Hook, d Doc, o Options) []Result {
	var results []Result
	for _, h := range hooks {
		if ctx.Err() != nil {
			break
		}
		if o.Started != nil {
			o.Started(h)
		}
		r := run(ctx, h, d, o)
		results = append(results, r)
		if !r.OK && h.Point.Vetoes() {
			break
		}
	}
	return results
}

func run(ctx context.Context, h Hook, d Doc, o Options) Result {
	r := Result{Hook: h.Path, Point: h.Point, ExitCode: -1}
	// Once more: it was found before the upgrade, which may be long ago.
	if err := trustpath.Program(h.Path); err != nil {
		r.Error = err.Error()
		return r
	}
	d.Schema, d.Point = Schema, h.Point
	doc, err := json.Marshal(d)
	if err != nil {
		r.Error = err.Error()
		return r
	}
	ctx, cancel := context.WithTimeoutCause(ctx, o.timeout(), fmt.Errorf("it took longer than %v (HookTimeout=) and was killed", o.timeout()))
	defer cancel()
	c := script.Command{Path: h.Path, Env: script.Environ(environ(d)...), Stdin: append(doc, '\n'), Grace: grace, Keep: tailKept}
	if o.Line != nil {
		c.Line = func(text string) { o.Line(h, text) }
	}
	res := script.Run(ctx, c)
	r.OK, r.ExitCode, r.Took, r.Tail, r.Cut = res.Err == nil, res.Code, res.Took, res.Tail, res.Cut
	if res.Err != nil {
		r.Error = res.Err.Error()
	}
	return r
}

// environ has the same for scripts that read no JSON.
func environ(d Doc) []string {
	env := []string{"ZDT_HOOK_POINT=" + string(d.Point), "ZDT_SERVICE=" + d.Service, "ZDT_TXID=" + d.TxID}
	add := func(name, value string) {
		if value != "" && value != "0" {
			env = append(env, name+"="+strings.ReplaceAll(value, "\x00", ""))
		}
	}
	if d.From != nil {
		add("ZDT_FROM", d.From.ID)
	}
	if d.To != nil {
		add("ZDT_TO", d.To.ID)
	}
	add("ZDT_KIND", string(d.Kind))
	add("ZDT_INCUMBENT_PID", strconv.Itoa(d.Incumbent))
	add("ZDT_CANDIDATE_PID", strconv.Itoa(d.Candidate))
	add("ZDT_OUTCOME", d.Outcome)
	add("ZDT_REASON", d.Reason)
	return env
}

// Veto is the error of the hook that stops the upgrade; nil if there is none.
func Veto(results []Result) error {
	for _, r := range results {
		if !r.OK && r.Point.Vetoes() {
			return errors.New(r.String())
		}
	}
	return nil
}

// Warnings are the failures of hooks that came too late to stop anything.
func Warnings(results []Result) []string {
	var all []string
	for _, r := range results {
		if !r.OK && !r.Point.Vetoes() {
			all = append(all, r.String())
		}
	}
	return all
}
