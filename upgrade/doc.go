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
// No verdict is guessed. "Upgraded" means that the candidate was seen as
// systemd's main process, alive, and answering as such; "rolled back" means the
// same of a process that runs the old release. When neither can be shown the
// verdict is "not restored".
//
// The package talks to systemd, to the runtime and to the store through the
// seams it declares (Host, Store), and returns one Report. It is not promised
// to other programs.
package upgrade
