package unitgen

import (
	"errors"
	"fmt"
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

	// What stands in front of the service, for zdt check: how long a request may take, and how long a load balancer keeps an idle
	// connection. 0: not known.
	LongestRequest, IdleTimeout time.Duration

	RequireSignature RequireSignature
	Rehearse         Rehearse
	AcceptRisk       []string // IDs of zdt check that do not stop an upgrade

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
