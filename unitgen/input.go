package unitgen

import "fmt"

// An InputError is something an operator gave that cannot become part of a unit.
type InputError struct {
	Field   string // the Spec field or flag in words: "name", "listen", "health"
	Value   string // as given
	Problem string // why not
	Fix     string // what to give instead; may be empty
}

func (e *InputError) Error() string {
	return fmt.Sprintf("%s %q: %s", e.Field, e.Value, e.Problem)
}

// Hint returns what to do about it, or "".
func (e *InputError) Hint() string { return e.Fix }

func refuse(field, value, problem, fix string) error {
	return &InputError{Field: field, Value: value, Problem: problem, Fix: fix}
}
