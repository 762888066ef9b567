package unitgen

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"
)

// plainWord are the characters besides letters and digits that mean nothing to
// systemd's word splitting, so that most words stay as they were typed.
const plainWord = "_-./:=,@+~^"

// quoteWord writes s as one word of a list such as Environment=: what
// systemd makes of it after splitting, unescaping and expanding %-specifiers
// is s again.
func quoteWord(s string) string {
	plain := s != ""
	for _, r := range s {
		if (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') && (r < '0' || r > '9') && !strings.ContainsRune(plainWord, r) {
			plain = false
			break
		}
	}
	if plain {
		return s
	}
	var b strings.Builder
	b.WriteByte('"')
	for i := 0; i < len(s); {
		r, n := utf8.DecodeRuneInString(s[i:])
		switch {
		case r == '"' || r == '\\':
			b.WriteByte('\\')
			b.WriteByte(byte(r))
		case r == '%':
			b.WriteString("%%")
		case r == utf8.RuneError && n == 1 || r != ' ' && !unicode.IsPrint(r):
			// Byte by byte: systemd drops lines that are not UTF-8, and a raw
			// newline would begin a new setting.
			for _, c := range []byte(s[i : i+n]) {
				fmt.Fprintf(&b, `\x%02x`, c)
			}
		default:
			b.WriteString(s[i : i+n])
		}
		i += n
	}
	b.WriteByte('"')
	return b.String()
}

// quoteArg writes s as one argument of an Exec line, where $ expands
// environment variables on top of what quoteWord guards against. It is not for
// the first word: systemd does not expand $ in there, and $$ stays $$.
func quoteArg(s string) string {
	return strings.ReplaceAll(quoteWord(s), "$", "$$")
}

// quoteValue writes s as the whole value of a setting that is one string to
// systemd, such as Description= or ListenStream=: nothing but % is special.
func quoteValue(s string) string { return strings.ReplaceAll(s, "%", "%%") }

// splitWords reads a list the way systemd does (extract_first_word with
// EXTRACT_UNQUOTE and EXTRACT_CUNESCAPE in its sources). Specifiers are left alone.
func splitWords(s string) ([]string, error) {
	var words []string
	const blank = " \t\n\r"
	for {
		s = strings.TrimLeft(s, blank)
		if s == "" {
			return words, nil
		}
		var b strings.Builder
		var quote byte
		for s != "" {
			c := s[0]
			if c == '\\' {
				n, err := unescape(&b, s)
				if err != nil {
					return nil, err
				}
				s = s[n:]
				continue
			}
			s = s[1:]
			if quote != 0 {
				if c == quote {
					quote = 0
				} else {
					b.WriteByte(c)
				}
				continue
			}
			if c == '"' || c == '\'' {
				quote = c
				continue
			}
			if strings.IndexByte(blank, c) >= 0 {
				break
			}
			b.WriteByte(c)
		}
		if quote != 0 {
			return nil, errors.New("a quote is not closed")
		}
		words = append(words, b.String())
	}
}

// unescape appends to b what the escape at the start of s stands for and
// returns how many bytes of s it took.
func unescape(b *strings.Builder, s string) (int, error) {
	bad := fmt.Errorf("unknown escape at %.10q", s)
	if len(s) < 2 {
		return 0, bad
	}
	if i := strings.IndexByte(`abfnrtv\"'s`, s[1]); i >= 0 {
		b.WriteByte("\a\b\f\n\r\t\v\\\"' "[i])
		return 2, nil
	}
	digits, base, skip := 0, 16, 2
	switch s[1] {
	case 'x':
		digits = 2
	case 'u':
		digits = 4
	case 'U':
		digits = 8
	default:
		digits, base, skip = 3, 8, 1
	}
	if len(s) < skip+digits {
		return 0, bad
	}
	v, err := strconv.ParseUint(s[skip:skip+digits], base, 32)
	switch {
	case err != nil || v == 0:
		return 0, bad // NUL cannot be part of an argument
	case s[1] == 'u' || s[1] == 'U':
		if !utf8.ValidRune(rune(v)) {
			return 0, bad
		}
		b.WriteRune(rune(v))
	case v > 0xff:
		return 0, bad
	default:
		b.WriteByte(byte(v))
	}
	return skip + digits, nil
}
