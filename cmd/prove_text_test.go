package cmd

import (
	"bytes"
	"errors"
	"fmt"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/zdt-dev/zdt/handoff/control"
	"github.com/zdt-dev/zdt/internal/load"
)

// proofs are made-up results.
func proofs() map[string]func() (*proveDoc, error) {
	ms := time.Millisecond
	quick := load.Latency{P50: 412 * time.Microsecond, P99: 1900 * time.Microsecond, Max: 6 * ms}
	base := func() (*proveDoc, load.Report) {
		d := &proveDoc{
			Schema: "zdt.prove/1", Service: "web", TxID: "20260728T101500.000Z-5d41402a", Changed: true,
			Target:  proveTarget{Network: "tcp", Address: "[::1]:8080", Socket: "http", Host: "[::1]:8080", Path: "/"},
			Clients: 16, Fresh: 4, Think: 20 * ms, StartedAt: day, EndedAt: day.Add(4061 * ms),
			Handoffs: []proveHandoff{{
				handoffDoc: handoffDoc{Schema: "zdt.handoff/1", Outcome: "committed", Changed: true, TxID: "20260728T101500.000Z-5d41402a", Service: "web",
					Incumbent: 812, Candidate: 1944, Generation: 3, ReadyAfter: 14 * ms},
				At: 2 * time.Second, Took: 61 * ms, Finished: true, Connections: &control.Counts{Moved: 12, Drained: 4},
			}},
		}
		var r load.Report
		r.Part = load.Part{Requests: 2946, Statuses: map[int]int{200: 2946}, Latency: quick}
		r.Inside = load.Part{Requests: 44, Statuses: map[int]int{200: 44}, Latency: load.Latency{P50: 430 * time.Microsecond, P99: 5 * ms, Max: 6 * ms}}
		r.Outside = load.Part{Requests: 2902, Statuses: map[int]int{200: 2902}, Latency: load.Latency{P50: 411 * time.Microsecond, P99: 1800 * time.Microsecond, Max: 4 * ms}}
		for i := range 406 {
			n := 7
			if i%3 == 0 {
				n = 8
			}
			r.Buckets = append(r.Buckets, load.Bucket{Versions: map[string]int{"": n}})
		}
		return d, r
	}
	return map[string]func() (*proveDoc, error){
		"proved": func() (*proveDoc, error) {
			d, r := base()
			d.fill(r)
			return d, nil
		},
		"reconnects": func() (*proveDoc, error) {
			d, r := base()
			r.Reconnects, r.PoliteCloses, r.IdleCloses = 13, 11, 2
			r.Inside.Reconnects, r.Inside.PoliteCloses, r.Inside.IdleCloses, r.Outside.Reconnects = 12, 11, 1, 1
			r.Outside.IdleCloses = 1
			r.Statuses = map[int]int{200: 2900, 404: 46}
			r.Outside.Statuses, r.Inside.Statuses = map[int]int{200: 2856, 404: 46}, map[int]int{200: 44}
			d.fill(r)
			second := d.Handoffs[0]
			second.Incumbent, second.Candidate, second.Took, second.At = 1944, 1999, 44*ms, 3*time.Second
			d.Handoffs = append(d.Handoffs, second)
			d.Target = proveTarget{Network: "unix", Address: "/run/web/web.sock", Host: "localhost", Path: "/healthz"}
			return d, nil
		},
		"noticed": func() (*proveDoc, error) {
			d, r := base()
			r.Failed, r.Refused, r.Inside.Failed, r.Inside.Refused, r.Outside.Failed = 4, 1, 3, 1, 1
			r.Failures = []load.Failure{
				{At: 2012 * ms, Kind: load.Reset, Client: load.Kept, Window: true, Text: "await answer: read tcp [::1]:40112->[::1]:8080: read: connection reset by peer"},
				{At: 2019 * ms, Kind: load.Refused, Client: load.Fresh, Window: true, Text: "dial tcp [::1]:8080: connect: connection refused \x1b[31m"},
			}
			for i := 200; i < 230; i++ {
				r.Buckets[i].Versions = nil
			}
			r.Buckets[230].Versions[""] = 40
			d.Handoffs[0].Took = 330 * ms
			d.Handoffs[0].Connections.Cut = 2
			d.fill(r)
			return d, nil
		},
		"undone": func() (*proveDoc, error) {
			d, r := base()
			d.Changed = false
			h := &d.Handoffs[0]
			h.Outcome, h.ExitCode, h.Changed, h.Reason, h.Detail, h.Connections, h.Finished = "aborted", ExitRolledBack, false, "crashed", "the candidate ended (exited, 1)", nil, false
			h.Generation = 2
			d.fill(r)
			return d, fail(ExitRolledBack, "what the new process said: journalctl _PID=1944", "handoff undone (crashed): the candidate ended (exited, 1)")
		},
		"failing": func() (*proveDoc, error) {
			d, r := base()
			d.Handoffs, d.TxID, d.Changed = []proveHandoff{}, "", false
			r.Inside, r.Outside, r.Part.Failed, r.Outside.Failed = load.Part{}, r.Part, 2, 2
			r.Failures = []load.Failure{{At: 700 * ms, Kind: load.Timeout, Client: load.Kept, Text: "await answer: i/o timeout"}}
			d.fill(r)
			return d, fail(ExitRefused, "mend that first, or choose another --path or --url", "requests fail without a handoff")
		},
		"interrupted": func() (*proveDoc, error) {
			d, r := base()
			d.Handoffs[0].Finished = false
			d.fill(r)
			return d, fail(ExitInt, "zdt status web", "stopped waiting for pid 812 to finish its connections: %w", signalled{syscall.SIGINT})
		},
	}
}

func TestProveText(t *testing.T) {
	for name, make := range proofs() {
		t.Run(name, func(t *testing.T) {
			tell := func(tty, utf8 bool) string {
				f, out, errs := testFactory(t, tty)
				f.UTF8 = utf8
				p := &prover{f: f}
				var err error
				p.doc, err = make()
				code := codeOf(p.tell(err))
				return fmt.Sprintf("== stdout\n%s== stderr\n%s== exit %d\n", out, errs, code)
			}
			golden(t, "prove/"+name, tell(false, true))
			golden(t, "prove/"+name+".tty", tell(true, true))
			ascii := tell(false, false)
			if strings.ContainsFunc(ascii, func(r rune) bool { return r > 0x7e || r < ' ' && r != '\n' }) {
				t.Errorf("more than ASCII:\n%s", ascii)
			}
			for line := range strings.Lines(tell(false, true)) {
				if n := len([]rune(strings.TrimRight(line, "\n"))); n > 80 && !strings.HasPrefix(line, "zdt: ") && !strings.HasPrefix(line, "  +") {
					t.Errorf("a line of %d columns: %q", n, line)
				}
			}
		})
	}
}

func TestProveDocuments(t *testing.T) {
	for name, make := range proofs() {
		f, out, errs := testFactory(t, false)
		f.globals.output = outputJSON
		p := &prover{f: f}
		var err error
		p.doc, err = make()
		code := codeOf(p.tell(err))
		golden(t, "prove/"+name+".json", out.String())
		if code != p.doc.ExitCode || code != ExitOK && errs.Len() == 0 || p.doc.Outcome == "" {
			t.Errorf("%s: exit %d, %q", name, code, errs)
		}
	}
}

// An exit code for everything that can go wrong, and none of them 0.
func TestProveJudge(t *testing.T) {
	for _, tt := range []struct {
		err     error
		outcome string
		code    ExitCode
	}{
		{nil, proveProved, ExitOK},
		{fail(ExitBusy, "", "no"), proveRefused, ExitBusy},
		{fail(ExitRolledBack, "", "no"), proveUndone, ExitRolledBack},
		{fail(ExitNotRestored, "", "no"), proveUnknown, ExitNotRestored},
		{fail(ExitDeadline, "", "no"), proveUnfinished, ExitDeadline},
		{signalled{syscall.SIGTERM}, proveInterrupted, ExitTerm},
		{errors.New("anything"), proveRefused, ExitUnexpected},
	} {
		d := &proveDoc{}
		if err := d.judge(tt.err); codeOf(err) != tt.code || d.ExitCode != tt.code || d.Outcome != tt.outcome {
			t.Errorf("%v: exit %d, outcome %s", tt.err, d.ExitCode, d.Outcome)
		}
	}
}

func TestTimeline(t *testing.T) {
	d := &proveDoc{}
	if bars, _ := timeline(d); bars != "" {
		t.Errorf("%q of nothing", bars)
	}
	var r load.Report
	for n := 1; n <= 1000; n++ {
		r.Buckets = append(r.Buckets, load.Bucket{Versions: map[string]int{"v1": 3, "v2": 2}})
		d := &proveDoc{}
		d.fill(r)
		bars, marks := timeline(d)
		if c := len([]rune(bars)); c > timelineSlots || c < min(n, timelineSlots/2) || c != len(marks) || strings.Trim(bars, "█") != "" {
			t.Fatalf("%d slots: %q", n, bars)
		}
	}
	d.Timeline = proveTimeline{Every: 10 * time.Millisecond, Answers: []int{16, 16, 0, 1, 9, 16, 3}}
	d.Handoffs = []proveHandoff{{At: 15 * time.Millisecond, Took: 10 * time.Millisecond}, {At: time.Hour}}
	if bars, marks := timeline(d); bars != "██ ▁▅██" || marks != " ▔▔   ▔" {
		t.Errorf("%q %q", bars, marks)
	}
}

func TestProveProgress(t *testing.T) {
	l := load.Start(load.Config{KeepAlive: -1, Fresh: -1})
	defer l.Stop()
	f, _, errs := testFactory(t, false)
	p := f.startProveProgress("web", l)
	p.stage("%d clients", 3)
	p.close()
	if errs.String() != "web: 3 clients\n" {
		t.Errorf("in a pipe: %q", errs)
	}
	f, _, errs = testFactory(t, true)
	p = f.startProveProgress("web", l)
	p.stage("%d clients", 3)
	line := p.line(day)
	p.close()
	p.close()
	if !strings.Contains(line, "3 clients") || !bytes.HasSuffix(errs.Bytes(), []byte("\r\x1b[K")) {
		t.Errorf("on a terminal: %q, and %q", line, errs)
	}
}
