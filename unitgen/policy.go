package unitgen

import (
	"errors"
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"
)

// policySection is the section zdt keeps in unit files. systemd ignores
// sections whose name begins with "X-".
const policySection = "X-Zdt"

// A Policy is what the [X-Zdt] sections of a service's unit file and drop-ins
// say, taken together.
type Policy struct {
	Managed bool // there is an [X-Zdt] with a Name=; without one the rest are defaults

	Name    string
	Runtime Runtime
	Exec    string   // base name of the program within a release
	Run     []string // flags of zdt run
	Listen  []Listen

	Health       []string
	Gates        []string // as internal/health reads them
	HookTimeout  time.Duration
	ReadyTimeout time.Duration
	DrainTimeout time.Duration
	Bake         time.Duration
	OnFailure    OnFailure

	RequireSignature RequireSignature
	Rehearse         Rehearse

	// How many old releases stay, of those that served and of those that failed. math.MaxInt: all.
	Keep, KeepFailed int

	// Warnings are what ought to be shown but stops nothing: keys zdt does not know, values
	// that contradict the rest of the unit.
	Warnings []Warning
}

// How many old releases stay if the unit says nothing: enough to go back some steps, and the evidence of the last failures.
const (
	DefaultKeep       = 5
	DefaultKeepFailed = 3
)

// DefaultHookTimeout bounds each hook of an upgrade.
const DefaultHookTimeout = 30 * time.Second

// Rehearse says whether an upgrade is tried beside the service first.
type Rehearse string

// Whether it is.
const (
	RehearseNo     Rehearse = "no"
	RehearseYes    Rehearse = "yes"    // where the service can be rehearsed; the default
	RehearseAlways Rehearse = "always" // or not upgraded
)

// RequireSignature says which detached signature a release of the service must have.
type RequireSignature string

// The signatures that can be asked for.
const (
	RequireSignatureNo       RequireSignature = "no"
	RequireSignatureYes      RequireSignature = "yes" // of either tool
	RequireSignatureMinisign RequireSignature = "minisign"
	RequireSignatureSSH      RequireSignature = "ssh" // ssh-keygen -Y sign -n zdt
)

// A Warning is a line of a unit file that does not do what it seems to.
type Warning struct {
	Path string
	Line int
	Text string // what is wrong
	Fix  string // what to do; may be empty
}

func (w Warning) String() string { return fmt.Sprintf("%s:%d: %s", w.Path, w.Line, w.Text) }

// A PolicyError is a line of [X-Zdt] that zdt cannot read. An upgrade
// must not go on as if it were not there.
type PolicyError struct {
	Path string
	Line int
	Err  error
}

func (e *PolicyError) Error() string { return fmt.Sprintf("%s:%d: %v", e.Path, e.Line, e.Err) }
func (e *PolicyError) Unwrap() error { return e.Err }

// Hint returns what to do about it.
func (e *PolicyError) Hint() string {
	var in *InputError
	if errors.As(e.Err, &in) && in.Fix != "" {
		return in.Fix
	}
	return "correct " + e.Path
}

// ParsePolicy reads the unit file and then its drop-ins, in the order systemd
// reads them (FragmentPath, DropInPaths). A later value replaces an earlier
// one, lists grow, an empty value resets to the default. Values in [X-Zdt] stand as they
// are: no quoting, no %-specifiers. Of each File only Path and Data are used. InstancePolicy is for instances of templates.
//
// The error joins one *PolicyError for each line that cannot be read; the
// Policy then holds what the other lines say.
func ParsePolicy(files ...File) (Policy, error) {
	return parsePolicy(func(text string) string { return text }, files)
}

// InstancePolicy is ParsePolicy for the service of that name. If it is an instance of a template, these stand in [X-Zdt] for what
// they are in systemd's own settings: %i, %p, %n, %N, and %% for a percent sign. What else has one, as a URL may, stays.
func InstancePolicy(service string, files ...File) (Policy, error) {
	return parsePolicy(func(text string) string { return FillName(service, text) }, files)
}

// FillName puts the name of an instance in the place of what stands for it in text, as InstancePolicy does. For any other service
// text stays as it is.
func FillName(service, text string) string {
	template, instance, ok := SplitName(service)
	if !ok {
		return text
	}
	names := strings.NewReplacer("%%", "%", "%i", instance, "%p", strings.TrimSuffix(template, "@"), "%n", service+".service", "%N", service)
	return names.Replace(text)
}

func parsePolicy(expand func(string) string, files []File) (Policy, error) {
	r := policyReader{policy: defaultPolicy()}
	for _, f := range files {
		all, bad := parseUnit(f.Data)
		for _, b := range bad {
			if b.section == "" || b.section == policySection {
				r.errs = append(r.errs, &PolicyError{Path: f.Path, Line: b.line, Err: errors.New(b.text)})
			} else {
				r.warn(place{f.Path, b.line}, b.text+"; systemd ignores the line", "correct it or remove it")
			}
		}
		for _, s := range all {
			if s.section == policySection {
				s.value = expand(s.value)
			}
			r.at(f.Path, s)
		}
	}
	p := r.policy
	p.Managed = p.Name != ""
	if p.Managed {
		r.compare(&p)
	}
	return p, errors.Join(r.errs...)
}

func defaultPolicy() Policy {
	return Policy{
		Runtime:      RuntimeLibrary,
		ReadyTimeout: DefaultReadyTimeout,
		DrainTimeout: DefaultDrainTimeout,
		OnFailure:    OnFailureRollback,

		RequireSignature: RequireSignatureNo,
		Rehearse:         RehearseYes,
		HookTimeout:      DefaultHookTimeout,
		Keep:             DefaultKeep,
		KeepFailed:       DefaultKeepFailed,
	}
}

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
	case "Keep":
		return setKeep(&p.Keep, "keep", v, def.Keep)
	case "KeepFailed":
		return setKeep(&p.KeepFailed, "keep failed", v, def.KeepFailed)
	default:
		r.warn(here, fmt.Sprintf("zdt knows no %s= in [X-Zdt]", s.key), "correct its spelling or remove it")
	}
	return nil
}

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
