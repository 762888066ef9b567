package cmd

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/zdt-dev/zdt/internal/redact"
	"github.com/zdt-dev/zdt/journal"
	"github.com/zdt-dev/zdt/release"
)

const (
	excerptHead   = 150     // entries of the beginning of an excerpt
	excerptTail   = 450     // and of its end
	mostJournal   = 1 << 20 // bytes of all excerpts of a service
	mostLogLine   = 1000    // bytes
	beforeUpgrade = 30 * time.Second
	afterUpgrade  = time.Minute
)

// excerpt is a time that the journal of a bug report is about.
type excerpt struct {
	what     string
	from, to time.Time // zero: the end of the journal
}

// excerpts are the upgrades that came last, the one that is open, and the end.
func (s *reported) excerpts(open *release.Txn, now time.Time) (all []excerpt) {
	for _, e := range s.history[max(0, len(s.history)-reportUpgrades):] {
		all = append(all, excerpt{fmt.Sprintf("around %s %s, which ended as %s", e.Kind, e.TxID, e.Outcome), e.Started.Add(-beforeUpgrade), e.Ended.Add(afterUpgrade)})
	}
	if open != nil {
		all = append(all, excerpt{fmt.Sprintf("around %s %s, which is open in phase %s", open.Kind, open.TxID, open.Phase), open.Started.Add(-beforeUpgrade), now})
	}
	slices.SortStableFunc(all, func(a, b excerpt) int { return a.from.Compare(b.from) })
	return append(all, excerpt{what: "the end"})
}

// serviceJournal writes down what the journal has of a service around its last upgrades.
func (b *bugreport) serviceJournal(ctx context.Context, dir string, s *reported, open *release.Txn) {
	h := &host{f: b.f, paths: b.paths, service: s.name, unit: s.name + ".service"}
	q := journal.Query{Source: h.source(), Command: b.f.journalctl}
	p := logPage{b: b, seen: map[string]bool{}, writers: map[string]*redact.Lines{}}
	for _, x := range s.excerpts(open, b.f.now()) {
		got, err := journal.Between(ctx, q, x.from, x.to, excerptHead, excerptTail)
		if err != nil {
			b.lacks(fmt.Sprintf("%s: the journal %s", s.name, x.what), err)
		}
		fmt.Fprintf(&p.out, "== %s\n", clean(b.secrets.Text(x.what)))
		p.entries(got.Head)
		if got.Left > 0 {
			p.left(x.what, plural(got.Left, "message")+" in between")
		}
		if got.More {
			p.left(x.what, "all messages after the first 100,000")
		}
		p.entries(got.Tail)
	}
	if p.beyond > 0 {
		p.left("all in all", plural(p.beyond, "message")+" beyond 1 MiB")
	}
	if p.short > 0 {
		p.cut = append(p.cut, plural(p.short, "line")+" after "+strconv.Itoa(mostLogLine)+" bytes")
	}
	if len(p.seen) == 0 {
		why := "there is nothing of it"
		if b.f.euid != 0 && !b.f.globals.user {
			why += ", or nothing that you may read: root and the group systemd-journal may"
		}
		b.missing = append(b.missing, fmt.Sprintf("%s: the journal: %s", s.name, why))
		b.secrets.Take()
		return
	}
	b.add(dir+"journal.txt", []byte(p.out.String()), p.cut...)
}

// logPage is a journal in text.
type logPage struct {
	b       *bugreport
	out     strings.Builder
	seen    map[string]bool          // by cursor: excerpts overlap
	writers map[string]*redact.Lines // by pid: a key goes over many lines, and others write in between
	cut     []string
	short   int // lines that were cut
	beyond  int // entries that there was no room for
}

func (p *logPage) left(where, what string) {
	p.cut = append(p.cut, where+": "+what)
	fmt.Fprintf(&p.out, "-- %s are left out\n", what)
}

func (p *logPage) entries(all []journal.Entry) {
	for _, e := range all {
		if e.Cursor != "" && p.seen[e.Cursor] {
			continue
		}
		p.seen[e.Cursor] = true
		if p.out.Len() > mostJournal {
			p.beyond++
			continue
		}
		p.entry(e)
	}
}

// entry writes an entry as journalctl does, and the fields of an event behind it.
func (p *logPage) entry(e journal.Entry) {
	pid := e.Get("_PID")
	lines := p.writers[pid]
	if lines == nil {
		lines = p.b.secrets.Lines()
		p.writers[pid] = lines
	}
	message := e.Get("MESSAGE")
	if e.Cut {
		// The last word may be the half of a secret, which nothing would know any more.
		message = message[:strings.LastIndexAny(message, " \t\n")+1] + "…"
	}
	head := fmt.Sprintf("%s %s %s[%s]: ", e.Realtime.UTC().Format("2006-01-02T15:04:05.000000Z"), priorityName(e.Get("PRIORITY")),
		clean(p.b.secrets.Text(cmp.Or(e.Get("SYSLOG_IDENTIFIER"), e.Get("_COMM"), "-"))), clean(pid))
	for line := range strings.SplitSeq(strings.TrimRight(lines.Line(message), "\n"), "\n") {
		if len(line) > mostLogLine {
			p.short++
			line = strings.ToValidUTF8(line[:mostLogLine], "") + "…"
		}
		p.out.WriteString(head + clean(line) + "\n")
		head = "    "
	}
	if _, ok := journal.KindOf(e.Get("MESSAGE_ID")); !ok {
		return
	}
	for _, f := range e.Fields {
		if strings.HasPrefix(f.Name, "ZDT_") || strings.HasPrefix(f.Name, "LISTEN_") || strings.HasPrefix(f.Name, "EXIT_") {
			fmt.Fprintf(&p.out, "    %s=%s\n", clean(f.Name), clean(p.b.secrets.Text(f.Value)))
		}
	}
}

// priorityName is a priority as syslog names it.
func priorityName(s string) string {
	names := []string{"emerg", "alert", "crit", "err", "warning", "notice", "info", "debug"}
	if n, err := strconv.Atoi(s); err == nil && n >= 0 && n < len(names) {
		return names[n]
	}
	return "-"
}
