package unitgen

import (
	"fmt"
	"strings"
)

// A Setting is one "Key=Value" of a unit file.
type Setting struct{ Section, Key, Value string }

// ReadSettings returns all settings of a unit file and its drop-ins, in the order in which systemd
// reads them. The values stand as they are written, on one line each. Lines that are no settings are left out,
// as systemd does; a file with a broken section header, which systemd refuses as a whole, is an error.
func ReadSettings(files ...File) ([]Setting, error) {
	var out []Setting
	for _, f := range files {
		all, bad := parseUnit(f.Data)
		for _, b := range bad {
			if b.section == "" {
				return nil, &PolicyError{Path: f.Path, Line: b.line, Err: fmt.Errorf("%s", b.text)}
			}
		}
		for _, s := range all {
			out = append(out, Setting{s.section, s.key, s.value})
		}
	}
	return out, nil
}

// WriteSettings is the text of a unit file with these settings, which ReadSettings reads back.
func WriteSettings(all []Setting) []byte {
	var b strings.Builder
	section := ""
	for _, s := range all {
		if s.Section != section {
			section = s.Section
			fmt.Fprintf(&b, "[%s]\n", section)
		}
		value := s.Value
		if continues(value) {
			value += " " // a lone backslash at the end would take the next line in
		}
		fmt.Fprintf(&b, "%s=%s\n", s.Key, value)
	}
	return []byte(b.String())
}

// QuoteWord writes s as one word of a list such as Environment=, and of an Exec setting without
// variables: systemd reads back s.
func QuoteWord(s string) string { return quoteWord(s) }

// ExpandNames replaces, in a value that was written for the unit called unit, the specifiers that
// tell a unit its own name by what they are, so that the value means the same in a unit of another name. path is
// where that unit's file is. All other specifiers stay.
func ExpandNames(value, unit, path string) string {
	if !strings.Contains(value, "%") {
		return value
	}
	name, _, _ := cutLast(unit, ".")
	prefix, instance, _ := strings.Cut(name, "@")
	_, last, ok := cutLast(prefix, "-")
	if !ok {
		last = prefix
	}
	file := instance
	if file == "" {
		file = prefix
	}
	dir, _, _ := cutLast(path, "/")
	names := map[byte]string{
		'n': unit, 'N': name, 'p': prefix, 'P': unescapeName(prefix), 'i': instance, 'I': unescapeName(instance),
		'j': last, 'J': unescapeName(last), 'f': "/" + unescapeName(file), 'y': path, 'Y': dir,
	}
	var b strings.Builder
	for i := 0; i < len(value); i++ {
		if value[i] != '%' || i+1 == len(value) {
			b.WriteByte(value[i])
			continue
		}
		i++
		if text, ok := names[value[i]]; ok {
			b.WriteString(strings.ReplaceAll(text, "%", "%%"))
			continue
		}
		b.WriteByte('%')
		b.WriteByte(value[i])
	}
	return b.String()
}

// cutLast is strings.Cut at the last sep; without one all of it is before.
func cutLast(s, sep string) (before, after string, found bool) {
	if i := strings.LastIndex(s, sep); i >= 0 {
		return s[:i], s[i+len(sep):], true
	}
	return s, "", false
}

// unescapeName undoes what systemd-escape does: "-" stands for "/", and \xHH for a byte.
func unescapeName(s string) string {
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		switch {
		case s[i] == '-':
			b.WriteByte('/')
		case s[i] == '\\' && i+3 < len(s) && s[i+1] == 'x':
			var c byte
			if _, err := fmt.Sscanf(s[i+2:i+4], "%02x", &c); err != nil {
				b.WriteByte(s[i])
				continue
			}
			b.WriteByte(c)
			i += 3
		default:
			b.WriteByte(s[i])
		}
	}
	return b.String()
}
