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

// A badLine is a line that is no setting. systemd warns and reads on, except
// after a broken section header, with which it refuses the whole file.
type badLine struct {
	section string // it stands in, "" after a broken header
	line    int
	text    string // what is wrong
}

// parseUnit reads unit file text as systemd 252 to 257 do (conf-parser.c):
// lines end with LF, CR or NUL; a line whose last character is a backslash
// that is not itself escaped goes on in the next one, over comments in
// between; comments begin with # or ; and stand alone.
func parseUnit(data []byte) (all []setting, bad []badLine) {
	var (
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
			bad = append(bad, badLine{section, start, "not UTF-8"})
			continue
		}
		if full[0] == '[' {
			name, ok := strings.CutSuffix(full[1:], "]")
			if section = name; !ok {
				section = ""
				bad = append(bad, badLine{section, start, fmt.Sprintf("section header %q is not closed", full)})
			}
			continue
		}
		key, value, ok := strings.Cut(full, "=")
		if !ok {
			bad = append(bad, badLine{section, start, fmt.Sprintf("%q is no setting (there is no =)", full)})
			continue
		}
		if section == "" {
			bad = append(bad, badLine{section, start, fmt.Sprintf("%q stands in no section", full)})
			continue
		}
		all = append(all, setting{section: section, key: strings.TrimRight(key, " \t"), value: strings.TrimLeft(value, " \t"), line: start})
	}
	return all, bad
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
