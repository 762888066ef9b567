package unitgen

import (
	"fmt"
	"math"
	"regexp"
	"strconv"
	"strings"
	"time"
)

// place is where a value stands.
type place struct {
	path string
	line int
}

// policyReader goes through the settings of all files in order.
type policyReader struct {
	policy Policy
	errs   []error

	// What the rest of the unit says about the same things.
	env         map[string]string // ZDT_ variables of Environment=
	timeoutStop string            // TimeoutStopSec=
	stopPlace   place
	drainPlace  place // of DrainTimeout=
	readyPlace  place // of ReadyTimeout=
}

func (r *policyReader) at(path string, s setting) {
	here := place{path, s.line}
	switch s.section {
	case "Service":
		r.service(here, s)
	case policySection:
		if err := r.set(here, s); err != nil {
			r.errs = append(r.errs, &PolicyError{Path: path, Line: s.line, Err: fmt.Errorf("%s=: %w", s.key, err)})
		}
	}
}

// set takes one line of [X-Zdt].
func (r *policyReader) set(here place, s setting) error {
	p, v, def := &r.policy, s.value, defaultPolicy()
	switch s.key {
	case "Format":
		n, err := strconv.Atoi(v)
		if err != nil || n < 1 {
			return refuse("format", v, "not a number", "")
		}
		if n > formatVersion {
			return refuse("format", v, "written by a newer zdt", "upgrade zdt on this host")
		}
	case "Generated": // Inspect's business
	case "Name":
		if v == "" {
			p.Name = ""
			return nil
		}
		if err := ValidateName(v); err != nil && ValidateTemplate(v) != nil {
			return err
		}
		p.Name = v
	case "Runtime":
		if v == "" {
			v = string(def.Runtime)
		}
		if Runtime(v) != RuntimeLibrary && Runtime(v) != RuntimeHelper {
			return refuse("runtime", v, "unknown", "use library or helper")
		}
		p.Runtime = Runtime(v)
	case "Exec":
		if v != "" && !baseName.MatchString(v) {
			return refuse("program", v, "not a plain file name", "")
		}
		p.Exec = v
	case "Run":
		if v == "" {
			p.Run = nil
			return nil
		}
		if err := validateRun(v); err != nil {
			return err
		}
		p.Run = append(p.Run, v)
	case "Listen":
		if v == "" {
			p.Listen = nil
			return nil
		}
		l, err := ParseListen(v)
		if err != nil {
			return err
		}
		p.Listen = append(p.Listen, l)
	case "Health":
		if v == "" {
			p.Health = nil
			return nil
		}
		for _, u := range strings.Fields(v) {
			if err := validateHealth(u); err != nil {
				return err
			}
			p.Health = append(p.Health, u)
		}
	case "Gate":
		if v == "" {
			p.Gates = nil
			return nil
		}
		p.Gates = append(p.Gates, v)
	case "HookTimeout":
		return setSpan(&p.HookTimeout, "hook timeout", v, def.HookTimeout, time.Millisecond)
	case "ReadyTimeout":
		r.readyPlace = here
		return setSpan(&p.ReadyTimeout, "ready timeout", v, def.ReadyTimeout, time.Millisecond)
	case "DrainTimeout":
		r.drainPlace = here
		return setSpan(&p.DrainTimeout, "drain timeout", v, def.DrainTimeout, time.Millisecond)
	case "Bake":
		return setSpan(&p.Bake, "bake", v, 0, 0)
	case "LongestRequest":
		return setSpan(&p.LongestRequest, "longest request", v, 0, 0)
	case "IdleTimeout":
		return setSpan(&p.IdleTimeout, "idle timeout", v, 0, 0)
	case "OnFailure":
		if v == "" {
			v = string(def.OnFailure)
		}
		if err := validateOnFailure(OnFailure(v)); err != nil {
			return err
		}
		p.OnFailure = OnFailure(v)
	case "Rehearse":
		switch h := Rehearse(v); h {
		case "":
			p.Rehearse = def.Rehearse
		case RehearseNo, RehearseYes, RehearseAlways:
			p.Rehearse = h
		default:
			return refuse("rehearse", v, "unknown", "use yes, no or always")
		}
	case "RequireSignature":
		switch q := RequireSignature(v); q {
		case "":
			p.RequireSignature = def.RequireSignature
		case RequireSignatureNo, RequireSignatureYes, RequireSignatureMinisign, RequireSignatureSSH:
			p.RequireSignature = q
		default: // a policy that nobody understands must not mean "no"
			return refuse("require signature", v, "unknown", "use yes, no, minisign or ssh")
		}
	case "AcceptRisk":
		if v == "" {
			p.AcceptRisk = nil
			return nil
		}
		for _, id := range strings.FieldsFunc(v, func(c rune) bool { return c == ',' || c == ' ' || c == '\t' }) {
			if !checkID.MatchString(id) {
				return refuse("accepted risk", id, "not an ID of zdt check", "IDs look like ZDT004")
			}
			p.AcceptRisk = append(p.AcceptRisk, id)
		}
	case "Keep":
		return setKeep(&p.Keep, "keep", v, def.Keep)
	case "KeepFailed":
		return setKeep(&p.KeepFailed, "keep failed", v, def.KeepFailed)
	default:
		r.warn(here, fmt.Sprintf("zdt knows no %s= in [X-Zdt]", s.key), "correct its spelling or remove it")
	}
	return nil
}

// checkID is the ID of one check, whether this version has it or not: a host that is behind must still read the unit.
var checkID = regexp.MustCompile(`^ZDT[0-9]{3}$`)

// setKeep never takes what it cannot read for a number: releases would be deleted.
func setKeep(to *int, field, v string, def int) error {
	switch v {
	case "":
		*to = def
		return nil
	case "infinity":
		*to = math.MaxInt
		return nil
	}
	n, err := strconv.ParseUint(v, 10, 31)
	if err != nil {
		return refuse(field, v, "not a number of releases", "use a number from 0 on, or infinity to keep all")
	}
	*to = int(n)
	return nil
}

func setSpan(to *time.Duration, field, v string, def, least time.Duration) error {
	if v == "" {
		*to = def
		return nil
	}
	d, err := parseSpan(v)
	if err != nil {
		return refuse(field, v, err.Error(), "write it as 90s or 1min 30s")
	}
	if err := validateSpan(field, d, least); err != nil {
		return err
	}
	*to = d
	return nil
}

// service notes what [Service] says about the same limits.
func (r *policyReader) service(here place, s setting) {
	switch s.key {
	case "TimeoutStopSec", "TimeoutSec":
		r.timeoutStop, r.stopPlace = s.value, here
	case "Environment":
		if s.value == "" {
			r.env = nil
			return
		}
		words, err := splitWords(s.value)
		if err != nil {
			return // systemd's to complain about
		}
		for _, w := range words {
			if name, v, ok := strings.Cut(w, "="); ok && strings.HasPrefix(name, "ZDT_") {
				if r.env == nil {
					r.env = map[string]string{}
				}
				r.env[name] = v
			}
		}
	}
}

// compare warns where [X-Zdt] and what the runtime and systemd go by differ:
// the runtime reads only its environment, systemd only TimeoutStopSec=.
func (r *policyReader) compare(p *Policy) {
	for _, c := range []struct {
		key, name string
		want      time.Duration
		at        place
	}{
		{"ReadyTimeout", "ZDT_READY_TIMEOUT", p.ReadyTimeout, r.readyPlace},
		{"DrainTimeout", "ZDT_DRAIN_TIMEOUT", p.DrainTimeout, r.drainPlace},
	} {
		if got, err := time.ParseDuration(r.env[c.name]); err == nil && got != c.want {
			r.warnTo(p, c.at, fmt.Sprintf("%s=%s, but the service was told %s=%s and goes by that", c.key, formatSpan(c.want), c.name, r.env[c.name]),
				fmt.Sprintf("set Environment=%s=%s in [Service], or %s=%s here", c.name, formatSpan(c.want), c.key, r.env[c.name]))
		}
	}
	longest := p.DrainTimeout
	for _, name := range []string{"ZDT_DRAIN_TIMEOUT", "ZDT_STREAM_TIMEOUT"} {
		if d, err := time.ParseDuration(r.env[name]); err == nil {
			longest = max(longest, d)
		}
	}
	if stop, err := parseSpan(r.timeoutStop); err == nil && stop > 0 && stop <= longest {
		r.warnTo(p, r.stopPlace, fmt.Sprintf("systemd kills the service after %s, while it may still drain until %s", formatSpan(stop), formatSpan(longest)),
			"set TimeoutStopSec="+formatSpan(longest+stopMargin))
	}
}

func (r *policyReader) warn(at place, text, fix string) { r.warnTo(&r.policy, at, text, fix) }

func (r *policyReader) warnTo(p *Policy, at place, text, fix string) {
	p.Warnings = append(p.Warnings, Warning{Path: at.path, Line: at.line, Text: text, Fix: fix})
}
