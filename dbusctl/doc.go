// Package dbusctl speaks to systemd over D-Bus: it reads and watches units,
// runs jobs and waits for their results, signals a unit's main process, and
// enables, disables and reloads unit files.
//
// A [Manager] is one connection. It is opened with [Dial], is safe for use by
// several goroutines, and lives until [Manager.Close] or until the bus goes
// away; [Manager.Done] and [Manager.Err] tell. The context given to a method
// bounds that call alone: cancelling it never harms the connection, so that
// cleanup after an interrupt can use the same Manager. A lost connection is
// not replaced: what happened meanwhile is unknown, so the caller has to dial
// and look again.
//
// What it promises beyond a thin wrapper:
//
//   - A job's result is waited for without a window in which it could be
//     missed, also when systemd announces it before it answers the request.
//   - A daemon-reexec does not end a watch or a wait: systemd then leaves the
//     bus for a moment and comes back under another unique name.
//   - Only signals that the bus attributes to the owner of
//     org.freedesktop.systemd1 count. Any local process may send a signal that
//     looks like a JobRemoved straight to our unique name; the stock policy of
//     the system bus lets it through.
//   - Errors say what failed, what systemd answered and what to do next; see
//     [Error].
//
// No type of the D-Bus library shows in the exported API.
package dbusctl
