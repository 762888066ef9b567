package cmd

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
)

// errorDoc is what stdout has with -o json when a command fails before it has
// a document of its own.
type errorDoc struct {
	Schema   string   `json:"schema"` // zdt.error/1
	Outcome  string   `json:"outcome"`
	ExitCode ExitCode `json:"exit_code"`
	Changed  bool     `json:"changed"`
	Error    string   `json:"error"`
	Details  []string `json:"details,omitempty"`
	Hint     string   `json:"hint,omitempty"`
}

// tell prints an error: the cause, the details, the hint.
func (f *factory) tell(err error) {
	var failure *Failure
	errors.As(err, &failure)
	if failure != nil && failure.Told {
		return
	}
	f.tellText(err)
	doc := newErrorDoc(err)
	if f.globals.output != outputText {
		f.print(doc)
	}
	f.tellEvents(doc)
}

func newErrorDoc(err error) errorDoc {
	doc := errorDoc{Schema: "zdt.error/1", Outcome: "error", ExitCode: codeOf(err), Error: err.Error(), Hint: hintOf(err)}
	var failure *Failure
	if errors.As(err, &failure) {
		doc.Details = failure.Details
	}
	return doc
}

// tellText is tell for a person.
func (f *factory) tellText(err error) {
	var failure *Failure
	errors.As(err, &failure)
	var details []string
	if failure != nil {
		details = failure.Details
	}
	lines, hint := causeLines(err), hintOf(err)
	st := f.errStyle()
	for i, line := range lines {
		mark := "zdt: "
		if i > 0 {
			mark = "     "
		}
		fmt.Fprintln(f.Err, st.bad.Render(mark)+clean(line))
	}
	for _, d := range details {
		fmt.Fprintln(f.Err, "  "+clean(d))
	}
	if hint != "" {
		fmt.Fprintln(f.Err, st.note.Render("hint: ")+clean(hint))
	}
}

// print writes one document to stdout in the form asked for.
func (f *factory) print(doc any) error {
	return printJSON(f.Out, doc, f.globals.output == outputJSON)
}

// printVerdict writes the document of a command that err ended, nil: that succeeded, and tells a person, too, what failed.
func (f *factory) printVerdict(doc any, err error) error {
	if perr := f.print(doc); perr != nil {
		return perr
	}
	if err == nil {
		return nil
	}
	f.tellText(err)
	return &Failure{Code: codeOf(err), Err: err, Told: true}
}

// printJSON writes one document, on one line unless it is to be indented.
func printJSON(w io.Writer, doc any, indent bool) error {
	e := json.NewEncoder(w)
	e.SetEscapeHTML(false)
	if indent {
		e.SetIndent("", "  ")
	}
	if err := e.Encode(doc); err != nil {
		return fmt.Errorf("write result: %w", err)
	}
	return nil
}
