package unitgen

import (
	"strings"
)

// specifier is what stands for the instance in the units of a template, as in systemd's own.
const specifier = "%i"

// SplitName splits the name of an instance, "web@1", into its template, "web@", and what tells it from the others, "1". ok
// is false for a service that is no instance.
func SplitName(name string) (template, instance string, ok bool) {
	prefix, instance, ok := strings.Cut(name, "@")
	if !ok || instance == "" {
		return "", "", false
	}
	return prefix + "@", instance, true
}

// ValidateTemplate checks the name of a template, "web@". The error is an *InputError.
func ValidateTemplate(name string) error {
	prefix, ok := strings.CutSuffix(name, "@")
	if !ok {
		return refuse("name", name, "not the name of a template", "end it with an @, for example web@")
	}
	if err := ValidateName(prefix); err != nil {
		return err
	}
	return ValidateName(name + "1") // as any of them
}

// Template reports whether s describes a template, from which systemd makes instances.
func (s Spec) Template() bool { return strings.HasSuffix(s.Name, "@") }

// Services returns the names of the services that s describes: itself, or the Instances of a template.
func (s Spec) Services() []string {
	if !s.Template() {
		return []string{s.Name}
	}
	var names []string
	for _, i := range s.Instances {
		names = append(names, s.Name+i)
	}
	return names
}

// InstanceUnit returns the name that the unit of a template has for one instance: web@.socket becomes web@1.socket.
// All others stay as they are.
func InstanceUnit(unit, instance string) string {
	return strings.Replace(unit, "@.", "@"+instance+".", 1)
}

// self is the service's name as its own units write it.
func (s Spec) self() string {
	if s.Template() {
		return s.Name + specifier
	}
	return s.Name
}

// refer is how a unit of s writes the name of another one.
func (s Spec) refer(unit string) string {
	if s.Template() {
		return InstanceUnit(unit, specifier)
	}
	return unit
}

// socketUnit names the unit of the sockets called fdName beside NAME.socket.
func (s Spec) socketUnit(fdName string) string {
	if prefix, ok := strings.CutSuffix(s.Name, "@"); ok {
		return prefix + "." + fdName + "@.socket"
	}
	return s.Name + "." + fdName + ".socket"
}

// fill puts an instance in the place of %i.
func fill(text, instance string) string { return strings.ReplaceAll(text, specifier, instance) }

// samples are the instances by which a template is checked: an address with %i in it is none until that is filled in.
func (s Spec) samples() []string {
	switch {
	case !s.Template():
		return []string{specifier} // nothing is filled in
	case len(s.Instances) == 0:
		return []string{"1"}
	}
	return s.Instances
}

// quoted lets %i through a quoting that makes %% of every %. In the units of a template it is the one specifier.
func (s Spec) quoted(quote func(string) string, text string) string {
	if !s.Template() || !strings.Contains(text, specifier) {
		return quote(text)
	}
	if rest := fill(text, ""); quote(rest) == rest {
		return text
	}
	return strings.ReplaceAll(quote(text), "%"+specifier, specifier)
}

// word, arg and value are quoteWord, quoteArg and quoteValue for what may have %i in it.
func (s Spec) word(text string) string  { return s.quoted(quoteWord, text) }
func (s Spec) arg(text string) string   { return s.quoted(quoteArg, text) }
func (s Spec) value(text string) string { return s.quoted(quoteValue, text) }

// command writes argv as the value of an Exec setting. argv[0] is a path that passed validatePath.
func (s Spec) command(argv []string) string {
	words := []string{s.word(argv[0])}
	for _, a := range argv[1:] {
		words = append(words, s.arg(a))
	}
	return strings.Join(words, " ")
}
