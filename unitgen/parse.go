package unitgen

import (
	"fmt"
	"strings"
	"unicode/utf8"
)

// A setting is one "Key=Value" of a unit file.
type setting struct {
	section string
	key     string
	value   string
	line    int // where it begins, from 1
}

// parseUnit reads unit file text as systemd 252 to 257 do (conf-parser.c):
// lines end with LF, CR or NUL; a line whose last character is a backslash
// that is not itself escaped goes on in the next one, over comments in
// between; comments begin with # or ; and stand alone. An "=" may be followed
// by anything, so nothing but a broken section header or a line without "=" is
// an error; systemd ignores the latter with a warning, here it is reported.
func parseUnit(data []byte) ([]setting, error) {
	var (
		all     []setting
		section string
		pending string // lines that were continued so far
		start   int
	)
	text := strings.TrimPrefix(string(data), "\ufeff")
	text = strings.NewReplacer("\r\n", "\n", "\r", "\n", "\x00", "\n").Replace(text)
	lines := strings.Split(text, "\n")
	for i, line := range lines {
		bare := strings.TrimLeft(line, " \t")
		if bare != "" && (bare[0] == '#' || bare[0] == ';') {
			if i < len(lines)-1 || pending == "" {
				continue
			}
			line = ""
		}
		if pending == "" {
			start = i + 1
		}
		full := pending + line
		pending = ""
		if continues(full) {
			full = full[:len(full)-1] + " "
			if i < len(lines)-1 {
				pending = full
				continue
			}
		}
		full = strings.Trim(full, " \t")
		if full == "" {
			continue
		}
		if !utf8.ValidString(full) {
			return nil, fmt.Errorf("line %d: not UTF-8", start)
		}
		if full[0] == '[' {
			name, ok := strings.CutSuffix(full[1:], "]")
			if !ok {
				return nil, fmt.Errorf("line %d: section header %q is not closed", start, full)
			}
			section = name
			continue
		}
		key, value, ok := strings.Cut(full, "=")
		if !ok {
			return nil, fmt.Errorf("line %d: %q is no setting (there is no =)", start, full)
		}
		if section == "" {
			return nil, fmt.Errorf("line %d: %q stands before any section", start, full)
		}
		all = append(all, setting{section: section, key: strings.TrimRight(key, " \t"), value: strings.TrimLeft(value, " \t"), line: start})
	}
	return all, nil
}

// continues reports whether line ends in the middle of an escape, which is what makes
// systemd join the next line to it.
func continues(line string) bool {
	escaped := false
	for i := range len(line) {
		escaped = !escaped && line[i] == '\\'
	}
	return escaped
}
