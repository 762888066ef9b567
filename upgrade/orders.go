package upgrade

import (
	"github.com/zdt-dev/zdt/journal"
)

// Order is what an operator decides about a transaction that is under way.
type Order string

const (
	Promote Order = "promote" // the probation is over: commit now
	Abort   Order = "abort"   // undo it
	// Finish puts in order what a zdt that is gone has left: what had committed is finished, all else undone.
	Finish Order = "finish"
)

func (r *run) aborted() *Failure {
	f := failure(string(journal.ReasonRequested), "an operator aborted the upgrade")
	f.Hint = "run the same zdt upgrade again when the reason is gone"
	return f
}
