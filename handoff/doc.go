// Package handoff lets a service replace its own program without its clients
// noticing.
//
//	h, err := handoff.Open(handoff.Options{})
//	ln, err := h.Listen("http", "tcp", ":8080")
//	err = h.Serve(&http.Server{Handler: mux}, ln)
//
// The same three lines work under systemd with socket units, started by hand,
// and in the successor of a handoff.
//
// # What happens
//
// On SIGUSR2 the running process, the incumbent, forks and executes its
// successor, the candidate, and passes it every listening socket by name. When
// the candidate says READY it accepts, and the incumbent stops accepting but
// keeps its listeners and its connections. Then the handoff is committed: by the
// incumbent itself, or, when "zdt upgrade" armed it, by whoever decides over
// the control socket. The incumbent makes the candidate systemd's main
// process, drains and exits. Before the commit every failure — the candidate
// crashes, hangs, exits, is aborted by SIGUSR1 — ends the candidate, and the
// incumbent accepts again as if nothing had been.
//
// # Connections
//
// The incumbent hands its established connections over too, each at a moment
// when its client cannot tell: HTTP/1 served by [Handoff.Serve] between two requests,
// protocols of the program's own between two messages ([Handoff.Track]). A
// connection has exactly one owner; the sender lets go when the receiver has
// acknowledged it. An aborted candidate gives back what it has accepted. TLS and
// HTTP/2 cannot move and are closed politely. docs/protocol.md has the rules.
//
// # Sockets
//
// A socket has one registry descriptor in each generation, owned by the
// Handoff, and one more owned by the Listener or PacketConn over it. Both are
// close-on-exec. O_NONBLOCK of a socket, which all generations share, is never
// changed once it is set.
//
// # Promise
//
// This package is the one part of zdt promised to other programs. It depends
// on the standard library, golang.org/x/sys and zdt's own journal package, which
// depends on nothing. It builds on every GOOS; elsewhere than on Linux it
// listens and drains and refuses handoffs.
package handoff
