//go:build !linux

package handoff

import "errors"

type watch struct{}

func newWatch() (*watch, error) { return nil, errors.ErrUnsupported }

type ticket struct{}

func (*watch) add(int, func()) (ticket, error) { return ticket{}, errors.ErrUnsupported }

func (*watch) remove(ticket) bool { return false }

func (*watch) close() {}
