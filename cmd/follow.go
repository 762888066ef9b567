package cmd

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"time"

	"github.com/zdt-dev/zdt/release"
	"github.com/zdt-dev/zdt/upgrade"
)

// A follower watches a transaction that another zdt carries out, or has. It takes no lock, and needs neither the bus nor the
// service.
type follower struct {
	f       *factory
	paths   Paths
	store   *release.Store
	service string
	txid    string
	observe func(upgrade.Update)

	broadcast *broadcastReader // nil: none was found yet
	last      ending           // the end of the broadcast; zero: it has none yet
	runner    release.Proc     // zero: nobody was seen to work on it
}

// openFollower finds the transaction: the named one or, without a name, the one that is open, or else the last one. The
// caller closes the follower.
func (f *factory) openFollower(service, txid string, observe func(upgrade.Update)) (_ *follower, err error) {
	paths, err := f.paths()
	if err != nil {
		return nil, err
	}
	w := &follower{f: f, paths: paths, service: service, txid: txid, observe: observe}
	w.store, err = release.Open(paths.disk(paths.StateDir(service)), release.Options{})
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fail(ExitNoService, f.zdt()+" status", "zdt manages no service %s", service)
	}
	if err != nil {
		return nil, err
	}
	if txid == "" {
		if w.txid, err = w.find(); err != nil {
			w.close()
			return nil, err
		}
	}
	return w, nil
}

func (w *follower) close() {
	w.store.Close()
	if w.broadcast != nil {
		w.broadcast.close()
	}
}

// find is the transaction that is meant when none is named.
func (w *follower) find() (string, error) {
	h, alive, err := release.ReadHolder(w.paths.Lock(w.service))
	if err != nil {
		return "", err
	}
	if alive && h.TxID != "" {
		return h.TxID, nil
	}
	txn, err := w.store.ReadTxn()
	if err == nil {
		return txn.TxID, nil
	}
	if !errors.Is(err, release.ErrNoTxn) {
		return "", err
	}
	last := ""
	reports, err := w.store.Reports()
	if err != nil {
		return "", err
	}
	if len(reports) > 0 {
		last = reports[len(reports)-1]
	}
	history, err := w.store.History()
	if err != nil {
		return "", err
	}
	for _, e := range history.Entries {
		if e.Kind != release.KindInit {
			last = max(last, e.TxID) // they begin with the time
		}
	}
	if last == "" {
		return "", fail(ExitRefused, w.f.zdt()+" upgrade "+w.service+" --binary FILE", "%s was never upgraded", w.service)
	}
	return last, nil
}

// wait returns when the transaction is over, or ctx.
func (w *follower) wait(ctx context.Context) (ending, error) {
	look := time.NewTicker(25 * time.Millisecond)
	defer look.Stop()
	for {
		// In this order: who is dead now has said everything that is read afterwards.
		alive, err := w.alive()
		if err != nil {
			return ending{}, err
		}
		if err := w.read(); err != nil {
			return ending{}, err
		}
		if w.last != (ending{}) {
			return w.over()
		}
		if !alive {
			return w.over()
		}
		select {
		case <-look.C:
		case <-ctx.Done():
			return ending{}, context.Cause(ctx)
		}
	}
}

// alive tells whether a zdt works on the transaction.
func (w *follower) alive() (bool, error) {
	if w.runner.PID != 0 {
		return w.runner.Alive(), nil
	}
	h, alive, err := release.ReadHolder(w.paths.Lock(w.service))
	if err != nil {
		return false, err
	}
	if alive && h.TxID == w.txid {
		w.runner = h.Proc
		return true, nil
	}
	// One that waits for the lock has only its broadcast.
	if err := w.read(); err != nil || w.broadcast == nil {
		return false, err
	}
	w.runner = w.broadcast.head.Runner
	return w.runner.Alive(), nil
}

// read passes on what was said since the last time.
func (w *follower) read() error {
	if w.broadcast == nil {
		r, err := openBroadcast(w.paths.Broadcast(w.service, w.txid))
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil {
			return err
		}
		w.broadcast = r
	}
	for w.last == (ending{}) {
		line, err := w.broadcast.next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("follow upgrade %s: %w", w.txid, err)
		}
		var u updateDoc
		if decodeLine(line, "zdt.update/1", &u) == nil {
			w.observe(u.Update)
			continue
		}
		if w.last, err = decodeEnding(line); err != nil {
			return err
		}
	}
	return nil
}

// over tells the end of a transaction that nobody works on any more.
func (w *follower) over() (ending, error) {
	// The kept one comes first: what was frozen, or cut short, another zdt may have ended since.
	data, err := w.store.ReadReport(w.txid)
	if err == nil {
		return decodeEnding(data)
	}
	if !errors.Is(err, release.ErrNoReport) {
		return ending{}, err
	}
	if w.last != (ending{}) {
		return w.last, nil
	}
	txn, err := w.store.ReadTxn()
	if err == nil && txn.TxID == w.txid {
		return ending{}, w.cutShort(txn)
	}
	if err != nil && !errors.Is(err, release.ErrNoTxn) {
		return ending{}, err
	}
	history, err := w.store.History()
	if err != nil {
		return ending{}, err
	}
	for _, e := range history.Entries {
		if e.TxID == w.txid {
			return ending{report: w.fromHistory(e)}, nil
		}
	}
	if w.runner.PID != 0 {
		return ending{}, fail(ExitRefused, "run the same command again", "the zdt of upgrade %s died before it had changed anything", w.txid)
	}
	return ending{}, fail(ExitRefused, w.f.zdt()+" history "+w.service, "%s has no upgrade %s, or not any more", w.service, w.txid)
}

// cutShort is the end of a transaction whose zdt was killed.
func (w *follower) cutShort(txn release.Txn) error {
	if txn.Frozen {
		return fail(ExitFrozen, fmt.Sprintf("%s promote %s, or %s abort %s", w.f.zdt(), w.service, w.f.zdt(), w.service), "%s %s is frozen and waits for a decision", txn.Kind, txn.TxID)
	}
	how := "its zdt died"
	if boot, err := release.BootID(); err == nil && txn.Rebooted(boot) {
		how = "the host went down"
	}
	return fail(ExitInterrupted, w.f.zdt()+" resume "+w.service, "%s %s was cut short in the phase %s: %s", txn.Kind, txn.TxID, txn.Phase, how)
}

// fromHistory is a report with what the history has.
func (w *follower) fromHistory(e release.Entry) *upgrade.Report {
	r := &upgrade.Report{Schema: "zdt.upgrade/1", Outcome: upgrade.Outcome(e.Outcome), ExitCode: e.ExitCode, Changed: e.Committed, TxID: e.TxID,
		Service: w.service, Kind: e.Kind, Who: e.Who, Why: e.Why, Reason: e.Reason, StartedAt: e.Started, EndedAt: e.Ended}
	for id, to := range map[string]**upgrade.Release{e.From: &r.From, e.To: &r.To} {
		if id != "" {
			*to = &upgrade.Release{ID: id}
		}
	}
	if e.ExitCode != 0 {
		r.Cause = fmt.Sprintf("%s %s ended as %s", e.Kind, e.TxID, e.Outcome)
		r.Hint = w.f.zdt() + " status " + w.service
	}
	return r
}
