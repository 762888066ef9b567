// Package helper is "zdt run": it gives a program in any language the upgrade
// that package handoff gives a program in Go.
//
// The helper is the unit's main process and stays it for ever. It holds the
// sockets and starts the program as a process group, one group a generation. At
// a handoff it starts the next group beside the one that serves, waits until that is
// ready, tells the old one to stop in its own way, and waits until it is gone.
// To the outside, the control socket, the journal and zdt upgrade, it looks like a
// program that hands over by itself, but for its process, which does not change.
package helper
