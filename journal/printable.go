package journal

import (
	"strconv"
	"strings"
	"unicode/utf8"
)

// Printable returns s with everything neutralised that a terminal acts upon:
// control characters (escape sequences, carriage return, backspace, newline,
// also the C1 ones), bytes that are not UTF-8, and the characters that
// reorder or hide text. They appear as \x1b or \u202e. Tabs become a space.
func Printable(s string) string {
	clean := true
	for _, r := range s {
		if r == utf8.RuneError || hazardous(r) {
			clean = false
			break
		}
	}
	if clean {
		return s
	}
	var b strings.Builder
	for i := 0; i < len(s); {
		r, n := utf8.DecodeRuneInString(s[i:])
		switch {
		case r == utf8.RuneError && n <= 1:
			writeHex(&b, `\x`, uint64(s[i]), 2)
		case r == '\t':
			b.WriteByte(' ')
		case hazardous(r) && r < 0x100:
			writeHex(&b, `\x`, uint64(r), 2)
		case hazardous(r):
			writeHex(&b, `\u`, uint64(r), 4)
		default:
			b.WriteRune(r)
		}
		i += n
	}
	return b.String()
}

func hazardous(r rune) bool {
	switch {
	case r < 0x20, r >= 0x7f && r < 0xa0: // C0, DEL, C1
		return true
	case r == 0xad, r == 0x61c, r == 0xfeff: // soft hyphen, Arabic letter mark, zero width no-break space
		return true
	case r >= 0x200b && r <= 0x200f, r >= 0x2028 && r <= 0x202e, r >= 0x2060 && r <= 0x206f: // zero width, separators, bidi
		return true
	case r >= 0xe0000 && r <= 0xe007f: // tags
		return true
	}
	return false
}

func writeHex(b *strings.Builder, prefix string, n uint64, digits int) {
	hex := strconv.FormatUint(n, 16)
	b.WriteString(prefix)
	for i := len(hex); i < digits; i++ {
		b.WriteByte('0')
	}
	b.WriteString(hex)
}
