// Package cmd is zdt's command line: one file a command, rendering and exit codes.
package cmd

// Main runs zdt with args (without the program's name) and returns its exit code.
func Main(args []string) int { return 1 }
