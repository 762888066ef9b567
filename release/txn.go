package release

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/zdt-dev/zdt/internal/atomicfile"
)

const (
	txnFile   = "txn.json"
	txnSchema = 1
)

// A Phase is a step of an upgrade. The record names the phase that is about to
// begin, so a reader knows what may have happened, and what cannot have.
type Phase string

// The phases in their order. Up to PhaseRehearse nothing has touched the
// service; before PhaseCommit whatever starts the unit starts From; once
// PhaseCommit is written, To is to be the current release. With Restart To is
// current from PhaseTrigger on, and to stay that from PhaseRecord on.
const (
	PhasePreflight Phase = "preflight"
	PhaseStage     Phase = "stage"
	PhaseRehearse  Phase = "rehearse"
	PhaseTrigger   Phase = "trigger"
	PhaseListen    Phase = "listen"
	PhaseBake      Phase = "bake"
	PhaseCommit    Phase = "commit"
	PhaseDrain     Phase = "drain"
	PhaseExit      Phase = "exit"
	PhaseRecord    Phase = "record"
)

// Phases returns all phases in their order.
func Phases() []Phase {
	return []Phase{
		PhasePreflight, PhaseStage, PhaseRehearse, PhaseTrigger, PhaseListen,
		PhaseBake, PhaseCommit, PhaseDrain, PhaseExit, PhaseRecord,
	}
}

// Valid tells whether p is one of Phases.
func (p Phase) Valid() bool { return slices.Contains(Phases(), p) }

// Before tells whether p comes before q. Both must be valid.
func (p Phase) Before(q Phase) bool {
	all := Phases()
	return slices.Index(all, p) < slices.Index(all, q)
}

// A Txn is the write-ahead record of the open upgrade: enough to finish or to
// undo it when whoever runs it is gone.
type Txn struct {
	Schema int    `json:"schema"`
	TxID   string `json:"txid"`
	Kind   Kind   `json:"kind"`
	Phase  Phase  `json:"phase"`
	// Restart: it is done by a restart of the service, which needs To to be current from the trigger on.
	Restart bool `json:"restart,omitempty"`
	// Undo: it was decided to go back to From. Phase stays where it was.
	Undo   bool   `json:"undo,omitempty"`
	Reason string `json:"reason,omitempty"` // for Undo, a stable word
	// Frozen: it stays as it is until somebody decides.
	Frozen bool `json:"frozen,omitempty"`

	BootID    string `json:"boot_id"` // see BootID; filled in if empty
	Runner    Proc   `json:"runner"`  // the zdt that works on it
	Incumbent Proc   `json:"incumbent,omitzero"`
	Candidate Proc   `json:"candidate,omitzero"`

	From string `json:"from,omitempty"` // release IDs
	To   string `json:"to,omitempty"`   // empty before PhaseStage is done

	Started  time.Time `json:"started"`
	Deadline time.Time `json:"deadline,omitzero"` // by which it is undone
	Who      Who       `json:"who"`
	Why      string    `json:"why,omitempty"`
	// AcceptedRisks are the IDs of blockers that it was begun in spite of.
	AcceptedRisks []string `json:"accepted_risks,omitempty"`
}

// Rebooted tells whether the host was started again since the record was
// written. Then every process it names is gone.
func (t Txn) Rebooted(bootID string) bool { return t.BootID != bootID }

// WriteTxn replaces the record and makes it durable before it returns: call it
// before the step that it announces. The caller holds the service's lock. On
// error the earlier record is in place; if only its durability is in doubt,
// writing again is harmless.
func (s *Store) WriteTxn(t Txn) error {
	if err := s.writeTxn(t); err != nil {
		return fmt.Errorf("write transaction record: %w", withSpaceHint(err, s.dir))
	}
	return nil
}

func (s *Store) writeTxn(t Txn) error {
	t.Schema = txnSchema
	if t.BootID == "" {
		var err error
		if t.BootID, err = BootID(); err != nil {
			return err
		}
	}
	if err := t.check(); err != nil {
		return err
	}
	data, err := json.MarshalIndent(t, "", "  ")
	if err != nil {
		return err
	}
	if len(data) >= maxRecord {
		return fmt.Errorf("record has %d bytes, at most %d are allowed", len(data), maxRecord)
	}
	do := s.steps("txn")
	if err := do("sweep", func() error { return s.sweepTemps(txnFile) }); err != nil {
		return err
	}
	return atomicfile.WriteAt(s.root, txnFile, append(data, '\n'), 0o644, do)
}

// check finds records that a later reader could not act upon.
func (t Txn) check() error {
	switch {
	case !ValidTxID(t.TxID):
		return fmt.Errorf("%q is not the ID of a transaction", t.TxID)
	case !t.Phase.Valid():
		return fmt.Errorf("unknown phase %q", t.Phase)
	case t.From != "" && !ValidID(t.From):
		return fmt.Errorf("%q is not the ID of a release", t.From)
	case t.To != "" && !ValidID(t.To):
		return fmt.Errorf("%q is not the ID of a release", t.To)
	}
	return nil
}

// ReadTxn returns the record of the open upgrade, or ErrNoTxn. A record of a
// newer zdt gives a *SchemaError, one that makes no sense ErrDamaged.
func (s *Store) ReadTxn() (Txn, error) {
	data, err := readRecord(s.root, txnFile)
	if errors.Is(err, fs.ErrNotExist) {
		return Txn{}, ErrNoTxn
	}
	var t Txn
	if err == nil {
		t, err = parseTxn(data)
	}
	if err != nil {
		return Txn{}, fmt.Errorf("read transaction record: %w", err)
	}
	return t, nil
}

func parseTxn(data []byte) (Txn, error) {
	// The schema first: the rest may have another form in a newer one.
	var head struct {
		Schema int `json:"schema"`
	}
	var t Txn
	err := json.Unmarshal(data, &head)
	if err == nil {
		if head.Schema > txnSchema {
			return Txn{}, &SchemaError{What: "transaction", Got: head.Schema, Known: txnSchema}
		}
		err = json.Unmarshal(data, &t)
	}
	if err == nil && head.Schema < 1 {
		err = errors.New("no schema")
	}
	if err == nil {
		err = t.check()
	}
	if err != nil {
		return Txn{}, hint(fmt.Errorf("%s: %w: %w", txnFile, ErrDamaged, err),
			"an atomic write cannot leave this, so look at the disk; see which release serves, then remove the file")
	}
	return t, nil
}

// ClearTxn removes the record: the upgrade is over and in the history. It is
// no error if there is none. The caller holds the service's lock.
func (s *Store) ClearTxn() error {
	do := s.steps("txn")
	err := do("sweep", func() error { return s.sweepTemps(txnFile) })
	if err == nil {
		err = do("remove", func() error {
			err := unix.Unlinkat(int(s.root.Fd()), txnFile, 0)
			if errors.Is(err, unix.ENOENT) {
				return nil
			}
			return err
		})
	}
	if err == nil {
		err = do("fsync directory", s.root.Sync)
	}
	if err != nil {
		return fmt.Errorf("clear transaction record: %w", err)
	}
	return nil
}
