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
)

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

// Budget is the longest that Run takes for the hooks of one point, whichever it is.
func (o Options) Budget(s Set) time.Duration {
	most := 0
	for _, hooks := range s {
		most = max(most, len(hooks))
	}
	return time.Duration(most) * (o.timeout() + grace + slack)
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
	if r.OK {
		return r.Hook + " went well"
	}
	text := r.Hook + ": " + r.Error
	if n := len(r.Tail); n > 0 {
		text += fmt.Sprintf(": %q", r.Tail[n-1])
	}
	return text
}

// Run runs the hooks one after the other, and returns what became of each that was started. doc is what they read on
// standard input as JSON: the document zdt.hook/1. What of it is a word is in their environment, too.
//
// At a point where they can stop the upgrade none runs after one that failed; at the others all run. The end of ctx ends
// the one that runs, in the way its deadline does, no other is started, and that is an error.
//
// The error names each hook that failed, in one line.
func Run(ctx context.Context, hooks []Hook, doc any, o Options) ([]Result, error) {
	if len(hooks) == 0 {
		return nil, nil
	}
	text, err := json.Marshal(doc)
	if err != nil {
		return nil, fmt.Errorf("write the document for the hooks: %w", err)
	}
	var results []Result
	for _, h := range hooks {
		if ctx.Err() != nil {
			return results, fmt.Errorf("%s was not run: %w", h.Path, context.Cause(ctx))
		}
		if o.Started != nil {
			o.Started(h)
		}
		r := run(ctx, h, text, o)
		results = append(results, r)
		if !r.OK && h.Point.Vetoes() {
			break
		}
	}
	return results, objection(results)
}

func run(ctx context.Context, h Hook, doc []byte, o Options) Result {
	r := Result{Hook: h.Path, Point: h.Point, ExitCode: -1}
	// Once more: it was found before the upgrade, which may be long ago.
	if err := trustpath.Program(h.Path); err != nil {
		r.Error = err.Error()
		return r
	}
	ctx, cancel := context.WithTimeoutCause(ctx, o.timeout(), fmt.Errorf("it took longer than %v (HookTimeout=) and was killed", o.timeout()))
	defer cancel()
	c := script.Command{Path: h.Path, Env: script.Environ(environ(h.Point, doc)...), Stdin: append(doc[:len(doc):len(doc)], '\n'), Grace: grace, Keep: tailKept}
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

// facts are the parts of the document that a script finds in its environment, too.
type facts struct {
	Service   string `json:"service"`
	Unit      string `json:"unit"`
	TxID      string `json:"txid"`
	Kind      string `json:"kind"`
	From      fact   `json:"from"`
	To        fact   `json:"to"`
	Incumbent int    `json:"incumbent"`
	Candidate int    `json:"candidate"`
	Why       string `json:"why"`
	Reason    string `json:"reason"`
}

type fact struct {
	ID string `json:"id"`
}

func environ(point Point, doc []byte) []string {
	var f facts
	_ = json.Unmarshal(doc, &f) // what does not fit is left out
	env := []string{"ZDT_HOOK_POINT=" + string(point)}
	for _, v := range [][2]string{
		{"SERVICE", f.Service}, {"UNIT", f.Unit}, {"TXID", f.TxID}, {"KIND", f.Kind}, {"FROM", f.From.ID}, {"TO", f.To.ID},
		{"INCUMBENT_PID", number(f.Incumbent)}, {"CANDIDATE_PID", number(f.Candidate)}, {"WHY", f.Why}, {"REASON", f.Reason},
	} {
		if v[1] != "" {
			env = append(env, "ZDT_"+v[0]+"="+strings.ReplaceAll(v[1], "\x00", ""))
		}
	}
	return env
}

func number(n int) string {
	if n == 0 {
		return ""
	}
	return strconv.Itoa(n)
}

// objection is what the hooks that failed say.
func objection(results []Result) error {
	var all []string
	for _, r := range results {
		if !r.OK {
			all = append(all, r.String())
		}
	}
	if len(all) == 0 {
		return nil
	}
	return errors.New(strings.Join(all, "; "))
}
