package upgrade

import (
	"errors"

	"github.com/zdt-dev/zdt/release"
)

// rehearse tries the release beside the service. A rollback goes to one that has served, and a service that is down has nobody
// whom a bad release could harm: its own start is the better rehearsal.
func (r *run) rehearse() error {
	if r.Rehearse == nil || r.Options.Kind == release.KindRollback || r.down {
		return nil
	}
	r.begin(Rehearse, "")
	text, err := r.Rehearse(r.ctx, r.to, r.report.TxID, r.progress)
	if err == nil {
		r.end(Done, text)
		return nil
	}
	var words interface{ LastWords() ([]string, int) }
	if errors.As(err, &words) {
		r.report.CandidateLog, r.report.LogCut = words.LastWords()
	}
	return &Failure{Outcome: Refused, Err: err, Hint: hintOf(err)}
}
