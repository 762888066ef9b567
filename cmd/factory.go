package cmd

import (
	"context"
	"errors"
	"io"
	"os"
	"syscall"
	"time"

	"github.com/zdt-dev/zdt/dbusctl"
	"github.com/zdt-dev/zdt/handoff/control"
)

// systemd is what commands ask of systemd. *dbusctl.Manager is one.
type systemd interface {
	Version(ctx context.Context) (int, string, error)
	Unit(ctx context.Context, name string) (dbusctl.Unit, error)
	Properties(ctx context.Context, name string) (map[string]any, error)
	Watch(ctx context.Context, name string) (<-chan dbusctl.Unit, error)
	DaemonReload(ctx context.Context) error
	Enable(ctx context.Context, runtime bool, units ...string) error
	Disable(ctx context.Context, runtime bool, units ...string) error
	Start(ctx context.Context, name string) error
	Stop(ctx context.Context, name string) error
	Reload(ctx context.Context, name string) error
	Restart(ctx context.Context, name string) error
	ResetFailed(ctx context.Context, name string) error
	Signal(ctx context.Context, name string, sig syscall.Signal) error
	StartTransient(ctx context.Context, u dbusctl.TransientUnit) error
	End(ctx context.Context, name string) (dbusctl.Unit, error)
	Close() error
}

// globals are the flags every command has.
type globals struct {
	output  output
	user    bool
	noColor bool
	quiet   bool
	root    string
}

// output is the form in which a command prints its result.
type output string

const (
	outputText   output = "text"
	outputJSON   output = "json"   // one document, at the end
	outputNDJSON output = "ndjson" // one document a line, as things happen
)

// Set is how the flag -o is read.
func (o *output) Set(s string) error {
	switch v := output(s); v {
	case outputText, outputJSON, outputNDJSON:
		*o = v
		return nil
	}
	return errors.New("use text, json or ndjson")
}

func (o *output) String() string { return string(*o) }

// Type names the flag's value in --help.
func (o *output) Type() string { return "FORM" }

// factory is everything a command reaches besides its own flags. Functions,
// so that --help opens no connection and tests put in what they need.
type factory struct {
	Streams
	globals globals
	getenv  func(string) string
	euid    int
	now     func() time.Time

	executable  func() (string, error) // the running zdt
	dialSystemd func(ctx context.Context, user bool) (systemd, error)
	dialControl func(ctx context.Context, path string) (*control.Client, error)
	journalctl  []string // nil: the one in PATH

	events io.Writer // of --events-fd; nil: nobody asked for it

	args []string // the command line
	// ran is set when a command's own code began: whatever failed before is
	// about the command line.
	ran bool
}

// newFactory is the factory of the real zdt.
func newFactory(s Streams) *factory {
	return &factory{
		Streams: s, globals: globals{output: outputText},
		getenv: os.Getenv, euid: os.Geteuid(), now: time.Now, executable: os.Executable,
		dialSystemd: func(ctx context.Context, user bool) (systemd, error) {
			m, err := dbusctl.Dial(ctx, dbusctl.Options{User: user})
			if err != nil {
				return nil, err // not m: a nil pointer in an interface is not nil
			}
			return m, nil
		},
		dialControl: control.Dial,
	}
}

func (f *factory) paths() (Paths, error) {
	if f.globals.user {
		return userPaths(f.getenv, f.euid)
	}
	return systemPaths(f.globals.root), nil
}

// systemctl is the command as an operator types it for the same manager.
func (f *factory) systemctl() string {
	if f.globals.user {
		return "systemctl --user"
	}
	return "systemctl"
}

// zdt is zdt as an operator types it for the same manager.
func (f *factory) zdt() string {
	if f.globals.user {
		return "zdt --user"
	}
	return "zdt"
}

// journal is the command that shows a unit's journal.
func (f *factory) journal(unit string) string {
	if f.globals.user {
		return "journalctl --user -e -u " + unit
	}
	return "journalctl -e -u " + unit
}
