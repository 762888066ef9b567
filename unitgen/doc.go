// Package unitgen turns a Spec into the unit files of a service, compares them
// with the files a host has, and reads back what operators wrote into them.
//
// It is pure: it reads and writes no file and starts no process. Generate
// returns what should be there, Diff says what would change, Inspect tells
// whether a file is zdt's own and still as zdt wrote it, ParsePolicy reads the
// [X-Zdt] sections of a unit and its drop-ins. Somebody else decides and acts.
//
// Everything that goes into a unit is either quoted so that systemd reads back
// exactly what was put in, or refused by Spec.Validate with an *InputError.
//
// This package is internal to zdt; its API is not stable.
package unitgen
