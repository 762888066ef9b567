// Package upgrade is the transaction behind "zdt upgrade":
//
//	preflight → stage → trigger → listen → bake → commit → drain → exit → record
//
// It decides from four sources: the runtime's control socket, pidfds, systemd's
// view of the unit, and — for the story and for diagnosis only — the journal.
// A write-ahead record precedes every step, and "current" is flipped only when
// systemd has the candidate as its main process, so that whatever is killed at
// whatever moment, the unit starts a release that was committed.
//
// The package talks to systemd, to the runtime and to the store through the
// small interfaces it declares, and returns one Report. It is not promised to
// other programs.
package upgrade
