package fdstore

import (
	"fmt"
	"strings"

	"github.com/zdt-dev/zdt/internal/netfd"
)

// Wish is a socket that is to be found, and the name that the next program finds it by.
type Wish struct {
	Name    string // as FDNAME= has it
	Network string // tcp or udp
	Address string // as package net writes it
}

// String is NAME=NETWORK:ADDRESS, which ParseWish reads.
func (w Wish) String() string { return w.Name + "=" + w.Network + ":" + w.Address }

// ParseWish reads what String writes. Sockets of the file system are no wish: the program that made one most often
// unlinks its file when it ends, and nobody finds the socket any more.
func ParseWish(text string) (Wish, error) {
	name, rest, _ := strings.Cut(text, "=")
	network, address, ok := strings.Cut(rest, ":")
	if !ok || name == "" || address == "" || strings.ContainsAny(name, ": \n") {
		return Wish{}, fmt.Errorf("%q is not NAME=NETWORK:ADDRESS", text)
	}
	if network != "tcp" && network != "udp" {
		return Wish{}, fmt.Errorf("%q: only sockets of tcp and udp outlive the program that made them", text)
	}
	return Wish{Name: name, Network: network, Address: address}, nil
}

// fits reports whether a socket is the one that was wished for, by the very address: 0.0.0.0 and [::] are two sockets of one
// program.
func (w Wish) fits(network, address string) bool {
	return netfd.SameKind(network, w.Network) && address == w.Address
}
