// Package release keeps on disk what an upgrade must not lose: the immutable
// releases of one service, the link to the committed one, the history, and
// the write-ahead record of the upgrade that is under way.
//
//	/var/lib/zdt/NAME/                         0755, root (or the user, for user services)
//	    releases/<utc>-<sha12>/<program>       0555, never changed once it has this name
//	    releases/<utc>-<sha12>/…               the other files of a release that is a directory: 0555 or 0444
//	    releases/<utc>-<sha12>/release.json    what it is, where it came from, who signed it
//	    releases/<utc>-<sha12>/release.manifest   of a directory: every file with its SHA-256
//	    releases/<utc>-<sha12>/release.{failed,pinned}   marks, absent otherwise
//	    current -> releases/<utc>-<sha12>      the committed release
//	    txn.json                               the open upgrade; absent when there is none
//	    history.ndjson                         one line for each finished upgrade
//	    .lock                                  taken for the moment in which releases/ changes
//	/run/lock/zdt/NAME.lock                    one upgrade at a time, see [Acquire]
//
// # What it promises
//
// Every change is one rename, made durable before the call returns: after a
// kill -9 or a power cut at any point the store holds the state before or the
// state after, plus at most temporary files which a later call removes.
//
// # Whom it trusts
//
// zdt runs as root beside a service user who may be hostile. Directories are
// entered element by element, each one checked to belong to root or to the
// caller and to be writable for nobody else; from then on everything happens
// relative to that directory's descriptor, with O_NOFOLLOW. That gives what
// openat2(2) with RESOLVE_NO_SYMLINKS gives, checks every element on the way,
// and also works where a seccomp filter hides openat2.
//
// # What it does not do
//
// It does not decide anything: which release to run, when to flip, what an
// outcome means is up to package upgrade. The verbs that belong to an upgrade
// (Flip, WriteTxn, ClearTxn, AppendHistory, MarkFailed, Prune) expect that the caller holds
// the service's lock; reading needs no lock.
package release
