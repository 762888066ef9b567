// Package handoffcheck says before an upgrade whether it can work: findings
// with stable IDs, what was seen, why it matters and how to mend it.
//
// A [Check] is a value: its words, and a pure function that looks at [Facts]. Who asks gathers
// the facts, from systemd, the runtime and the host, and leaves out what cannot be
// found out; a check finds nothing in what is not known. [Catalog] has all of them, and the text of
// docs/checks.md and of "zdt explain" is theirs.
//
// The package is not promised to other programs.
package handoffcheck
