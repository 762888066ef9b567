package handoffcheck

import (
	"fmt"
	"slices"
	"strings"
	"time"
)

// Journal is what becomes of the lines that the service and its runtime write.
type Journal struct {
	// Absent is why journald cannot be reached, "" when it can.
	Absent string
	// Storage and MaxLevelStore are those of journald.conf, "" where it does not say.
	Storage, MaxLevelStore string
}

// Gate is a gate of [X-Zdt], as far as checks need to know it.
type Gate struct {
	Text string // as one would write it
	// Problem is why it cannot be asked at all, as an upgrade says when it is refused.
	Problem string
	// Journal: it reads what the new process writes. Errors: of that only lines of priority err and worse.
	Journal, Errors bool
	// Network and Address are what it connects to, as package net has them; "" for a gate that does not.
	Network, Address string
	// Unanswered: nobody listens there, as far as zdt can reach.
	Unanswered bool
}

// Priorities of syslog(3).
const (
	levelErr  = 3
	levelInfo = 6 // of what a program prints, and of zdt's events
)

// handoffLines is how many lines of priority info zdt's runtimes write in a handoff in which nothing happens.
const handoffLines = 4

// journalChecks are about what is read of the journal: by people, and by gates.
func journalChecks() []Check {
	return []Check{
		{
			ID: "ZDT055", Severity: Note, handoff: true, Family: FamilyHost, Title: "the journal does not have the story of a handoff",
			Why: "the events that tell what became of connections, and why a handoff was undone, do not get where zdt watch and journalctl look; the verdict of an upgrade does not depend on them",
			More: `The runtime writes an event for each step of a handoff, with priority info. They are lost when nobody takes them, when
journald does not store them (Storage=none, MaxLevelStore=), when the unit's LogLevelMax= is below info, and when its rate limit is
smaller than a handoff is long. With LogNamespace= they are in a journal of their own: ` + "`journalctl --namespace=`" + ` shows it, zdt does not
look there, and the last lines of a program that failed are missing in its report.

journald reads its configuration when it starts: ` + "`systemctl restart systemd-journald`" + `.`,
			look: func(f Facts) (all []sight) {
				if !slices.ContainsFunc(f.Gates, func(g Gate) bool { return g.Journal }) { // or ZDT056 says it
					for _, s := range f.silences(levelInfo) {
						all = append(all, s.sight)
					}
				}
				every, burst := f.Service.interval("LogRateLimitIntervalUSec"), f.Service.Number("LogRateLimitBurst")
				if every > 0 && burst > 0 && burst < handoffLines {
					all = append(all, f.service(fmt.Sprintf("LogRateLimitBurst=%d in LogRateLimitIntervalSec=%s, a handoff has %d lines and those of the program", burst, every, handoffLines),
						"LogRateLimitIntervalSec=30s", "LogRateLimitBurst=10000")...)
				}
				return all
			},
		},
		{
			ID: "ZDT056", Severity: Risk, handoff: true, Family: FamilyHost, Title: "a gate reads a journal that the program does not write to",
			Why: "what gates read is the system's journal: without the lines journal: never passes, and journal!: and errors: fail or pass whatever the new program writes",
			More: `Gates read the system's journal. What the program prints gets there with ` + "`StandardOutput=journal`" + ` (the default) and priority
info, as long as LogLevelMax=, MaxLevelStore= and Storage= let it, and not with LogNamespace=. A program that writes to the journal by
itself (sd_journal_send) does not need StandardOutput=: then ` + "`AcceptRisk=ZDT056`" + ` is the answer.`,
			look: func(f Facts) (all []sight) {
				lines, errors := f.journalGates()
				if len(lines)+len(errors) == 0 {
					return nil
				}
				say := func(s sight, gates []string) {
					s.seen += ", and Gate=" + strings.Join(gates, ", Gate=")
					all = append(all, s)
				}
				for _, s := range f.silences(levelInfo) {
					switch {
					case s.level < levelErr:
						say(s.sight, slices.Concat(lines, errors))
					case len(lines) > 0:
						say(s.sight, lines)
					}
				}
				if out := f.Service.Text("StandardOutput"); out != "inherit" && !journaled(out) && !journaled(f.Service.Text("StandardError")) {
					say(f.service("StandardOutput="+out+" and StandardError="+f.Service.Text("StandardError"), "StandardOutput=journal", "StandardError=inherit")[0], slices.Concat(lines, errors))
				}
				return all
			},
		},
	}
}

// silence is why lines do not get into the journal: those above the level, -1 for all.
type silence struct {
	sight
	level int
}

// silences are why lines of a level do not get there.
func (f Facts) silences(level int) (all []silence) {
	add := func(least int, s ...sight) {
		if least < level {
			all = append(all, silence{s[0], least})
		}
	}
	if f.Journal.Absent != "" {
		add(-1, sight{seen: "journald cannot be reached (" + f.Journal.Absent + ")", fix: "systemctl start systemd-journald.socket systemd-journald.service"})
	}
	if f.Journal.Storage == "none" {
		add(-1, journaldSight("Storage=none", "Storage=auto"))
	}
	if least, ok := priority(f.Journal.MaxLevelStore); ok {
		add(least, journaldSight("MaxLevelStore="+f.Journal.MaxLevelStore, "MaxLevelStore=debug"))
	}
	if name := f.Service.Text("LogNamespace"); name != "" {
		add(-1, f.service("LogNamespace="+name, "LogNamespace=")...)
	}
	if least, ok := f.Service.Properties["LogLevelMax"].(int32); ok && least >= 0 {
		add(int(least), f.service("LogLevelMax="+priorities()[min(least, 7)], "LogLevelMax=debug")...)
	}
	return all
}

// journaldSight is about a setting of journald itself.
func journaldSight(seen, line string) sight {
	return sight{seen: "journald.conf: " + seen,
		fix: "put " + line + " under [Journal] into /etc/systemd/journald.conf.d/zz-zdt.conf, then systemctl restart systemd-journald"}
}

// journalGates are the gates that read lines, and those that count errors.
func (f Facts) journalGates() (lines, errors []string) {
	for _, g := range f.Gates {
		switch {
		case g.Journal && g.Errors:
			errors = append(errors, g.Text)
		case g.Journal:
			lines = append(lines, g.Text)
		}
	}
	return lines, errors
}

// journaled reports whether what is printed to a descriptor gets into the journal, or is not known not to. kmsg is read by journald,
// which then does not know who wrote it.
func journaled(output string) bool {
	return output == "" || strings.HasPrefix(output, "journal") || strings.HasPrefix(output, "syslog")
}

// interval is a property that is a time, 0 for one that is absent.
func (u Unit) interval(name string) time.Duration {
	d, _ := u.Span(name)
	return d
}

// priorities are the names of syslog(3) that systemd knows.
func priorities() []string {
	return []string{"emerg", "alert", "crit", "err", "warning", "notice", "info", "debug"}
}

// priority reads a level as journald.conf has it: a name or a number.
func priority(text string) (int, bool) {
	if i := slices.Index(priorities(), text); i >= 0 {
		return i, true
	}
	if len(text) == 1 && text[0] >= '0' && text[0] <= '7' {
		return int(text[0] - '0'), true
	}
	return 0, false
}
