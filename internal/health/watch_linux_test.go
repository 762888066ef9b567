package health

import (
	"context"
	"errors"
	"fmt"
	"reflect"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/zdt-dev/zdt/internal/script"
)

// scripted is a prober whose commands answer one after the other: "ok", "no" or "hang"; the last one for ever.
func scripted(answers ...string) Prober {
	n := 0
	return Prober{
		Trust: func(string) error { return nil },
		Command: func(ctx context.Context, c script.Command) script.Result {
			a := answers[min(n, len(answers)-1)]
			n++
			switch a {
			case "ok":
				return script.Result{}
			case "hang":
				<-ctx.Done()
				return script.Result{Code: -1, Err: context.Cause(ctx)}
			}
			return script.Result{Code: 1, Err: errors.New("it exited with 1"), Tail: []string{a}}
		},
	}
}

// What a gate says is judged by the clock: here by a fake one.
func TestWatch(t *testing.T) {
	const check = " exec:/bin/check"
	for _, tt := range []struct {
		what, gate string
		answers    []string
		passed     time.Duration // when; -1: never
		failed     time.Duration // likewise
		why        string        // of the failure
		told       []string      // the first lines of progress
	}{
		{"at once", "successes=1", []string{"ok"}, 0, -1, "", []string{"gate exec:/bin/check: passed after 0s, 1 of 1 try ok", "gate exec:/bin/check: passed after 0s, 2 of 2 tries ok"}},
		{"in a row", "successes=3 every=1s", []string{"no", "ok", "ok", "no", "ok", "ok", "ok"}, 6 * time.Second, -1, "",
			[]string{`: not yet (1 try; last: it exited with 1 after 0s: "no")`, ": 1/3 ok", ": 2/3 ok", ": not yet (4 tries; last: it", ": 1/3 ok", ": 2/3 ok", ": passed after 6s, 5 of 7 tries ok"}},
		{"never", "within=10s every=3s timeout=1s", []string{"no"}, -1, 9 * time.Second, "it did not pass within 10s (4 tries, 0 ok; last: it exited with 1", nil},
		{"not often enough", "successes=3 within=10s every=4s timeout=1s", []string{"no", "ok"}, -1, 8 * time.Second, "did not pass within 10s (3 tries, 2 ok; last: it exited with 0", nil},
		{"hangs", "within=10s every=1s timeout=4s", []string{"hang"}, -1, 10 * time.Second, "did not pass within 10s (3 tries, 0 ok; last: no end after 4s", nil},
		{"the last word was cut short", "within=10s every=9s timeout=5s", []string{"first", "hang"}, -1, 10 * time.Second, `(2 tries, 0 ok; last: it exited with 1 after 0s: "first"`, nil},
		{"later", "every=1s failures=3", []string{"ok", "no", "no", "ok", "no", "no", "no"}, 0, 6 * time.Second, "it failed 3 times in a row after it had passed (7 tries, 2 ok; last: it exited with 1",
			[]string{"passed after", ": failing (once in a row): it exited with 1", ": failing (2 times in a row)", ": passed after 0s, 2 of 4 tries ok", ": failing (once"}},
		{"hangs later", "every=1s failures=2 timeout=5s", []string{"ok", "hang"}, 0, 11 * time.Second, "failed 2 times in a row", nil},
	} {
		t.Run(tt.what, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				began := time.Now()
				g := gate(t, tt.gate+check)
				var told []string
				w := scripted(tt.answers...).Run(t.Context(), []Gate{g}, Candidate{}, func(p Progress) { told = append(told, p.String()) })
				end := time.After(time.Minute)
				passed, failed := time.Duration(-1), time.Duration(-1)
				var why error
				for isPassed, over := w.Passed(), false; !over; {
					select {
					case <-isPassed:
						passed, isPassed = time.Since(began), nil
					case why = <-w.Failed():
						failed, over = time.Since(began), true
					case <-end:
						over = true
					}
				}
				results := w.Close()
				if passed != tt.passed || failed != tt.failed {
					t.Errorf("passed after %v, failed after %v; want %v and %v", passed, failed, tt.passed, tt.failed)
				}
				var f *Failure
				if tt.failed >= 0 && (!errors.As(why, &f) || !strings.Contains(why.Error(), tt.why) || !reflect.DeepEqual(f.Result, results[0]) || results[0].State != Failed) {
					t.Errorf("%v, want %q; %+v", why, tt.why, results[0])
				}
				if tt.failed < 0 && results[0].State != Passed {
					t.Errorf("%+v", results[0])
				}
				for i, want := range tt.told {
					if i >= len(told) || !strings.Contains(told[i], want) {
						t.Errorf("told %q, want %q", told, tt.told)
						break
					}
				}
				if len(told) != results[0].Tries {
					t.Errorf("%d tries, told of %d", results[0].Tries, len(told))
				}
			})
		})
	}
}

// All have to pass; one that fails ends it for all, and what the others said so far is kept.
func TestWatchSeveral(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := Prober{
			Trust: func(string) error { return nil },
			Command: func(ctx context.Context, c script.Command) script.Result {
				switch c.Path {
				case "/hangs":
					<-ctx.Done()
					return script.Result{Err: context.Cause(ctx)}
				case "/no":
					return script.Result{Err: errors.New("no")}
				}
				return script.Result{}
			},
		}
		began := time.Now()
		w := p.Run(t.Context(), []Gate{gate(t, "exec:/ok"), gate(t, "every=1900ms within=8s exec:/no"), gate(t, "timeout=5s every=1s within=20s exec:/hangs")}, Candidate{}, nil)
		if err := <-w.Failed(); !strings.Contains(err.Error(), "gate within=8s every=1.9s exec:/no: it did not pass within 8s") || time.Since(began) != 7600*time.Millisecond {
			t.Error(err, time.Since(began))
		}
		results := w.Wait() // nobody has to end it
		select {
		case <-w.Passed():
			t.Error("passed")
		default:
		}
		var got []string
		for _, r := range results {
			got = append(got, fmt.Sprintf("%s %d/%d", r.State, r.OK, r.Tries))
		}
		if want := []string{"passed 4/4", "failed 0/5", "asking 0/1"}; !reflect.DeepEqual(got, want) {
			t.Errorf("%q, want %q", got, want)
		}
	})
	// None at all.
	w := Prober{}.Run(t.Context(), nil, Candidate{}, nil)
	<-w.Passed()
	if got := w.Close(); len(got) != 0 {
		t.Error(got)
	}
}

// A try that the end of the watch ended says nothing about the candidate.
func TestWatchStop(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		w := scripted("hang").Run(ctx, []Gate{gate(t, "exec:/x"), gate(t, "journal:x"), gate(t, "tcp:h:1")}[:1], Candidate{}, nil)
		time.Sleep(time.Second)
		cancel()
		if r := w.Wait(); r[0].Tries != 0 || r[0].State != Asking {
			t.Errorf("%+v", r)
		}
		select {
		case err := <-w.Failed():
			t.Error(err)
		case <-w.Passed():
			t.Error("passed")
		default:
		}
	})
}

func TestJournalGates(t *testing.T) {
	const mine, theirs = 20, 30
	type entry struct {
		at time.Duration
		Line
	}
	for _, tt := range []struct {
		what, gate string
		entries    []entry
		problem    error
		ends       bool
		passed     time.Duration
		failed     time.Duration
		why        string
	}{
		{"a line", "journal:ready", []entry{{0, Line{PID: mine, Text: "starting"}}, {time.Second, Line{PID: theirs, Text: "ready"}}, {2 * time.Second, Line{PID: mine, Text: "first\nnow ready"}}}, nil, false, 2 * time.Second, -1, ""},
		{"two lines", "journal:x successes=2", []entry{{0, Line{PID: mine, Text: "x"}}, {time.Second, Line{PID: mine, Text: "x"}}}, nil, false, time.Second, -1, ""},
		{"another's", "journal:ready within=5s", []entry{{time.Second, Line{PID: theirs, Text: "ready"}}}, nil, false, -1, 5 * time.Second, "it did not pass within 5s (last: no such line of the candidate's)"},
		{"cannot be read", "journal:ready within=5s", nil, errors.New("no permission"), false, -1, 5 * time.Second, "last: no permission"},
		{"silence", "journal!:panic", []entry{{0, Line{PID: theirs, Text: "fork"}}, {0, Line{PID: mine, Text: "all well"}}, {2 * time.Second, Line{PID: theirs, Text: "panic"}}}, nil, false, time.Second, -1, ""},
		{"no silence", "journal!:panic", []entry{{0, Line{PID: mine, Text: "panic: x"}}}, nil, false, -1, 0, `it found a line (last: process 20 wrote "panic: x")`},
		{"no silence later", "journal!:panic", []entry{{0, Line{PID: mine, Text: "x"}}, {9 * time.Second, Line{PID: mine, Text: "panic: x"}}}, nil, false, time.Second, 9 * time.Second, "it found a line"},
		{"late", "journal!:panic", []entry{{4 * time.Second, Line{PID: theirs, Text: "fork"}}}, nil, false, 4 * time.Second, -1, ""},
		{"late, and bad", "journal!:panic", []entry{{4 * time.Second, Line{PID: mine, Text: "panic"}}}, nil, false, -1, 4 * time.Second, "it found a line"},
		{"deaf", "journal!:panic", nil, nil, false, -1, 6 * time.Second, "nothing comes from the journal"},
		{"silence that cannot be read", "journal!:panic", nil, errors.New("no permission"), false, -1, 6 * time.Second, "no permission"},
		{"ends", "journal!:panic", nil, nil, true, -1, 0, "is not followed any more"},
	} {
		t.Run(tt.what, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				began := time.Now()
				closed := false
				p := Prober{
					Belongs: func(pid, candidate int) bool { return pid == candidate },
					Lines: func(ctx context.Context, since string) Lines {
						if since != "cursor" {
							t.Errorf("since %q", since)
						}
						c := make(chan Line)
						go func() {
							for _, e := range tt.entries {
								time.Sleep(time.Until(began.Add(e.at)))
								select {
								case c <- e.Line:
								case <-ctx.Done():
									return
								}
							}
							if tt.ends {
								close(c)
							}
						}()
						return Lines{Entries: c, Problem: func() error { return tt.problem }, Close: func() { closed = true }}
					},
				}
				g := gate(t, tt.gate)
				w := p.Run(t.Context(), []Gate{g}, Candidate{PID: mine, Since: "cursor"}, nil)
				passed, failed := time.Duration(-1), time.Duration(-1)
				var why error
				end := time.After(time.Minute)
				for isPassed, over := w.Passed(), false; !over; {
					select {
					case <-isPassed:
						passed, isPassed = time.Since(began), nil
					case why = <-w.Failed():
						failed, over = time.Since(began), true
					case <-end:
						over = true
					}
				}
				w.Close()
				if passed != tt.passed || failed != tt.failed || !closed {
					t.Errorf("passed after %v, failed after %v; want %v and %v; closed %v", passed, failed, tt.passed, tt.failed, closed)
				}
				if tt.failed >= 0 && (why == nil || !strings.Contains(why.Error(), tt.why)) {
					t.Errorf("%v, want %q", why, tt.why)
				}
				if d := max(passed, failed); passed < 0 && d > g.Within() {
					t.Errorf("%v is longer than the gate says, %v", d, g.Within())
				}
			})
		})
	}
	for _, p := range []Prober{{}, {Lines: func(context.Context, string) Lines { panic("followed") }}} {
		w := p.Run(t.Context(), []Gate{gate(t, "journal!:x")}, Candidate{}, nil)
		if err := <-w.Failed(); err == nil || !strings.Contains(err.Error(), "the journal cannot be read") {
			t.Error(err)
		}
		w.Wait()
	}
}

func TestCheck(t *testing.T) {
	gates := []Gate{gate(t, "tcp:h:1"), gate(t, "exec:/bin/sh -c true")}
	if err := (Prober{}).Check(gates); err != nil {
		t.Error(err)
	}
	if err := (Prober{}).Check(append(gates, gate(t, "exec:/no/such"))); err == nil || !strings.Contains(err.Error(), "gate exec:/no/such: open /no: no such file") {
		t.Error(err)
	}
	if err := (Prober{}).Check(append(gates, gate(t, "journal:x"))); !errors.Is(err, errNoJournal) {
		t.Error(err)
	}
	refused := errors.New("not trusted")
	p := Prober{Trust: func(string) error { return refused }}
	if err := p.Check(gates); !errors.Is(err, refused) {
		t.Error(err)
	}
	// And it is asked each time.
	if a := p.execute(t.Context(), gates[1], Candidate{}); a.ok || a.text != "not trusted" {
		t.Errorf("%+v", a)
	}
}

func TestExecute(t *testing.T) {
	c := Candidate{Service: "web", TxID: "t1", PID: 7, Helper: 5, Release: "r", Exe: "/x"}
	a := (Prober{}).execute(t.Context(), gate(t, `exec:/bin/sh -c 'echo $ZDT_SERVICE $ZDT_TXID $ZDT_CANDIDATE_PID $ZDT_HELPER_PID $ZDT_RELEASE $ZDT_EXE; exit 3'`), c)
	if a.ok || !strings.HasPrefix(a.text, "it exited with 3 after ") || !strings.HasSuffix(a.text, `: "web t1 7 5 r /x"`) {
		t.Errorf("%+v", a)
	}
	if a := (Prober{}).execute(t.Context(), gate(t, "exec:/bin/true"), c); !a.ok {
		t.Errorf("%+v", a)
	}
	ctx, cancel := context.WithTimeoutCause(t.Context(), 50*time.Millisecond, errors.New("no end after 50ms"))
	defer cancel()
	if a := (Prober{}).execute(ctx, gate(t, `exec:/bin/sh -c 'trap "" TERM; sleep 100'`), c); a.ok || a.text != "no end after 50ms" {
		t.Errorf("%+v", a)
	}
}
