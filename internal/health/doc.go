// Package health asks the gates of an upgrade: the checks that a new process has to pass before it becomes the service,
// and to go on passing while it is on probation.
//
// A [Gate] is a value, read from one line. A [Prober] asks gates about a [Candidate] until the context ends; the
// [Watch] tells when all have passed, and when one has failed. Every try is counted, and told.
package health
