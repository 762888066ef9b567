package helper

import (
	"encoding/binary"
	"errors"
)

// orders are what the shim does: a program without its descriptors, which it has
// already. They travel from a zdt to itself, the same file, so that they need no
// version. Strings are bytes here: arguments need not be UTF-8.

func encodeOrders(p program) []byte {
	b := []byte{0}
	if p.IgnoreSIGPIPE {
		b[0] = 1
	}
	b = appendString(b, p.Path)
	b = appendString(b, p.Dir)
	b = appendStrings(b, p.Argv)
	return appendStrings(b, p.Env)
}

func appendString(b []byte, s string) []byte {
	return append(binary.LittleEndian.AppendUint32(b, uint32(len(s))), s...)
}

func appendStrings(b []byte, list []string) []byte {
	b = binary.LittleEndian.AppendUint32(b, uint32(len(list)))
	for _, s := range list {
		b = appendString(b, s)
	}
	return b
}

var errOrders = errors.New("not the orders of a zdt")

func decodeOrders(b []byte) (program, error) {
	if len(b) == 0 || b[0] > 1 {
		return program{}, errOrders
	}
	r := ordersReader{rest: b[1:]}
	p := program{IgnoreSIGPIPE: b[0] == 1, Path: r.string(), Dir: r.string(), Argv: r.strings(), Env: r.strings()}
	if r.broken || len(r.rest) > 0 {
		return program{}, errOrders
	}
	return p, nil
}

type ordersReader struct {
	rest   []byte
	broken bool
}

func (r *ordersReader) number() int {
	if len(r.rest) < 4 {
		r.broken = true
		return 0
	}
	n := binary.LittleEndian.Uint32(r.rest)
	r.rest = r.rest[4:]
	if uint64(n) > uint64(len(r.rest)) { // an element has four bytes, a byte has one
		r.broken = true
		return 0
	}
	return int(n)
}

func (r *ordersReader) string() string {
	n := r.number()
	s := string(r.rest[:n])
	r.rest = r.rest[n:]
	return s
}

func (r *ordersReader) strings() []string {
	var list []string
	for range r.number() {
		if list = append(list, r.string()); r.broken {
			return nil
		}
	}
	return list
}
