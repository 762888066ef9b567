// Package hooks runs the programs that an administrator has put at the points of an upgrade. docs/hooks.md says
// where they lie, what they are told and what their verdict does.
package hooks
