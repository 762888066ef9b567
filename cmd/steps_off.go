//go:build !zdtsteps

package cmd

import "github.com/zdt-dev/zdt/upgrade"

// stepped is the store as it is. With the build tag zdtsteps, which only tests use, a transaction can be stopped in front
// of and behind each step that changes it.
func stepped(s upgrade.Store) upgrade.Store { return s }
