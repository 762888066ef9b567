// Package control is the control socket of a zdt runtime: what a runtime says
// of itself and what an operator may ask of it.
//
// A runtime (the handoff library inside a Go program, or the helper "zdt run")
// listens on a unix stream socket, by default control.sock in its runtime
// directory. Each request and each response is one JSON document on one line.
// A connection carries any number of requests, one at a time; after "watch" it
// carries nothing but statuses, one at every change, until the runtime exits.
//
// The runtime answers root and its own uid (SO_PEERCRED) and nobody else. The
// socket outlives a generation: it is handed over with the listening sockets,
// so a client that connects during a handoff is answered by one of the two
// generations and never refused.
//
// The field names are stable and fields are only ever added; docs/protocol.md
// describes the whole.
package control
