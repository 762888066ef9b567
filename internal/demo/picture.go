package main

import (
	"fmt"
	"os"
	"strings"

	"github.com/zdt-dev/zdt/internal/termsvg"
)

// writePicture renders the two upgrades: the last frame of the live display, then what it collapses to.
func (d *demo) writePicture(path string) error {
	var all termsvg.Screen
	var lines []termsvg.Line
	for i, c := range d.upgrades {
		s := termsvg.Screen{Columns: d.columns}
		if err := s.Feed(c.output); err != nil {
			return fmt.Errorf("draw the output of %s: %w", c.line, err)
		}
		if i > 0 {
			lines = append(lines, nil)
		}
		var prompt termsvg.Screen
		if err := prompt.Feed("\x1b[2m#\x1b[0m \x1b[1m" + c.line + "\x1b[0m"); err != nil {
			return err
		}
		lines = append(lines, prompt.Lines()...)
		if i == 0 { // of the bad one the words at the end matter
			lines = append(lines, s.Erased()...)
		}
		lines = append(lines, s.Lines()...)
	}
	if err := all.Feed("\x1b[2m#\x1b[0m \x1b[1mecho $?\x1b[0m\n11"); err != nil {
		return err
	}
	lines = append(lines, all.Lines()...)
	var b strings.Builder
	title := "A terminal: zdt upgrade replaces hello v1 by v2; an upgrade to a broken v3 is rolled back with exit status 11"
	if err := termsvg.WriteSVG(&b, title, lines); err != nil {
		return err
	}
	return os.WriteFile(path, []byte(b.String()), 0o644)
}
