package cmd

import (
	"encoding/json"
	"errors"
	"fmt"

	"github.com/zdt-dev/zdt/release"
	"github.com/zdt-dev/zdt/upgrade"
)

// ending is how a transaction of another zdt ended: with a report, or with an error before it had one.
type ending struct {
	report *upgrade.Report
	err    *Failure
}

// decodeEnding reads a document that a transaction can end with.
func decodeEnding(data []byte) (ending, error) {
	var head struct {
		Schema string `json:"schema"`
	}
	if err := json.Unmarshal(data, &head); err != nil {
		return ending{}, fmt.Errorf("read report: %w", err)
	}
	switch head.Schema {
	case "zdt.upgrade/1":
		var r upgrade.Report
		if err := json.Unmarshal(data, &r); err != nil {
			return ending{}, fmt.Errorf("read report: %w", err)
		}
		return ending{report: &r}, nil
	case "zdt.error/1":
		var d errorDoc
		if err := json.Unmarshal(data, &d); err != nil {
			return ending{}, fmt.Errorf("read report: %w", err)
		}
		return ending{err: &Failure{Code: d.ExitCode, Err: errors.New(d.Error), Details: d.Details, Hint: d.Hint}}, nil
	}
	return ending{}, fmt.Errorf("read report: unknown schema %q", head.Schema)
}

// decodeLine reads a document of a known schema.
func decodeLine(data []byte, schema string, doc any) error {
	var head struct {
		Schema string `json:"schema"`
	}
	if err := json.Unmarshal(data, &head); err != nil {
		return err
	}
	if head.Schema != schema {
		return fmt.Errorf("schema %q, want %s", head.Schema, schema)
	}
	return json.Unmarshal(data, doc)
}

// present prints how a transaction ended as the zdt that carried it out has, or would have, and gives its exit code.
func (f *factory) present(e ending) error {
	if e.err != nil {
		return e.err
	}
	report := *e.report
	if f.globals.output != outputText {
		if err := f.print(report); err != nil {
			f.say("zdt: %v", err)
		}
	}
	f.tellEvents(report)
	f.tellReport(report)
	if report.ExitCode != 0 {
		return &Failure{Code: ExitCode(report.ExitCode), Err: fmt.Errorf("%s", report.Cause), Told: true}
	}
	return nil
}

// keepReport keeps how a transaction ended where zdt wait finds it. A transaction is no worse without.
func (f *factory) keepReport(service, txid string, doc any) {
	p, err := f.paths()
	if err != nil || p.Root != "" || !release.ValidTxID(txid) {
		return
	}
	data, err := json.Marshal(doc)
	if err == nil {
		var store *release.Store
		if store, err = release.Open(p.StateDir(service), release.Options{}); err == nil {
			defer store.Close()
			err = store.WriteReport(txid, data)
		}
	}
	if err != nil {
		f.say("%s %s", f.errStyle().warn.Render("warning:"), clean(err.Error()))
	}
}

// lasting tells whether a report is worth keeping: what was not begun is known to whoever wanted it.
func lasting(r upgrade.Report) bool {
	switch r.Outcome {
	case upgrade.Locked, upgrade.Refused, upgrade.Unchanged:
		return false
	}
	return true
}

// answer keeps what became of a detached transaction that has no report.
func (f *factory) answer(as identity, service string, err error) error {
	var failure *Failure
	if err != nil && as.detached() && !(errors.As(err, &failure) && failure.Told) {
		f.keepReport(service, as.TxID, newErrorDoc(err))
	}
	return err
}
