// Package netfd handles sockets as descriptors: what the kernel says of one,
// net values over one, and binding one that others will inherit.
//
// The sockets here are shared with other processes. O_NONBLOCK and the file of
// a unix socket belong to all who share one, so nothing here changes the one or
// removes the other by accident, as package net would.
package netfd

import (
	"net"
	"os"
	"strings"
)

// From builds a net value over a duplicate of fd, with net.FileListener or its
// kin; fd stays the caller's.
func From[T any](fd int, build func(*os.File) (T, error)) (T, error) {
	f, err := file(fd)
	if err != nil {
		var zero T
		return zero, err
	}
	defer f.Close()
	return build(f)
}

// SameKind reports whether a socket of the network have is what one asks for
// with want: the kernel knows no tcp4.
func SameKind(have, want string) bool { return have == strings.TrimRight(want, "46") }

// SameAddress compares what a socket is bound to with what a program asked
// for; ":80", "0.0.0.0:80" and "[::]:80" are the same wish.
func SameAddress(have, want string) bool {
	if have == want {
		return true
	}
	haveHost, havePort, err1 := net.SplitHostPort(have)
	wantHost, wantPort, err2 := net.SplitHostPort(want)
	if err1 != nil || err2 != nil || havePort != wantPort {
		return false
	}
	any := func(host string) bool { return host == "" || host == "0.0.0.0" || host == "::" }
	return haveHost == wantHost || any(haveHost) && any(wantHost)
}
