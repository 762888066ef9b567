package upgrade

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/zdt-dev/zdt/release"
)

// Retention is how many releases an upgrade leaves behind, besides those that must not be deleted.
type Retention struct {
	Keep       int // the newest
	KeepFailed int // the newest of those that failed
}

// retainLimit bounds what the deletion of old releases adds to an upgrade, whose verdict waits for it. One release
// takes a few milliseconds; what is left of many large ones goes with the next upgrades.
const retainLimit = 2 * time.Second

// retain deletes old releases after a commit. It comes behind everything else, the record and the history included, and whatever
// becomes of it: the upgrade has succeeded. A rollback deletes nothing: somebody will want to look at what there was.
func (r *run) retain() {
	rep, o := &r.report, r.Options.Retain
	if o == nil || rep.Outcome != Upgraded || rep.Kind != release.KindUpgrade || r.ctx.Err() != nil {
		return
	}
	ctx, cancel := context.WithTimeout(r.ctx, retainLimit)
	defer cancel()
	// The store protects these two by the history or, if that could not be written, by the open record. But they must
	// not depend on it.
	protect := []string{r.to.ID}
	if rep.From != nil {
		protect = append(protect, rep.From.ID)
	}
	p, err := r.Store.Prune(ctx, release.PruneOptions{Keep: o.Keep, KeepFailed: o.KeepFailed, Protect: protect, NoWait: true})
	for _, old := range p.Removed {
		rep.Pruned = append(rep.Pruned, PrunedRelease{ID: old.ID, Bytes: old.Size})
	}
	switch {
	case err == nil, errors.Is(err, release.ErrBusy), r.ctx.Err() != nil: // the next upgrade does it
	case errors.Is(err, context.DeadlineExceeded):
		r.warn("deleting old releases took more than %s; the next upgrade goes on with it, or: %s", retainLimit, r.zdt("prune", r.Options.Service))
	default:
		r.warn("old releases were not deleted: %v%s", err, advice(err))
	}
}

// advice is the hint of an error as the end of a sentence.
func advice(err error) string {
	if h := hintOf(err); h != "" {
		return fmt.Sprintf(" (%s)", h)
	}
	return ""
}
