//go:build linux

package helper

import (
	"fmt"
	"time"

	"github.com/zdt-dev/zdt/handoff/control"
	"github.com/zdt-dev/zdt/journal"
)

// answer carries a request of the control socket out. It runs in any goroutine.
func (k *keeper) answer(req control.Request) control.Response {
	resp := control.Response{Code: control.CodeNotReady, Error: "the helper is done"}
	k.do(func() {
		code, text := k.carryOut(req)
		s := k.status()
		resp = control.Response{Code: code, Error: text, Status: &s}
	})
	return resp
}

// subscribe makes updates receive every status from now on.
func (k *keeper) subscribe(updates chan control.Status) (stop func(), ok bool) {
	ok = k.do(func() { k.watchers[updates] = struct{}{} })
	return func() { k.do(func() { delete(k.watchers, updates) }) }, ok
}

func (k *keeper) carryOut(req control.Request) (code, text string) {
	switch req.Op {
	case control.OpStatus:
		return "", ""
	case control.OpArm:
		return k.arm(req)
	case control.OpDisarm:
		if k.armed != nil && k.armed.TxID == req.TxID {
			k.disarm()
		}
		return "", ""
	case control.OpCommit:
		if code, text := k.decidable(req); code != "" {
			return code, text
		}
		if k.phase != control.Held {
			return control.CodeNotHeld, "the candidate is not READY"
		}
		if err := k.commit(); err != nil {
			return control.CodeFailed, err.Error()
		}
		return "", ""
	case control.OpAbort:
		if code, text := k.decidable(req); code != "" {
			return code, text
		}
		reason := req.Reason
		if reason == "" {
			reason = "asked over the control socket"
		}
		k.undo(journal.ReasonRequested, reason)
		return "", ""
	case control.OpExtend:
		if why := req.BadFor(); why != "" {
			return control.CodeBadRequest, why
		}
		if code, text := k.decidable(req); code != "" {
			return code, text
		}
		if k.phase != control.Held {
			return control.CodeNotHeld, "the candidate is not held"
		}
		k.extendHold(req.For)
		return "", ""
	case control.OpReclaim:
		return "", "" // this process never ceased to be the main one
	}
	return control.CodeBadRequest, fmt.Sprintf("unknown operation %q", req.Op)
}

// decidable reports why req may not decide about the handoff in progress.
func (k *keeper) decidable(req control.Request) (code, text string) {
	if !k.undecided() {
		return control.CodeNotHeld, "no handoff is waiting for a decision"
	}
	if req.TxID != "" && req.TxID != k.attempt.arm.TxID {
		return control.CodeTxID, fmt.Sprintf("the handoff in progress belongs to transaction %q", k.attempt.arm.TxID)
	}
	return "", ""
}

// arm prepares the next handoff. Who armed it may do so again, to add what
// systemd alone can say: the unit's environment and command of this moment.
func (k *keeper) arm(req control.Request) (code, text string) {
	a := req.Arm
	if why := a.Bad(); why != "" {
		return control.CodeBadRequest, why
	}
	if code, why := k.refuse(); why != "" {
		return code, why
	}
	if k.armed != nil && k.armed.TxID != a.TxID {
		return control.CodeBusy, fmt.Sprintf("armed for transaction %q", k.armed.TxID)
	}
	k.disarm()
	k.armed, k.armTimer = a, time.NewTimer(armTimeout)
	return "", ""
}

func (k *keeper) disarm() {
	if k.armTimer != nil {
		k.armTimer.Stop()
	}
	k.armed, k.armTimer = nil, nil
}
