package cmd

import (
	"io"
	"os"
	"strings"

	"golang.org/x/term"
)

// Streams are the three standard streams and what is known about their other
// ends. Data goes to Out, everything a person is told on the way to Err.
type Streams struct {
	In  io.Reader
	Out io.Writer
	Err io.Writer

	OutTTY bool // Out is a terminal
	ErrTTY bool
	// Dumb means that the terminal cannot move its cursor (TERM=dumb or unset).
	Dumb bool
	// Color says whether colours are wanted; each stream also has to be a terminal.
	Color bool
	// UTF8 says whether the locale can show more than ASCII.
	UTF8 bool
	// Width returns the terminal's columns at this moment; 80 where there is none.
	Width func() int
}

// SystemStreams are the process's own.
func SystemStreams() Streams {
	s := Streams{
		In: os.Stdin, Out: os.Stdout, Err: os.Stderr,
		OutTTY: term.IsTerminal(int(os.Stdout.Fd())), ErrTTY: term.IsTerminal(int(os.Stderr.Fd())),
		Dumb:  os.Getenv("TERM") == "dumb" || os.Getenv("TERM") == "",
		UTF8:  localeUTF8(os.Getenv),
		Width: terminalWidth,
	}
	s.Color = !s.Dumb && os.Getenv("NO_COLOR") == ""
	return s
}

// localeUTF8 looks at the variables in the order setlocale(3) gives them.
func localeUTF8(getenv func(string) string) bool {
	for _, name := range []string{"LC_ALL", "LC_CTYPE", "LANG"} {
		if v := strings.ToLower(getenv(name)); v != "" {
			return strings.Contains(v, "utf-8") || strings.Contains(v, "utf8")
		}
	}
	return false
}

func terminalWidth() int {
	for _, f := range []*os.File{os.Stderr, os.Stdout} {
		if w, _, err := term.GetSize(int(f.Fd())); err == nil && w > 0 {
			return w
		}
	}
	return 80
}

// outStyle and errStyle are the styles for the two streams.
func (s Streams) outStyle() style { return newStyle(s.Out, s.Color && s.OutTTY, s.UTF8) }

func (s Streams) errStyle() style { return newStyle(s.Err, s.Color && s.ErrTTY, s.UTF8) }

// live says whether Err can show something that is redrawn.
func (s Streams) live() bool { return s.ErrTTY && !s.Dumb }
