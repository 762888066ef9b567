package redact

import (
	"regexp"
	"strings"
)

// Unit takes the secrets out of a unit file or a drop-in. A setting that goes over several lines becomes one.
func (r *Redactor) Unit(s string) string {
	var b strings.Builder
	pending := ""
	for line := range strings.Lines(strings.ReplaceAll(s, "\r\n", "\n")) {
		line = strings.TrimSuffix(line, "\n")
		comment := strings.HasPrefix(strings.TrimLeft(line, " \t"), "#") || strings.HasPrefix(strings.TrimLeft(line, " \t"), ";")
		if comment { // also between the lines of a setting, of which systemd takes it out
			b.WriteString(r.comment(line) + "\n")
			continue
		}
		if head, more := strings.CutSuffix(line, `\`); more {
			pending += head + " "
			continue
		}
		b.WriteString(r.directive(pending+line) + "\n")
		pending = ""
	}
	if pending != "" {
		b.WriteString(r.directive(pending) + "\n")
	}
	return b.String()
}

// comment may be a setting that somebody has switched off.
func (r *Redactor) comment(line string) string {
	at := strings.IndexFunc(line, func(c rune) bool { return !strings.ContainsRune("#; \t", c) })
	if at < 0 {
		return line
	}
	return line[:at] + r.directive(strings.TrimSuffix(line[at:], `\`))
}

var ownSum = regexp.MustCompile(`^sha256:[0-9a-f]{64}$`)

var directive = regexp.MustCompile(`^[ \t]*([A-Za-z][A-Za-z0-9-]*)[ \t]*=[ \t]*`)

func (r *Redactor) directive(line string) string {
	m := directive.FindStringSubmatchIndex(line)
	if m == nil {
		return r.Text(line)
	}
	head, value := line[:m[1]], line[m[1]:]
	switch name := line[m[2]:m[3]]; name {
	case "Environment", "DefaultEnvironment", "ManagerEnvironment":
		return head + strings.Join(r.Environ(splitQuoted(value)), " ")
	case "SetCredential", "SetCredentialEncrypted", "LoadCredential", "LoadCredentialEncrypted":
		return head + r.credential(value)
	case "StandardInputText", "StandardInputData":
		return head + r.taken(Credential, value, false)
	case "Generated": // by this zdt knows whether anybody has edited the file
		if ownSum.MatchString(value) {
			return line
		}
	case "ImportCredential", "RequireSignature": // say which, and whether
	default:
		if telling(name) && !strings.HasPrefix(name, "Pass") && value != "" && !pathOfKey(name, value) {
			return head + r.taken(Argument, value, true)
		}
	}
	return head + r.Text(value)
}

// credential is ID:VALUE or ID:PATH.
func (r *Redactor) credential(s string) string {
	id, value, ok := strings.Cut(s, ":")
	if !ok || value == "" {
		return r.Text(s)
	}
	return r.Text(id) + ":" + r.taken(Credential, value, !strings.HasPrefix(value, "/"))
}

var variable = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_]*$`)

// Environ takes the values out of NAME=VALUE.
func (r *Redactor) Environ(all []string) []string {
	out := make([]string, 0, len(all))
	for _, a := range all {
		name, value, ok := strings.Cut(a, "=")
		switch {
		case !ok || !variable.MatchString(name):
			out = append(out, r.taken(Environment, a, false))
		case value == "":
			out = append(out, name+"=")
		default:
			if r.learning {
				r.Text(value) // the password of a URL, say, is logged without the rest of it
			}
			out = append(out, name+"="+r.taken(Environment, value, telling(name)))
		}
	}
	return out
}

// EnvironmentFile takes the values out of a file as EnvironmentFile= has it.
func (r *Redactor) EnvironmentFile(s string) string {
	var b strings.Builder
	for _, line := range logicalLines(s) {
		at := strings.TrimLeft(line, " \t")
		switch {
		case at == "":
		case at[0] == '#' || at[0] == ';': // or a variable that somebody has switched off
			b.WriteString(r.taken(Environment, line, false) + "\n")
		default:
			name, value, _ := strings.Cut(at, "=")
			value = strings.TrimSpace(value)
			if unquoted := splitQuoted(value); len(unquoted) == 1 {
				value = unquoted[0]
			}
			b.WriteString(r.Environ([]string{strings.TrimSpace(name) + "=" + value})[0] + "\n")
		}
	}
	return b.String()
}

// logicalLines joins what a backslash or open quotes continue: the second line of a value looks like any other.
func logicalLines(s string) (lines []string) {
	var b strings.Builder
	quote := byte(0)
	comment, fresh, value := false, true, false
	for i := 0; i < len(s); i++ {
		c := s[i]
		switch {
		case c == '\n' && quote == 0:
			lines = append(lines, b.String())
			b.Reset()
			comment, fresh, value = false, true, false
			continue
		case fresh && (c == '#' || c == ';'):
			comment = true
		case c == '\\' && i+1 < len(s) && quote != '\'':
			b.WriteByte(c)
			i++
			b.WriteByte(s[i])
			fresh = false
			continue
		case comment:
		case quote != 0 && c == quote:
			quote = 0
		case quote == 0 && value && (c == '"' || c == '\''):
			quote = c
		case c == '=':
			value = true
		}
		if c != ' ' && c != '\t' {
			fresh = false
		}
		b.WriteByte(c)
	}
	return append(lines, b.String())
}

// splitQuoted splits as systemd does: at spaces that are in no quotes. Quotes that are not closed go to the end.
func splitQuoted(s string) (all []string) {
	var b strings.Builder
	quote, some := byte(0), false
	for i := 0; i < len(s); i++ {
		c := s[i]
		switch {
		case c == '\\' && i+1 < len(s):
			i++
			if s[i] != '"' && s[i] != '\'' && s[i] != '\\' && s[i] != ' ' && s[i] != '\n' {
				b.WriteByte(c)
			}
			b.WriteByte(s[i])
			some = true
		case quote == 0 && (c == '"' || c == '\''):
			quote, some = c, true
		case quote != 0 && c == quote:
			quote = 0
		case quote == 0 && (c == ' ' || c == '\t' || c == '\n'):
			if some {
				all = append(all, b.String())
			}
			b.Reset()
			some = false
		default:
			b.WriteByte(c)
			some = true
		}
	}
	if some {
		all = append(all, b.String())
	}
	return all
}

// Args takes the secrets out of the arguments of a program.
func (r *Redactor) Args(argv []string) []string {
	out := make([]string, 0, len(argv))
	secret := false
	for _, a := range argv {
		name, _, set := strings.Cut(strings.TrimLeft(a, "-"), "=")
		switch {
		case secret && !strings.HasPrefix(a, "--") && !plainPath.MatchString(a):
			out = append(out, r.taken(Argument, a, true))
			secret = false
			continue
		case set && telling(name) && !pathOfKey(name, a[strings.IndexByte(a, '=')+1:]): // with spaces in it, say
			value := a[strings.IndexByte(a, '=')+1:]
			if r.learning {
				r.Text(value)
			}
			out = append(out, strings.TrimSuffix(a, value)+r.taken(Argument, value, true))
		default:
			out = append(out, r.Text(a))
		}
		secret = !set && strings.HasPrefix(a, "-") && telling(name)
	}
	return out
}
