package cmd

import (
	"bytes"
	"context"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/zdt-dev/zdt/handoff/control"
	"github.com/zdt-dev/zdt/release"
	"github.com/zdt-dev/zdt/upgrade"
)

var update = flag.Bool("update", false, "rewrite the goldens")

// golden compares got with testdata/NAME.golden.
func golden(t *testing.T, name, got string) {
	t.Helper()
	path := filepath.Join("testdata", name+".golden")
	if *update {
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatalf("%v (go test ./cmd -update makes it)", err)
	}
	if got != string(want) {
		t.Errorf("%s differs\n--- got\n%s\n--- want\n%s", path, got, want)
	}
}

var day = time.Date(2026, 7, 28, 10, 15, 0, 0, time.UTC)

// testStreams are buffers; tty says what both outputs claim to be.
func testStreams(tty bool) (Streams, *bytes.Buffer, *bytes.Buffer) {
	var out, err bytes.Buffer
	return Streams{
		In: strings.NewReader(""), Out: &out, Err: &err, OutTTY: tty, ErrTTY: tty, Color: tty, UTF8: true,
		Width: func() int { return 80 },
	}, &out, &err
}

// testFactory reaches nothing: what a test needs it puts in.
func testFactory(t *testing.T, tty bool) (*factory, *bytes.Buffer, *bytes.Buffer) {
	s, out, errs := testStreams(tty)
	f := newFactory(s)
	f.now = func() time.Time { return day }
	f.getenv = func(string) string { return "" }
	f.dialSystemd = func(context.Context, bool) (systemd, error) { t.Error("dialled systemd"); return nil, os.ErrInvalid }
	f.dialControl = func(context.Context, string) (*control.Client, error) {
		t.Error("dialled a runtime")
		return nil, os.ErrInvalid
	}
	return f, out, errs
}

// script makes updates: "phase state elapsed text", one a line, each phase
// beginning where the one before it ended.
func script(lines ...string) []upgrade.Update {
	var us []upgrade.Update
	begun := day
	for _, l := range lines {
		w := strings.SplitN(l, " ", 4)
		d, err := time.ParseDuration(w[2])
		if err != nil {
			panic(err)
		}
		u := upgrade.Update{Phase: upgrade.Phase(w[0]), State: upgrade.State(w[1]), Elapsed: d, At: begun.Add(d)}
		if len(w) == 4 {
			u.Text = w[3]
		}
		if u.State != upgrade.Running {
			begun = u.At
		}
		us = append(us, u)
	}
	return us
}

func rel(id, version string) *upgrade.Release {
	return &upgrade.Release{ID: id, Version: version, SHA256: strings.Repeat("0", 64), Path: "/var/lib/zdt/web/releases/" + id + "/web"}
}

type story struct {
	name    string
	updates []upgrade.Update
	report  upgrade.Report
}

func stories() []story {
	v1, v2 := rel("20260701T090000Z-3f2a9c81d0be", "v1.4.2"), rel("20260728T101500Z-9be01f6c2a77", "v1.4.3")
	base := upgrade.Report{
		Schema: "zdt.upgrade/1", Kind: release.KindUpgrade, Who: release.Who{User: "alice"}, TxID: "20260728T101500.000Z-5d41402a", Service: "web", From: v1, To: v2,
		Incumbent: 812, Candidate: 1944, Generation: 3, StartedAt: day, EndedAt: day.Add(3200 * time.Millisecond), Journal: "complete",
	}
	with := func(change func(r *upgrade.Report)) upgrade.Report { r := base; change(&r); return r }
	begin := []string{
		"preflight running 0s", "preflight done 4ms pid 812, generation 2",
		"stage running 0s ./web-1.4.3", "stage done 31ms 20260728T101500Z-9be01f6c2a77",
		"trigger running 0s", "trigger done 2ms SIGUSR2 to the main process",
	}
	return []story{
		{"success", script(append(begin,
			"listen running 0s", "listen done 14ms pid 1944 READY",
			"bake running 0s", "bake running 12s 24 probes good", "bake running 20s 40 probes good", "bake running 31s 62 probes good", "bake done 60s 120 probes good",
			"commit running 0s", "commit done 6ms MAINPID=1944",
			"drain running 0s 30 idle, 7 active", "drain running 1s 7 active, 30 moved", "drain done 2.1s 35 connections moved, 2 drained, 0 cut",
			"exit running 0s", "exit done 3ms pid 812 exited 0",
			"record running 0s", "record done 5ms current -> 20260728T101500Z-9be01f6c2a77")...),
			with(func(r *upgrade.Report) {
				r.Outcome, r.Changed = upgrade.Upgraded, true
				r.Connections = &control.Counts{Moved: 35, Drained: 2}
			})},
		{"polite", script(begin...), with(func(r *upgrade.Report) {
			r.Outcome, r.Changed = upgrade.Upgraded, true
			r.From, r.To = rel(v1.ID, "(devel)"), rel(v2.ID, "(devel)")
			r.Connections = &control.Counts{Moved: 312, Drained: 4, Closed: 2}
		})},
		{"cut", script(begin...), with(func(r *upgrade.Report) {
			r.Outcome, r.Changed = upgrade.Upgraded, true
			r.From, r.To = rel(v1.ID, "(devel)"), rel(v2.ID, "(devel)")
			r.Connections = &control.Counts{Moved: 30, Cut: 7}
			r.Warnings = []string{"7 connections were cut, still busy at the drain deadline: clients have noticed; to allow more time: zdt init web --drain-timeout D"}
		})},
		{"lost", script(append(begin,
			"listen running 0s", "listen done 14ms pid 1944 READY", "bake done 50ms alive for 50ms", "commit done 6ms main process is 1944",
			"drain running 0s 30 idle, 7 active", "drain running 1s 7 active, 30 moved", "drain failed 1.1s the new main process ended (killed, SEGV) while its predecessor still drained, which serves again; the 30 connections that had moved to it are lost",
			"rollback running 0s", "rollback done 8ms pid 812 took the service back and serves on")...),
			with(func(r *upgrade.Report) {
				r.Outcome, r.Phase, r.Reason, r.Generation = upgrade.RolledBack, upgrade.Drain, "crashed", 2
				r.Cause = "the new main process ended (killed, SEGV) while its predecessor still drained, which serves again; the 30 connections that had moved to it are lost"
				r.Lost = 30
				r.Warnings = []string{"30 connections had moved to the new process and ended with it"}
				r.Action = "pid 812 took the service back and serves on"
				r.Hint = "mend the release and run the same zdt upgrade again; the whole story: journalctl ZDT_TXID=" + r.TxID
			})},
		{"rolledback", script(append(begin,
			"listen running 0s", "listen failed 22ms the candidate ended (exited, 1) before it was committed",
			"rollback running 0s", "rollback done 8ms pid 812 never stopped serving")...),
			with(func(r *upgrade.Report) {
				r.Outcome, r.Phase, r.Reason = upgrade.RolledBack, upgrade.Listen, "crashed"
				r.Cause = "the candidate ended (exited, 1) before it was committed"
				r.CandidateLog = []string{"hello v3: reading /etc/web.toml", "hello v3: read configuration: file does not exist", "\x1b]0;owned\x07 and \x1b[2Jgone"}
				r.LogCut = 4
				r.Action = "pid 812 never stopped serving"
				r.Hint = "mend the release and run the same zdt upgrade again; the whole story: journalctl ZDT_TXID=" + r.TxID
			})},
		{"page", script(append(begin, "listen running 0s", "listen failed 30s web.service stopped",
			"rollback running 0s", "rollback failed 60s web.service is failed (exit-code)")...),
			with(func(r *upgrade.Report) {
				r.Outcome, r.Phase = upgrade.NotRestored, upgrade.Listen
				r.Cause = "the main process died; and the service could not be restored: web.service is failed (exit-code)"
				r.Hint = "systemctl status web.service; journalctl -u web.service; systemctl restart web.service starts release " + v1.ID
			})},
		{"refused", script("preflight running 0s", "preflight failed 3ms web.service is failed (exit-code): there is nothing to hand over"),
			with(func(r *upgrade.Report) {
				r.Outcome, r.Phase, r.Candidate = upgrade.Refused, upgrade.Preflight, 0
				r.Cause = "web.service is failed (exit-code): there is nothing to hand over"
				r.Hint = "start it first: systemctl start web.service"
			})},
		{"locked", script("preflight running 0s", "preflight failed 1ms"), with(func(r *upgrade.Report) {
			r.Outcome, r.Phase, r.Candidate = upgrade.Locked, upgrade.Preflight, 0
			r.Cause = "alice works on it since 10:12:31, in phase bake (pid 4411)"
			r.Hint = "wait for it with --wait, or look: zdt status web"
		})},
		{"unchanged", script("preflight running 0s", "preflight done 4ms pid 812, generation 2", "stage running 0s", "stage done 9ms this content serves already"),
			with(func(r *upgrade.Report) { r.Outcome, r.From, r.Candidate = upgrade.Unchanged, r.To, 0 })},
		{"interrupted", script(append(begin, "listen running 0s", "listen failed 5ms interrupted before the commit",
			"rollback running 0s", "rollback done 8ms pid 812 never stopped serving")...),
			with(func(r *upgrade.Report) {
				r.Outcome, r.Phase = upgrade.Interrupted, upgrade.Listen
				r.Cause, r.Action = "interrupted before the commit", "pid 812 never stopped serving"
				r.Hint = "run the same command again to go on"
			})},
	}
}

// runStory is zdt upgrade with a made-up transaction.
func runStory(t *testing.T, s story, tty bool, args ...string) (code ExitCode, out, errs string) {
	t.Helper()
	f, outBuf, errBuf := testFactory(t, tty)
	o := upgradeOptions{Service: "web"}
	o.run = func(ctx context.Context, o upgradeOptions, observe func(upgrade.Update)) (upgrade.Report, error) {
		for _, u := range s.updates {
			observe(u)
		}
		return s.report, nil
	}
	for _, a := range args {
		if err := f.globals.output.Set(a); err != nil {
			t.Fatal(err)
		}
	}
	code = codeOf(runUpgrade(t.Context(), f, o))
	return code, outBuf.String(), errBuf.String()
}

func TestUpgradeInAPipe(t *testing.T) {
	for _, s := range stories() {
		t.Run(s.name, func(t *testing.T) {
			code, out, errs := runStory(t, s, false)
			golden(t, "upgrade/"+s.name, fmt.Sprintf("== stderr\n%s== stdout\n%s== exit %d\n", errs, out, code))
			if strings.ContainsRune(out+errs, '\x1b') {
				t.Error("an escape sequence in a pipe")
			}
		})
	}
}

func TestUpgradeDocuments(t *testing.T) {
	for _, s := range stories() {
		t.Run(s.name, func(t *testing.T) {
			_, out, _ := runStory(t, s, false, "json")
			golden(t, "upgrade/"+s.name+".json", out)
			_, out, errs := runStory(t, s, false, "ndjson")
			golden(t, "upgrade/"+s.name+".ndjson", out)
			if n := strings.Count(out, "\n"); n != len(s.updates)+1 {
				t.Errorf("%d lines for %d updates and a report", n, len(s.updates))
			}
			if strings.Contains(errs, "preflight done") {
				t.Error("progress was told twice")
			}
		})
	}
}

// A terminal sees the tree and, when it is over, nothing of it.
func TestUpgradeOnATerminal(t *testing.T) {
	for _, s := range stories() {
		st := newStyle(&bytes.Buffer{}, false, true)
		tree := newPhaseTree("web")
		var b strings.Builder
		for i, u := range s.updates {
			tree.apply(u)
			if u.State == upgrade.Running && i%3 == 1 {
				continue
			}
			lines := tree.render(st, u.At, 72)
			fmt.Fprintf(&b, "%s\n\n", strings.Join(lines, "\n"))
			for _, l := range lines {
				if n := len([]rune(l)); n > 72 {
					t.Errorf("%s: a line of %d columns: %q", s.name, n, l)
				}
			}
		}
		golden(t, "upgrade/"+s.name+".tree", b.String())

		_, out, errs := runStory(t, s, true)
		left := errs + out
		if i := strings.LastIndex(errs, "\x1b[J"); i >= 0 { // else it was over before anything was drawn
			left = errs[i+len("\x1b[J"):] + out
		}
		if strings.Contains(left, "preflight   ") {
			t.Errorf("%s: the tree stays: %q", s.name, left)
		}
		golden(t, "upgrade/"+s.name+".tty", left)
	}
}

func TestReportCode(t *testing.T) {
	for _, tt := range []struct {
		outcome upgrade.Outcome
		ended   error
		want    ExitCode
	}{
		{upgrade.Upgraded, nil, ExitOK},
		{upgrade.Upgraded, signalled{syscall.SIGINT}, ExitOK}, // too late: it was committed
		{upgrade.Unchanged, nil, ExitOK},
		{upgrade.Refused, nil, ExitRefused},
		{upgrade.RolledBack, nil, ExitRolledBack},
		{upgrade.NotRestored, nil, ExitNotRestored},
		{upgrade.Locked, nil, ExitBusy},
		{upgrade.Interrupted, signalled{syscall.SIGINT}, ExitInt},
		{upgrade.Interrupted, signalled{syscall.SIGTERM}, ExitTerm},
		{upgrade.Interrupted, timedOut{time.Second}, ExitDeadline},
		{upgrade.Interrupted, nil, ExitInterrupted},
		{"something new", nil, ExitUnexpected},
		{"", nil, ExitUnexpected},
	} {
		if got := reportCode(upgrade.Report{Outcome: tt.outcome}, tt.ended); got != tt.want {
			t.Errorf("reportCode(%q, %v) = %d, want %d", tt.outcome, tt.ended, got, tt.want)
		}
	}
}

// An upgrade must not wait for whoever reads its output.
func TestProgressNeverBlocks(t *testing.T) {
	blocked := make(chan struct{})
	p := &progress{wake: make(chan struct{}, 1), stop: make(chan struct{}), ended: make(chan struct{})}
	seen := 0
	go p.run(funcView(func(upgrade.Update) { <-blocked; seen++ }), time.Now)
	for range 1000 {
		p.observe(upgrade.Update{Phase: upgrade.Drain, State: upgrade.Running})
	}
	close(blocked)
	p.close()
	if seen != 1000 {
		t.Errorf("%d of 1000 updates were shown", seen)
	}
}

type funcView func(upgrade.Update)

func (v funcView) update(u upgrade.Update) { v(u) }
func (v funcView) tick(time.Time)          {}
func (v funcView) done()                   {}
