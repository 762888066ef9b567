package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"time"

	"github.com/zdt-dev/zdt/journal"
)

// entry is one event as journalctl prints it.
type entry struct {
	Event    journal.Kind `json:"ZDT_EVENT"`
	TxID     string       `json:"ZDT_TXID"`
	Message  string       `json:"MESSAGE"`
	Realtime string       `json:"__REALTIME_TIMESTAMP"`
}

func (e entry) at() time.Time {
	usec, _ := strconv.ParseInt(e.Realtime, 10, 64)
	return time.UnixMicro(usec)
}

// timeline shows the journal's story of the two upgrades.
func (d *demo) timeline(ctx context.Context) error {
	d.say("The same from the journal (journalctl -t zdt), where every upgrade leaves its story:")
	r, err := d.guest.Run(ctx, "journalctl", "--no-pager", "--quiet", "-t", "zdt", "-o", "json")
	if err != nil {
		return err
	}
	var events []entry
	for line := range bytes.Lines([]byte(r.Stdout)) {
		var e entry
		if err := json.Unmarshal(line, &e); err != nil {
			return fmt.Errorf("read the journal: %w", err)
		}
		if e.TxID != "" {
			events = append(events, e)
		}
	}
	kinds := make(map[string][]journal.Kind) // by transaction
	var order []string
	var began time.Time
	for _, e := range events {
		if _, seen := kinds[e.TxID]; !seen {
			order = append(order, e.TxID)
			began = e.at()
			fmt.Fprintf(d.out, "\n  %s\n", d.style("2", "transaction "+e.TxID))
		}
		kinds[e.TxID] = append(kinds[e.TxID], e.Event)
		fmt.Fprintf(d.out, "  %6.0f ms  %-16s %s\n", e.at().Sub(began).Seconds()*1000, e.Event, e.Message)
	}
	for i, want := range [][]journal.Kind{
		{journal.UpgradeBegin, journal.Fork, journal.Listen, journal.UpgradeCommit, journal.UpgradeEnd},
		{journal.UpgradeBegin, journal.Fork, journal.Abort, journal.UpgradeRollback, journal.UpgradeEnd},
	} {
		if i >= len(order) {
			d.promise(false, "the journal has two transactions, not %d", len(order))
			break
		}
		d.promise(inOrder(kinds[order[i]], want), "the journal tells of %v, not of %v", want, kinds[order[i]])
	}
	if len(order) > 0 {
		handoff := []journal.Kind{journal.Fork, journal.Listen, journal.Drain, journal.Exit}
		d.promise(inOrder(kinds[order[0]], handoff), "the journal tells of %v, not of %v", handoff, kinds[order[0]])
	}
	return nil
}

// inOrder reports whether want is part of got, in that order.
func inOrder(got, want []journal.Kind) bool {
	for _, w := range want {
		i := slices.Index(got, w)
		if i < 0 {
			return false
		}
		got = got[i+1:]
	}
	return true
}
