package cmd

import (
	"cmp"
	"context"
	"fmt"
	"runtime"
	"runtime/debug"

	"github.com/spf13/cobra"

	"github.com/zdt-dev/zdt/handoff"
	"github.com/zdt-dev/zdt/handoff/control"
)

// Set by the linker (-X); constants to everybody else. What is empty comes
// from the build information that Go puts into every binary.
var (
	linkedVersion string
	linkedCommit  string
	linkedDate    string
)

// versionDoc is what zdt says of itself.
type versionDoc struct {
	Schema   string `json:"schema"` // zdt.version/1
	Version  string `json:"version"`
	Commit   string `json:"commit,omitempty"`
	Modified bool   `json:"modified,omitempty"` // built from a tree with local changes
	Date     string `json:"date,omitempty"`     // of the build, else of the commit
	Go       string `json:"go"`
	Platform string `json:"platform"`
	// Control is the version of the control socket's protocol.
	Control int `json:"control_protocol"`
	// Wire is the version of the protocol between two generations.
	Wire int `json:"wire_protocol"`
}

func newVersionCmd(f *factory) *cobra.Command {
	cmd := &cobra.Command{
		Use:     "version",
		Short:   "Print zdt's version and the protocols it speaks",
		Example: "  zdt version\n  zdt version -o json",
		Args:    arguments(0, 0, ""),
	}
	return f.command(cmd, func(ctx context.Context, args []string) error {
		info, _ := debug.ReadBuildInfo()
		return runVersion(f, buildVersion(info))
	}, ExitOK, ExitUsage)
}

// buildVersion puts the linker's values before Go's. info may be nil.
func buildVersion(info *debug.BuildInfo) versionDoc {
	v := versionDoc{
		Schema: "zdt.version/1", Version: linkedVersion, Commit: linkedCommit, Date: linkedDate,
		Go: runtime.Version(), Platform: runtime.GOOS + "/" + runtime.GOARCH, Control: control.Version, Wire: handoff.WireVersion,
	}
	if info != nil {
		v.Version = cmp.Or(v.Version, info.Main.Version)
		v.Go = cmp.Or(info.GoVersion, v.Go)
		for _, s := range info.Settings {
			switch s.Key {
			case "vcs.revision":
				v.Commit = cmp.Or(v.Commit, s.Value)
			case "vcs.time":
				v.Date = cmp.Or(v.Date, s.Value)
			case "vcs.modified":
				v.Modified = s.Value == "true"
			}
		}
	}
	v.Version = cmp.Or(v.Version, "(devel)")
	return v
}

func runVersion(f *factory, v versionDoc) error {
	if f.globals.output != outputText {
		return f.print(v)
	}
	commit := cmp.Or(v.Commit, "unknown")
	if v.Modified {
		commit += " (modified)"
	}
	_, err := fmt.Fprintf(f.Out, "zdt %s\ncommit    %s\nbuilt     %s\ngo        %s %s\nprotocol  control %d, wire %d\n",
		v.Version, commit, cmp.Or(v.Date, "unknown"), v.Go, v.Platform, v.Control, v.Wire)
	return err
}
