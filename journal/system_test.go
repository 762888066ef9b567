//go:build linux

package journal

import (
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/zdt-dev/zdt/internal/guest"
	"github.com/zdt-dev/zdt/templates"
)

// in returns q with journalctl run inside of the guest.
func in(g *guest.Guest, q Query) Query {
	q.Command = []string{"nsenter", "-t", strconv.Itoa(g.PID()), "-a", "journalctl"}
	return q
}

var webSource = Source{Unit: "web.service"}

func cursorNow(t *testing.T, q Query) string {
	t.Helper()
	c, err := Cursor(t.Context(), q)
	if err != nil {
		t.Fatal(err)
	}
	if c == "" {
		t.Fatal("the journal is empty")
	}
	return c
}

// nextEvent returns the next trusted event, and the messages of events seen
// before it that are not.
func nextEvent(t *testing.T, f *Follower) (ev Event, refused []string) {
	t.Helper()
	timeout := time.After(30 * time.Second)
	for {
		select {
		case e, ok := <-f.Entries():
			if !ok {
				t.Fatalf("the follower ended: %v", f.Problem())
			}
			if ev, ok := Decode(e, f.query.Source); ok {
				return ev, refused
			}
			if e.Get(FieldEvent) != "" {
				refused = append(refused, e.Get("MESSAGE"))
			}
		case <-timeout:
			t.Fatalf("no event; refused %q; problem: %v", refused, f.Problem())
		}
	}
}

// expectEvent wants the next trusted event to have this message.
func expectEvent(t *testing.T, f *Follower, message string) (refused []string) {
	t.Helper()
	ev, refused := nextEvent(t, f)
	if ev.Message != message {
		t.Fatalf("event %s %q, want %q", ev.Kind, ev.Message, message)
	}
	return refused
}

// Only a process of the unit can say what happens in it, and only as itself.
func TestSystemForgedEvents(t *testing.T) {
	guest.Each(t, func(t *testing.T, g *guest.Guest) {
		installActor(t, g)
		web, evil := startActor(t, g, "web", "DynamicUser=yes"), startActor(t, g, "evil", "DynamicUser=yes")
		session, err := g.Spawn(t.Context(), guest.Command{Args: []string{actorPath, "actor", "/tmp/zdt.sock"}})
		if err != nil {
			t.Fatal(err)
		}
		op, err := g.Spawn(t.Context(), guest.Command{Args: []string{actorPath, "actor", "/tmp/op.sock"}, UID: guest.UserUID})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { session.Signal(os.Kill); op.Signal(os.Kill) })
		zdt, user := dialActor(t, g, "/tmp/zdt.sock"), dialActor(t, g, "/tmp/op.sock")

		// All that is in the journal is shown to Decode, not only what the
		// follower's matches would let through.
		q := in(g, Query{Source: webSource})
		q.AfterCursor = cursorNow(t, q)
		wide := q
		wide.Command = []string{"sh", "-c", `exec "$0" "$1" "$2" "$3" "$4" "$5" "$6" "$7" "$8" "$9" "${10}"`}
		wide.Command = append(wide.Command, q.Command...)
		selected, all := startFollow(t, q), startFollow(t, wide)

		evil.write(Event{Kind: Fork, Service: "web", PeerPID: 1, Message: "forged by another unit"})
		evil.write(Event{Kind: Exit, Service: "web", PID: web.PID, PeerPID: evil.PID, Message: "forged by another unit about a process of web"})
		evil.do(order{Raw: fmt.Appendf(nil, "MESSAGE=forged with journald's fields\nMESSAGE_ID=%s\nZDT_EVENT=fork\nZDT_PID=%d\n_PID=%d\n_SYSTEMD_UNIT=web.service\nUNIT=web.service\nOBJECT_SYSTEMD_UNIT=web.service\n",
			Fork.ID(), web.PID, web.PID)})
		web.write(Event{Kind: Fork, Service: "web", PID: evil.PID, Message: "forged by web as another process"})
		web.write(Event{Kind: UpgradeEnd, Service: "web", Message: "forged by web as zdt"})
		evil.write(Event{Kind: UpgradeEnd, Service: "other", Message: "about another service"})
		user.write(Event{Kind: UpgradeEnd, Service: "web", Message: "forged by a user as zdt"})
		zdt.write(Event{Kind: UpgradeBegin, Service: "web", Message: "by zdt", Fields: []Field{Str(FieldFrom, "a")}})
		web.write(Event{Kind: Fork, Service: "web", PeerPID: 77, Message: "by web\nitself", Fields: []Field{Str(FieldExe, "/x")}})

		for name, f := range map[string]*Follower{"selected": selected, "all": all} {
			refused := expectEvent(t, f, "by zdt")
			ev, more := nextEvent(t, f)
			if ev.Kind != Fork || ev.Message != `by web\x0aitself` || ev.PID != web.PID || ev.PeerPID != 77 || ev.Get(FieldExe) != "/x" {
				t.Errorf("%s: %+v", name, ev)
			}
			refused = append(refused, more...)
			if want := "forged by web as another process"; !slices.Contains(refused, want) {
				t.Errorf("%s: refused %q, want %q among them", name, refused, want)
			}
			if name == "all" && len(refused) != 7 {
				t.Errorf("refused %d of 7: %q", len(refused), refused)
			}
			if name == "selected" && slices.ContainsFunc(refused, func(s string) bool { return strings.Contains(s, "another unit") }) {
				t.Errorf("selected entries of another unit: %q", refused)
			}
		}
	})
}

// The first entry after the cursor arrives, also when it was written before
// the follower started and the cursor's own entry is of another unit.
func TestSystemNothingIsSkippedAfterCursor(t *testing.T) {
	guest.Each(t, func(t *testing.T, g *guest.Guest) {
		installActor(t, g)
		web, other := startActor(t, g, "web"), startActor(t, g, "other")
		other.do(order{Print: "the last entry before"})
		q := in(g, Query{Source: webSource, EventsOnly: true})
		waitFor(t, "the other unit's line", func() error {
			if j := g.Journal(t.Context(), "-u", "other"); !strings.Contains(j, "the last entry before") {
				return fmt.Errorf("journal: %s", j)
			}
			return nil
		})
		q.AfterCursor = cursorNow(t, q)
		web.do(order{Print: "not an event"})
		web.write(Event{Kind: Fork, Message: "first"})
		web.write(Event{Kind: Listen, Message: "second"})
		waitFor(t, "both events", func() error {
			if j := g.Journal(t.Context(), "-u", "web"); !strings.Contains(j, "second") {
				return fmt.Errorf("journal: %s", j)
			}
			return nil
		})
		f := startFollow(t, q)
		expectEvent(t, f, "first")
		expectEvent(t, f, "second")
	})
}

// journald restarted, stopped, frozen, and its files gone; journalctl killed.
// No event that journald took is missed or told twice; the writer never
// waits for long and tells what was lost.
func TestSystemJournaldRestarts(t *testing.T) {
	guest.Each(t, func(t *testing.T, g *guest.Guest) {
		installActor(t, g)
		web := startActor(t, g, "web")
		q := in(g, Query{Source: webSource})
		q.AfterCursor = cursorNow(t, q)
		f := startFollow(t, q)
		n := 0
		write := func() string {
			t.Helper()
			n++
			m := fmt.Sprint("event ", n)
			web.write(Event{Kind: Drain, Service: "web", Message: m})
			return m
		}
		expectEvent(t, f, write())

		g.MustRun(t, "systemctl", "restart", "systemd-journald.service")
		expectEvent(t, f, write())
		expectEvent(t, f, write())

		// Killed: systemd starts it again, the socket stays.
		g.MustRun(t, "systemctl", "kill", "--signal=SIGKILL", "systemd-journald.service")
		first, second := write(), write()
		expectEvent(t, f, first)
		expectEvent(t, f, second)

		// With its sockets: nobody is there, and the writer says so.
		g.MustRun(t, "systemctl", "stop", "systemd-journald.service", "systemd-journald.socket", "systemd-journald-dev-log.socket")
		if a := web.do(order{Event: &Event{Kind: Drain}}); !strings.HasPrefix(a.Err, ErrNoJournal.Error()) || a.Took > 10*writeTimeout {
			t.Errorf("without a socket: %q after %v, want %q", a.Err, a.Took, ErrNoJournal)
		}
		g.MustRun(t, "systemctl", "start", "systemd-journald.socket", "systemd-journald-dev-log.socket", "systemd-journald.service")
		expectEvent(t, f, write())

		pid := g.MustRun(t, "pidof", "journalctl")
		g.MustRun(t, append([]string{"kill", "-KILL"}, strings.Fields(pid)...)...)
		first, second = write(), write()
		expectEvent(t, f, first)
		expectEvent(t, f, second)

		g.MustRun(t, "journalctl", "--rotate")
		expectEvent(t, f, write())
		g.MustRun(t, "journalctl", "--rotate", "--vacuum-files=1")
		expectEvent(t, f, write())

		// Frozen: the queue fills up.
		g.MustRun(t, "systemctl", "kill", "--signal=SIGSTOP", "systemd-journald.service")
		queued, lost := []string{}, uint64(0)
		for begin := time.Now(); lost < 20; {
			if time.Since(begin) > time.Minute {
				t.Fatalf("%d events and the queue is not full", len(queued))
			}
			n++
			m := fmt.Sprint("event ", n)
			a := web.do(order{Event: &Event{Kind: Drain, Message: m}})
			if a.Took > 10*writeTimeout {
				t.Fatalf("%s took %v", m, a.Took)
			}
			if lost = a.Dropped; a.Err == "" {
				queued = append(queued, m)
			}
		}
		g.MustRun(t, "systemctl", "kill", "--signal=SIGCONT", "systemd-journald.service")
		for _, m := range queued {
			expectEvent(t, f, m)
		}
		last := write()
		ev, _ := nextEvent(t, f)
		if told, _ := ev.Int(FieldEventsLost); ev.Message != last || told != int64(lost) {
			t.Errorf("event %q tells %d lost, want %q and %d", ev.Message, told, last, lost)
		}
		t.Logf("%s: journald's queue held %d events", g.Image(), len(queued))

		// The files gone, as when a tmpfs is cleared. Without the directory
		// it takes quietTimeout.
		for _, files := range []string{"/run/log/journal/*", "/run/log/journal"} {
			g.MustRun(t, "sh", "-c", "systemctl stop systemd-journald.service; rm -rf "+files+
				"; systemctl reset-failed systemd-journald.service; systemctl start systemd-journald.service")
			expectEvent(t, f, write())
			expectEvent(t, f, write())
		}
	})
}

// Before there is any file in the journal there is no cursor, and the
// follower sees what comes.
func TestSystemEmptyJournal(t *testing.T) {
	guest.Each(t, func(t *testing.T, g *guest.Guest) {
		installActor(t, g)
		web := startActor(t, g, "web")
		sockets := []string{"systemd-journald.socket", "systemd-journald-dev-log.socket"}
		g.MustRun(t, append([]string{"systemctl", "stop", "systemd-journald.service"}, sockets...)...)
		g.MustRun(t, "sh", "-c", "rm -rf /run/log/journal /var/log/journal")
		q := in(g, Query{Source: webSource, EventsOnly: true})
		c, err := Cursor(t.Context(), q)
		if err != nil || c != "" {
			t.Fatalf("cursor %q, %v", c, err)
		}
		f := startFollow(t, q)
		g.MustRun(t, append([]string{"systemctl", "start", "systemd-journald.service"}, sockets...)...)
		web.write(Event{Kind: Fork, Message: "first"})
		expectEvent(t, f, "first")
	})
}

// The last words of a process that died, shown without what a terminal would
// act upon.
func TestSystemTail(t *testing.T) {
	guest.Each(t, func(t *testing.T, g *guest.Guest) {
		q := in(g, Query{Source: webSource, Lines: 3})
		q.AfterCursor = cursorNow(t, q)
		since := time.Now()
		g.MustRun(t, "sh", "-c", `systemd-run --quiet --wait --unit=web.service sh -c 'echo one; echo two; printf "\033]0;pwned\007three\n"; echo four >&2; exit 3'; true`)
		g.MustRun(t, "systemd-run", "--quiet", "--wait", "--unit=other.service", "echo", "other")
		pid := 0
		for _, entry := range strings.Split(g.Journal(t.Context(), "-u", "web.service", "-o", "export"), "\n") {
			if v, ok := strings.CutPrefix(entry, "_PID="); ok && v != "1" {
				pid, _ = strconv.Atoi(v)
			}
		}
		want := []string{"two", `\x1b]0;pwned\x07three`, "four"}
		byCursor, bySince, byUnit := q, q, q
		byCursor.PID = pid
		bySince.PID, bySince.AfterCursor, bySince.Since = pid, "", since
		byUnit.AfterCursor = ""
		for name, q := range map[string]Query{"after cursor": byCursor, "since": bySince, "whole unit": byUnit} {
			lines, err := Tail(t.Context(), q)
			if err != nil {
				t.Errorf("%s: %v", name, err)
			}
			got := []string{}
			for _, l := range lines {
				got = append(got, l.Text)
				if l.PID != pid || l.Time.Before(since) {
					t.Errorf("%s: %+v", name, l)
				}
			}
			if !slices.Equal(got, want) {
				t.Errorf("%s: got %q, want %q (pid %d)", name, got, want, pid)
			}
		}
	})
}

// A process that ends right after its event is known to journald if it wrote
// one before.
func TestSystemLastWordsAreTrusted(t *testing.T) {
	guest.Each(t, func(t *testing.T, g *guest.Guest) {
		installActor(t, g)
		web := startActor(t, g, "web")
		q := in(g, Query{Source: webSource})
		q.AfterCursor = cursorNow(t, q)
		f := startFollow(t, q)
		web.write(Event{Kind: Drain, Message: "known"})
		expectEvent(t, f, "known")
		// journald does not run between the event and the end of its writer.
		g.MustRun(t, "systemctl", "kill", "--signal=SIGSTOP", "systemd-journald.service")
		web.do(order{Event: &Event{Kind: Exit, Message: "last words"}, Exit: true})
		waitFor(t, "the end of the actor", func() error { return g.WaitUnit(t.Context(), "web.service", "inactive") })
		g.MustRun(t, "systemctl", "kill", "--signal=SIGCONT", "systemd-journald.service")
		expectEvent(t, f, "last words")

		// Unless it had said nothing before: then the control group is not
		// known any more, and nothing proves where the event is from.
		web = startActor(t, g, "web")
		g.MustRun(t, "systemctl", "kill", "--signal=SIGSTOP", "systemd-journald.service")
		web.do(order{Event: &Event{Kind: Exit, Message: "only words"}, Exit: true})
		waitFor(t, "the end of the actor", func() error { return g.WaitUnit(t.Context(), "web.service", "inactive") })
		g.MustRun(t, "systemctl", "kill", "--signal=SIGCONT", "systemd-journald.service")
		waitFor(t, "its event", func() error {
			if j := g.Journal(t.Context(), "SYSLOG_IDENTIFIER=zdt"); !strings.Contains(j, "only words") {
				return fmt.Errorf("journal: %s", j)
			}
			return nil
		})
		if e := g.Journal(t.Context(), "-o", "export", "SYSLOG_IDENTIFIER=zdt", "_PID="+strconv.Itoa(web.PID)); strings.Contains(e, "_SYSTEMD_UNIT=") {
			t.Errorf("the comment on Trusted is out of date:\n%s", e)
		}
	})
}

// A service of the user manager is told apart from a system service of the
// same name.
func TestSystemUserManager(t *testing.T) {
	guest.Each(t, func(t *testing.T, g *guest.Guest) {
		installActor(t, g)
		g.MustRun(t, "loginctl", "enable-linger", guest.User)
		if err := g.WaitUnit(t.Context(), fmt.Sprintf("user@%d.service", guest.UserUID), "active"); err != nil {
			t.Fatal(err)
		}
		system := startActor(t, g, "web", "User="+guest.User)
		r, err := g.Exec(t.Context(), guest.Command{UID: guest.UserUID, Args: []string{
			"systemd-run", "--user", "--quiet", "--unit=web.service", actorPath, "actor", "/tmp/user.sock"}})
		if err != nil || r.Code != 0 {
			t.Fatal(err, r)
		}
		user := dialActor(t, g, "/tmp/user.sock")
		q := in(g, Query{Source: webSource})
		uq := in(g, Query{Source: Source{Unit: "web.service", User: true, UID: guest.UserUID}})
		q.AfterCursor = cursorNow(t, q)
		uq.AfterCursor = q.AfterCursor
		f, uf := startFollow(t, q), startFollow(t, uq)
		user.write(Event{Kind: Fork, Service: "web", Message: "user"})
		system.write(Event{Kind: Fork, Service: "web", Message: "system"})
		user.write(Event{Kind: Listen, Service: "web", Message: "user again"})
		if refused := expectEvent(t, f, "system"); refused != nil {
			t.Errorf("system sees %q", refused)
		}
		if refused := expectEvent(t, uf, "user"); refused != nil {
			t.Errorf("user sees %q", refused)
		}
		expectEvent(t, uf, "user again")
	})
}

// journalctl -x explains each event.
func TestSystemCatalog(t *testing.T) {
	guest.Each(t, func(t *testing.T, g *guest.Guest) {
		installActor(t, g)
		if err := g.WriteFile(templates.CatalogPath, []byte(templates.Catalog()), 0o644); err != nil {
			t.Fatal(err)
		}
		r, err := g.Run(t.Context(), "journalctl", "--update-catalog")
		if err != nil || r.Code != 0 || r.Stderr != "" {
			t.Fatal(err, r)
		}
		web := startActor(t, g, "web")
		for _, k := range Kinds() {
			e := Event{Kind: k, TxID: "the-txid", Service: "web", Generation: 7, PeerPID: 12345}
			for _, name := range k.Fields() {
				e.Fields = append(e.Fields, Str(name, "value-of-"+name))
			}
			web.write(e)
		}
		var out string
		waitFor(t, "all events", func() error {
			out = g.MustRun(t, "journalctl", "-x", "--no-pager", "-o", "short", "SYSLOG_IDENTIFIER=zdt")
			if n := strings.Count(out, "Defined-By: zdt"); n != len(Kinds()) {
				return fmt.Errorf("%d of %d explained:\n%s", n, len(Kinds()), out)
			}
			return nil
		})
		if strings.Contains(out, "@") || !strings.Contains(out, "value-of-"+FieldReason) || !strings.Contains(out, "ZDT_TXID=the-txid") {
			t.Errorf("not all fields are filled in:\n%s", out)
		}
		if g.Image() == guest.Images()[0] {
			t.Log(out)
		}
	})
}
