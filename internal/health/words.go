package health

import (
	"fmt"
	"strings"
)

// word is one of a line; bare is how much of its beginning stood outside of quotes.
type word struct {
	text string
	bare int
}

// words takes a line apart at its spaces. Within '…' and "…" all is literal, so is a backslash everywhere: patterns are
// full of them.
func words(text string) ([]word, error) {
	var all []word
	var w strings.Builder
	quote, within, bare := rune(0), false, -1
	end := func() {
		if within {
			if bare < 0 {
				bare = w.Len()
			}
			all = append(all, word{w.String(), bare})
		}
		w.Reset()
		within, bare = false, -1
	}
	for _, r := range text {
		switch {
		case quote != 0 && r == quote:
			quote = 0
		case quote != 0:
			w.WriteRune(r)
		case r == '\'' || r == '"':
			if bare < 0 {
				bare = w.Len()
			}
			quote, within = r, true
		case r == ' ' || r == '\t':
			end()
		default:
			w.WriteRune(r)
			within = true
		}
	}
	if quote != 0 {
		return nil, fmt.Errorf("the quote %c is not closed", quote)
	}
	end()
	return all, nil
}

// quote writes a value so that words reads it again as it is.
func quote(s string) string {
	if s != "" && !strings.ContainsAny(s, " \t'\"") {
		return s
	}
	if !strings.Contains(s, `"`) {
		return `"` + s + `"`
	}
	if !strings.Contains(s, `'`) {
		return `'` + s + `'`
	}
	parts := strings.Split(s, `"`)
	for i, part := range parts {
		parts[i] = `"` + part + `"`
	}
	return strings.Join(parts, `'"'`)
}
