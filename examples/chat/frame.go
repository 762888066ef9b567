package main

import (
	"encoding/binary"
	"fmt"
	"slices"
	"unicode/utf8"
)

// This file is the data framing of WebSocket, RFC 6455 §5, as pure functions.
// It knows no connection: bytes come in as they come, and what is not yet a
// whole frame stays with the caller. That is what makes a move at any byte easy,
// since the caller can tell at all times which bytes it has not used.

// opcode says what a frame is.
type opcode byte

const (
	opContinuation opcode = 0x0
	opText         opcode = 0x1
	opBinary       opcode = 0x2
	opClose        opcode = 0x8
	opPing         opcode = 0x9
	opPong         opcode = 0xA
)

// control reports whether the frame is about the connection and not part of a
// message. Control frames may come between the fragments of a message.
func (o opcode) control() bool { return o&0x8 != 0 }

// Why a WebSocket ends, RFC 6455 §7.4.1.
const (
	closeGoingAway   = 1001
	closeProtocol    = 1002
	closeUnsupported = 1003
	closeNoCode      = 1005 // never sent: stands for a close frame without a code
	closeInvalidText = 1007
	closePolicy      = 1008
	closeTooBig      = 1009
	closeInternal    = 1011
)

// closeError ends a WebSocket with a close frame that says so.
type closeError struct {
	code int
	why  string
}

func (e *closeError) Error() string { return fmt.Sprintf("close %d: %s", e.code, e.why) }

// frame is a frame from a client, unmasked.
type frame struct {
	final   bool // the last one of its message
	op      opcode
	payload []byte
}

// parseFrame takes the first frame from b. n is its length in b, or 0 while b
// holds only the beginning of one. The payload is a copy; b is not changed. What
// is wrong with a frame is told as soon as its header shows it: a payload over
// limit is never waited for.
func parseFrame(b []byte, limit int) (f frame, n int, err error) {
	if len(b) < 2 {
		return frame{}, 0, nil
	}
	f.final, f.op = b[0]&0x80 != 0, opcode(b[0]&0x0f)
	size := int(b[1] & 0x7f)
	switch {
	case b[0]&0x70 != 0:
		return frame{}, 0, &closeError{closeProtocol, "reserved bits without an extension"}
	case f.op > opBinary && f.op < opClose || f.op > opPong:
		return frame{}, 0, &closeError{closeProtocol, fmt.Sprintf("unknown opcode %#x", byte(f.op))}
	case b[1]&0x80 == 0:
		return frame{}, 0, &closeError{closeProtocol, "a client's frame has to be masked"}
	case f.op.control() && (!f.final || size > 125):
		return frame{}, 0, &closeError{closeProtocol, "a control frame is whole and has 125 bytes at most"}
	}
	rest := b[2:]
	switch size {
	case 126:
		if len(rest) < 2 {
			return frame{}, 0, nil
		}
		size, rest = int(binary.BigEndian.Uint16(rest)), rest[2:]
		if size < 126 {
			return frame{}, 0, &closeError{closeProtocol, "a length in more bytes than it needs"}
		}
	case 127:
		if len(rest) < 8 {
			return frame{}, 0, nil
		}
		size64 := binary.BigEndian.Uint64(rest)
		rest = rest[8:]
		switch {
		case size64 <= 0xffff || size64 > 1<<63-1:
			return frame{}, 0, &closeError{closeProtocol, "a length in more bytes than it needs, or negative"}
		case size64 > uint64(limit):
			size = limit + 1 // refused below, and an int on every machine
		default:
			size = int(size64)
		}
	}
	if size > limit {
		return frame{}, 0, &closeError{closeTooBig, fmt.Sprintf("more than %d bytes", limit)}
	}
	if len(rest) < 4+size {
		return frame{}, 0, nil
	}
	mask := rest[:4]
	f.payload = slices.Clone(rest[4 : 4+size])
	for i := range f.payload {
		f.payload[i] ^= mask[i%4]
	}
	return f, len(b) - len(rest) + 4 + size, nil
}

// appendFrame appends a whole message of a server, which does not mask.
func appendFrame(b []byte, op opcode, payload []byte) []byte {
	b = append(b, 0x80|byte(op))
	switch size := len(payload); {
	case size < 126:
		b = append(b, byte(size))
	case size <= 0xffff:
		b = binary.BigEndian.AppendUint16(append(b, 126), uint16(size))
	default:
		b = binary.BigEndian.AppendUint64(append(b, 127), uint64(size))
	}
	return append(b, payload...)
}

// closePayload is what a close frame carries. The reason is cut to what a
// control frame holds.
func closePayload(code int, why string) []byte {
	if code == closeNoCode {
		return nil
	}
	b := binary.BigEndian.AppendUint16(nil, uint16(code))
	for _, r := range why {
		if len(b)+utf8.RuneLen(r) > 125 {
			break
		}
		b = utf8.AppendRune(b, r)
	}
	return b
}

// parseClose returns the code with which the client closes, closeNoCode for none.
func parseClose(payload []byte) (code int, err error) {
	if len(payload) == 0 {
		return closeNoCode, nil
	}
	if len(payload) == 1 {
		return 0, &closeError{closeProtocol, "half a close code"}
	}
	code = int(binary.BigEndian.Uint16(payload))
	// 1004–1006 and 1015 stand for things that no frame says (RFC 6455 §7.4.1;
	// 1012–1014 were registered later).
	valid := code >= 1000 && code <= 1003 || code >= 1007 && code <= 1014 || code >= 3000 && code <= 4999
	switch {
	case !valid:
		return 0, &closeError{closeProtocol, fmt.Sprintf("close code %d", code)}
	case !utf8.Valid(payload[2:]):
		return 0, &closeError{closeInvalidText, "the reason is not UTF-8"}
	}
	return code, nil
}

// assembly is a message of which only some fragments have come: nil between two
// messages, empty and not nil after an empty first fragment (JSON keeps the two
// apart). It is part of the session: each fragment is processed when it comes, so that
// a ping between two of them can be answered at once.
type assembly []byte

// add takes a frame that is no control frame. message is nil while the message
// is not complete.
func (a *assembly) add(f frame, limit int) (message []byte, err error) {
	switch {
	case f.op == opBinary:
		return nil, &closeError{closeUnsupported, "only text here"}
	case f.op == opText && *a != nil:
		return nil, &closeError{closeProtocol, "a new message within another"}
	case f.op == opContinuation && *a == nil:
		return nil, &closeError{closeProtocol, "a continuation of nothing"}
	case len(*a)+len(f.payload) > limit:
		return nil, &closeError{closeTooBig, fmt.Sprintf("more than %d bytes", limit)}
	}
	whole := append(*a, f.payload...)
	if whole == nil {
		whole = []byte{}
	}
	if !f.final {
		*a = whole
		return nil, nil
	}
	*a = nil
	if !utf8.Valid(whole) {
		return nil, &closeError{closeInvalidText, "the text is not UTF-8"}
	}
	return whole, nil
}
