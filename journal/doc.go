// Package journal is zdt's side of systemd-journald: it defines the events of
// a handoff, writes them over journald's native protocol, and reads them back
// from the export stream of journalctl.
//
// The journal is the narrative of an upgrade, never its judge. journald rate
// limits, drops, restarts and may be absent; whoever decides about an upgrade
// looks at pidfds, the control socket and systemd's properties, and shows the
// operator what the journal says.
//
// # Who says what
//
// Every event carries ZDT_PID, the process it is about, and (where there is
// one) ZDT_PEER_PID, the other process of the handoff.
//
//	event      ZDT_PID      ZDT_PEER_PID   written by
//	fork       incumbent    candidate      the incumbent (ZDT_PID)
//	listen     candidate    incumbent      either of the two
//	drain      incumbent    candidate      the incumbent (ZDT_PID)
//	exit       the ended    its peer       the ended one as its last act, or the peer that watched it die
//	abort      incumbent    candidate      the incumbent (ZDT_PID)
//	upgrade-*  zdt          -              zdt (ZDT_PID), outside of the service's unit
//
// A reader believes an event only if journald's own fields, the ones that
// start with an underscore and that no client can set, agree with this table:
// see [Trusted].
//
// The package imports nothing but the standard library, because the handoff
// library imports it and promises applications no third-party code.
package journal
