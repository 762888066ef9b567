package handoff

import (
	"fmt"
	"time"

	"github.com/zdt-dev/zdt/handoff/control"
	"github.com/zdt-dev/zdt/journal"
)

// openControl takes the inherited control socket over (fd ≥ 0, owned here also
// when it fails) or binds it.
func openControl(h *Handoff, fd int) (*control.Server, error) {
	r := control.Runtime{
		Answer: func(req control.Request) control.Response {
			resp := control.Response{Code: control.CodeNotReady, Error: "this generation is done"}
			h.do(func(m *machine) { resp = m.answer(req) })
			return resp
		},
		Watch: func(updates chan control.Status) (stop func(), ok bool) {
			if !h.do(func(m *machine) { m.watchers[updates] = struct{}{} }) {
				return nil, false
			}
			return func() { h.do(func(m *machine) { delete(m.watchers, updates) }) }, true
		},
	}
	if fd >= 0 {
		return control.Adopt(fd, h.opt.ControlSocket, r)
	}
	return control.Listen(h.opt.ControlSocket, r)
}

// answer carries a request out, on the deciding goroutine.
func (m *machine) answer(req control.Request) control.Response {
	code, text := m.carryOut(req)
	s := m.status()
	return control.Response{Code: code, Error: text, Status: &s}
}

func (m *machine) carryOut(req control.Request) (code, text string) {
	switch req.Op {
	case control.OpStatus:
		return "", ""
	case control.OpArm:
		return m.arm(req)
	case control.OpDisarm:
		if m.armed != nil && m.armed.TxID == req.TxID {
			m.disarm()
		}
		return "", ""
	case control.OpCommit:
		if code, text := m.decidable(req); code != "" {
			return code, text
		}
		if m.phase != control.Held {
			return control.CodeNotHeld, "the candidate is not READY"
		}
		if err := m.commit(); err != nil {
			return control.CodeFailed, err.Error()
		}
		return "", ""
	case control.OpAbort:
		if code, text := m.decidable(req); code != "" {
			return code, text
		}
		reason := req.Reason
		if reason == "" {
			reason = "asked over the control socket"
		}
		if m.undecided() {
			m.undo(journal.ReasonRequested, reason)
		}
		return "", ""
	case control.OpExtend:
		if why := req.BadFor(); why != "" {
			return control.CodeBadRequest, why
		}
		if code, text := m.decidable(req); code != "" {
			return code, text
		}
		if m.phase != control.Held || m.attempt.gone {
			return control.CodeNotHeld, "the candidate is not held"
		}
		m.attempt.setDeadline(req.For)
		return "", ""
	case control.OpReclaim:
		if m.phase != control.Idle {
			return control.CodeNotReady, "this generation is not the service"
		}
		if err := m.reclaim(); err != nil {
			return control.CodeFailed, err.Error()
		}
		return "", ""
	}
	return control.CodeBadRequest, fmt.Sprintf("unknown operation %q", req.Op)
}

// decidable reports why req may not decide about the handoff in progress.
func (m *machine) decidable(req control.Request) (code, text string) {
	if m.attempt == nil || m.attempt.committed {
		return control.CodeNotHeld, "no handoff is waiting for a decision"
	}
	if req.TxID != "" && req.TxID != m.attempt.arm.TxID {
		return control.CodeTxID, fmt.Sprintf("the handoff in progress belongs to transaction %q", m.attempt.arm.TxID)
	}
	return "", ""
}

func (m *machine) arm(req control.Request) (code, text string) {
	a := req.Arm
	if why := a.Bad(); why != "" {
		return control.CodeBadRequest, why
	}
	if code, why := m.refuse(); why != "" {
		return code, why
	}
	if m.armed != nil && m.armed.TxID != a.TxID {
		return control.CodeBusy, fmt.Sprintf("armed for transaction %q", m.armed.TxID)
	}
	m.disarm()
	m.armed, m.armTimer = a, time.NewTimer(armTimeout)
	return "", ""
}

func (m *machine) disarm() {
	if m.armTimer != nil {
		m.armTimer.Stop()
	}
	m.armed, m.armTimer = nil, nil
}
