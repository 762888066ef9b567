package cmd

import (
	"errors"
	"fmt"
	"time"

	"github.com/zdt-dev/zdt/unitgen"
	"github.com/zdt-dev/zdt/upgrade"
)

// durationFlag is a time.Duration that is not negative.
type durationFlag time.Duration

// Set reads what Go writes: 90s, 1m30s, 500ms.
func (d *durationFlag) Set(s string) error {
	v, err := time.ParseDuration(s)
	switch {
	case err != nil:
		return errors.New("give a duration such as 30s, 1m30s or 500ms")
	case v < 0:
		return errors.New("a duration cannot be negative")
	}
	*d = durationFlag(v)
	return nil
}

func (d *durationFlag) String() string {
	if *d == 0 {
		return ""
	}
	return time.Duration(*d).String()
}

// Type names the flag's value in --help.
func (d *durationFlag) Type() string { return "D" }

// maybeDuration is a duration that may not be given at all.
type maybeDuration struct{ value **time.Duration }

// Set reads it as durationFlag does.
func (m maybeDuration) Set(s string) error {
	var d durationFlag
	if err := d.Set(s); err != nil {
		return err
	}
	v := time.Duration(d)
	*m.value = &v
	return nil
}

func (m maybeDuration) String() string { return "" }

// Type names the flag's value in --help.
func (m maybeDuration) Type() string { return "D" }

// maybeOnFailure is --on-failure, which may not be given at all.
type maybeOnFailure struct{ value **unitgen.OnFailure }

// Set reads rollback or freeze.
func (m maybeOnFailure) Set(s string) error {
	v := unitgen.OnFailure(s)
	if v != unitgen.OnFailureRollback && v != unitgen.OnFailureFreeze {
		return errors.New("use rollback or freeze")
	}
	*m.value = &v
	return nil
}

func (m maybeOnFailure) String() string { return "" }

// Type names the flag's value in --help.
func (m maybeOnFailure) Type() string { return "WHAT" }

// strategyFlag is --strategy.
type strategyFlag upgrade.Strategy

// Set reads handoff or restart.
func (f *strategyFlag) Set(s string) error {
	switch v := upgrade.Strategy(s); v {
	case upgrade.StrategyHandoff, upgrade.StrategyRestart:
		*f = strategyFlag(v)
		return nil
	}
	return errors.New("use handoff or restart")
}

func (f *strategyFlag) String() string { return "" }

// Type names the flag's value in --help.
func (f *strategyFlag) Type() string { return "HOW" }

// waitFlag is --wait, --wait=D or --wait=forever; negative stands for forever.
type waitFlag time.Duration

// Set reads a duration or forever.
func (w *waitFlag) Set(s string) error {
	if s == "forever" {
		*w = -1
		return nil
	}
	var d durationFlag
	if err := d.Set(s); err != nil {
		return fmt.Errorf("%w, or forever", err)
	}
	*w = waitFlag(d)
	return nil
}

func (w *waitFlag) String() string { return "" }

// Type names the flag's value in --help.
func (w *waitFlag) Type() string { return "D" }
