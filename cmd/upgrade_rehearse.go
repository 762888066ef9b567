package cmd

import (
	"context"
	"errors"
	"strconv"

	"github.com/zdt-dev/zdt/internal/health"
	"github.com/zdt-dev/zdt/rehearse"
	"github.com/zdt-dev/zdt/release"
	"github.com/zdt-dev/zdt/unitgen"
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

// rehearsalOf is the rehearsal of an upgrade; nil when there is none.
func (s *site) rehearsalOf(o upgradeOptions) func(context.Context, release.Release, string, func(string)) (string, error) {
	policy := given(o.Rehearse, s.policy.Rehearse)
	if policy == unitgen.RehearseNo || policy == "" {
		return nil
	}
	return func(ctx context.Context, to release.Release, txid string, progress func(string)) (string, error) {
		var gates []health.Gate
		if !o.SkipGates {
			var err error
			if gates, err = parseGates(s.policy, o.Gates); err != nil {
				return "", err
			}
		}
		r, err := s.rehearse(ctx, rehearsal{release: to, txid: txid, gates: gates, readyTimeout: given(o.ReadyTimeout, s.policy.ReadyTimeout)}, progress)
		var impossible *rehearse.Impossible
		switch {
		case errors.As(err, &impossible) && policy == unitgen.RehearseYes:
			return "left out: " + impossible.Why, nil
		case err != nil:
			return "", err
		}
		return r.Summary(), r.Err()
	}
}
