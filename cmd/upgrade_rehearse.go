package cmd

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/spf13/pflag"

	"github.com/zdt-dev/zdt/rehearse"
	"github.com/zdt-dev/zdt/release"
	"github.com/zdt-dev/zdt/unitgen"
	"github.com/zdt-dev/zdt/upgrade"
)

// rehearseFlag is --rehearse or --no-rehearse; the last one counts.
type rehearseFlag struct {
	to *(*unitgen.Rehearse)
	as unitgen.Rehearse
}

// Set reads a truth value.
func (f *rehearseFlag) Set(text string) error {
	on, err := strconv.ParseBool(text)
	if err != nil {
		return errors.New("use true or false")
	}
	if on {
		as := f.as
		*f.to = &as
	}
	return nil
}

func (f *rehearseFlag) String() string { return "" }

// Type makes it a flag without a value in --help.
func (f *rehearseFlag) Type() string { return "bool" }

func addRehearseFlags(flags *pflag.FlagSet, to **unitgen.Rehearse) {
	flags.Var(&rehearseFlag{to, unitgen.RehearseAlways}, "rehearse", "try the new program beside the service first, and refuse where that is not possible (default: go on then; Rehearse= of the unit)")
	flags.Var(&rehearseFlag{to, unitgen.RehearseNo}, "no-rehearse", "do not try it first: for a program that does harm when it starts beside the service, or in a hurry")
	flags.Lookup("rehearse").NoOptDefVal, flags.Lookup("no-rehearse").NoOptDefVal = "true", "true"
}

// rehearsalOf is the rehearsal of an upgrade. room tells whether one more of the program has room on the host.
func (s *site) rehearsalOf(o upgradeOptions, room func(context.Context) upgrade.Room) *upgrade.Rehearsal {
	policy := given(o.Rehearse, s.policy.Rehearse)
	switch {
	case policy == unitgen.RehearseNo && o.Rehearse != nil:
		return &upgrade.Rehearsal{Off: "--no-rehearse"}
	case policy == unitgen.RehearseNo:
		return &upgrade.Rehearsal{Off: "Rehearse=no in [X-Zdt] of the unit"}
	}
	wanted := func(ctx context.Context, to release.Release, txid string) (q rehearsal, err error) {
		q = rehearsal{release: to, txid: txid, readyTimeout: given(o.ReadyTimeout, s.policy.ReadyTimeout)}
		if !o.SkipGates {
			if q.gates, err = parseGates(s.policy, gatesOf(o.Service, o.Gates)); err != nil {
				return q, err
			}
		}
		return q, tooLittle(room(ctx))
	}
	look := func(ctx context.Context) (time.Duration, error) {
		q, err := wanted(ctx, release.Release{}, "")
		if err != nil {
			return 0, err
		}
		within, err := s.foresee(ctx, q)
		if err != nil {
			return 0, noRehearsal(err)
		}
		return within, nil
	}
	play := func(ctx context.Context, to release.Release, txid string, progress func(string)) (upgrade.Rehearsed, error) {
		q, err := wanted(ctx, to, txid)
		if err != nil {
			return upgrade.Rehearsed{}, err
		}
		r, err := s.rehearse(ctx, q, progress)
		played := upgrade.Rehearsed{Warnings: r.Warnings}
		if err != nil {
			return played, noRehearsal(err)
		}
		played.Text = r.Summary()
		return played, r.Err()
	}
	return &upgrade.Rehearsal{Must: policy == unitgen.RehearseAlways, Look: look, Play: play}
}

// noRehearsal is why nothing is known of a candidate that was to be rehearsed: whatever it is, it is not the candidate's fault.
func noRehearsal(err error) error {
	var impossible *rehearse.Impossible
	if errors.As(err, &impossible) {
		return &upgrade.NoRehearsal{Why: impossible.Why, Fix: impossible.Fix}
	}
	return &upgrade.NoRehearsal{Why: err.Error(), Fix: hintOf(err)}
}

// roomBeside is the verdict on one more of the program with all that belongs to it, a helper too.
func (s *site) roomBeside(ctx context.Context) upgrade.Room { return s.footprint(ctx, 0).Beside() }

// tooLittle is an error when there is not the memory for a rehearsal. The kernel would make room by killing something: the
// candidate first (OOMScoreAdjust= of the rehearsal), but before it comes to that the whole host has become slow.
func tooLittle(room upgrade.Room) error {
	if room.Verdict != upgrade.RoomNone {
		return nil
	}
	return &upgrade.NoRehearsal{Why: fmt.Sprintf("there is not enough memory for one more of the program: it needs about %s, %s are left %s",
		bytesWords(room.Needs), bytesWords(room.Free), map[string]string{"host": "on the host", "slice": "in its slice"}[room.Bound])}
}
