package cmd

import (
	"fmt"
	"os"
	"strconv"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/zdt-dev/zdt/upgrade"
)

// --events-fd: a program that runs zdt gets what happens as it happens, one document a line, over a descriptor that it has
// opened; stdout and stderr stay as they are for people.

// eventsFlag is the number of an open descriptor.
type eventsFlag struct{ f *factory }

// Set takes the descriptor over. Programs that zdt starts do not get it.
func (e eventsFlag) Set(s string) error {
	fd, err := strconv.Atoi(s)
	if err != nil || fd < 1 {
		return fmt.Errorf("give the number of an open descriptor, such as 3")
	}
	flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFL, 0)
	switch {
	case err != nil:
		return fmt.Errorf("descriptor %d is not open", fd)
	case flags&unix.O_ACCMODE == unix.O_RDONLY:
		return fmt.Errorf("descriptor %d cannot be written to", fd)
	}
	if fd > 2 {
		unix.CloseOnExec(fd)
	}
	e.f.events = os.NewFile(uintptr(fd), "events")
	return nil
}

func (e eventsFlag) String() string { return "" }

// Type names the flag's value in --help.
func (e eventsFlag) Type() string { return "N" }

// withEvents gives a command that carries a transaction out the flag.
func (f *factory) withEvents(cmd *cobra.Command) {
	cmd.Flags().Var(eventsFlag{f}, "events-fd", "write what happens to the open descriptor N, one JSON document a line")
}

// tellEvents writes a document for whoever listens; that nobody does any more stops nothing.
func (f *factory) tellEvents(doc any) {
	if f.events != nil {
		printJSON(f.events, doc, false)
	}
}

// bothViews show updates in two ways.
type bothViews struct{ a, b view }

func (v bothViews) update(u upgrade.Update) { v.a.update(u); v.b.update(u) }
func (v bothViews) tick(now time.Time)      { v.a.tick(now); v.b.tick(now) }
func (v bothViews) done()                   { v.a.done(); v.b.done() }
