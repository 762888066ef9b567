package redact

import (
	"regexp"
	"slices"
	"strings"
	"unicode"
)

var (
	// A header as HTTP has it, as JSON has it, and as Go prints it.
	header = regexp.MustCompile(`(?i)\b((?:proxy-)?authorization|set-cookie2?|cookie|x-[a-z-]{0,40}(?:token|key|auth|secret|signature)[a-z-]{0,40})(\\*["'])?\s*[:=]\s*`)
	bearer = regexp.MustCompile(`(?i)\b(?:bearer|basic|negotiate)\s+(` + one + `{8,})`)

	userinfo = regexp.MustCompile(`(?i)\b[a-z][a-z0-9+.-]+://((?:[^\s/?#"'<>\x00]|\x00\d+\x00)*)@`)
	// With a slash or a question mark in the password, which makes it no URL and does not keep people from writing it.
	oddUserinfo = regexp.MustCompile(`(?i)\b[a-z][a-z0-9+.-]+://([^\s/:@"'<>\x00]*:[^\s@"'<>\x00]*[^\s@"'<>\x00/])@[^\s/@]`)
	bareLogin   = regexp.MustCompile(`(?:^|[\s"'=(,])[A-Za-z0-9_.+-]{1,64}:((?:[^\s@"'/\x00]|\x00\d+\x00)+)@[A-Za-z0-9\[(]`)
	userFlag    = regexp.MustCompile(`(?:^|\s)(?:-u|--user|--proxy-user|-U)[ =][^\s:]{1,64}:(` + one + `+)`)
	parameter   = regexp.MustCompile(`[?&][A-Za-z0-9_.~%\[\]-]{1,64}=((?:[^\s&"'<>#\x00]|\x00\d+\x00)+)`)

	// A name, and what sets its value off.
	setting = regexp.MustCompile(`([A-Za-z0-9_.-]+)((?:\\*["'\]])?[ \t]*(?:=>|:=|[:=])[ \t]*)`)
	flag    = regexp.MustCompile(`(?:^|[\s"'])--?([A-Za-z][A-Za-z0-9_.-]*)["']?[ \t]+(\S)`)

	knownToken = regexp.MustCompile(`\beyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{4,}(?:\.[A-Za-z0-9_-]*)*|` +
		`\b(?:gh[pousr]_|github_pat_|glpat-|gldt-|xox[abeoprs]-|sk-|sk_(?:live|test)_|rk_(?:live|test)_|pk_live_|SG\.|hvs\.|hvb\.|npm_|pypi-|dckr_pat_|dop_v1_|shpat_|AKIA|ASIA|AIza|ya29\.|AGE-SECRET-KEY-)[A-Za-z0-9_.-]{12,}`)
	uuid   = regexp.MustCompile(`\b[0-9a-fA-F]{8}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{12}\b`)
	hexRun = regexp.MustCompile(`[0-9a-fA-F]{32,}`)
	run    = regexp.MustCompile(`[A-Za-z0-9+/_-]{24,}={0,2}`)
)

// headers takes out what stands behind the name of a header: to the end of its quotes or else of the line, for a header may
// have anything in it.
func (t *text) headers() {
	t.each(header, func(m []int) (from, to int, ok bool) {
		from = m[1]
		if from, to, ok = quoted(t.s, from); ok {
			return from, to, true
		}
		if to = strings.IndexAny(t.s[from:], "\r\n"); to < 0 {
			to = len(t.s)
		} else {
			to += from
		}
		return from, to, true
	}, Header)
	t.replace(bearer, 1, Header, func(v string) bool { return strings.ToLower(v) != v || mixed(v) || strings.HasSuffix(v, "=") })
}

func (t *text) urls() {
	t.replace(userinfo, 1, URL, nil)
	t.replace(oddUserinfo, 1, URL, nil)
	t.replace(bareLogin, 1, URL, nil)
	t.replace(userFlag, 1, Argument, nil)
	t.replace(parameter, 1, URL, nil)
}

// names takes out the values of what has the name of a secret: password=x, "token": "x", --api-key x.
func (t *text) names() {
	t.each(setting, func(m []int) (from, to int, ok bool) {
		name, separator, from := t.s[m[2]:m[3]], t.s[m[4]:m[5]], m[5]
		if !telling(name) {
			return 0, 0, false
		}
		if m[2] > 0 && !strings.ContainsAny(separator, `"'`) {
			// The whole of it may be in quotes: "--password=two words".
			if before := t.s[m[2]-1]; before == '"' || before == '\'' {
				if end := strings.IndexByte(t.s[from:], before); end >= 0 {
					return from, from + end, !pathOfKey(name, t.s[from:from+end])
				}
			}
		}
		if from, to, ok = quoted(t.s, from); !ok {
			to = from + word(t.s[from:])
		}
		return from, to, !pathOfKey(name, t.s[from:to])
	}, Argument)
	t.each(flag, func(m []int) (from, to int, ok bool) {
		name, from := t.s[m[2]:m[3]], m[4]
		if !telling(name) || strings.HasPrefix(t.s[from:], "--") {
			return 0, 0, false
		}
		if from, to, ok = quoted(t.s, from); !ok {
			to = from + word(t.s[from:])
		}
		return from, to, !pathOfKey(name, t.s[from:to])
	}, Argument)
}

func (t *text) tokens() {
	t.replace(knownToken, 0, Token, nil)
	t.replace(uuid, 0, Token, func(v string) bool {
		return !t.r.keep[v] && !t.r.keep[strings.ReplaceAll(strings.ToLower(v), "-", "")]
	})
	t.replace(hexRun, 0, Token, func(v string) bool {
		return !t.r.keep[v] && strings.Trim(v, "0123456789") != ""
	})
	t.each(run, func(m []int) (from, to int, ok bool) {
		v := t.s[m[0]:m[1]]
		return m[0], m[1], !t.r.keep[v] && random(v)
	}, Token)
	// A path may have one among its elements.
	t.each(element, func(m []int) (from, to int, ok bool) {
		v := t.s[m[0]:m[1]]
		return m[0], m[1], !t.r.keep[v] && (random(v) || len(v) >= 32 && jumbled(v))
	}, Token)
}

var element = regexp.MustCompile(`[A-Za-z0-9+_-]{24,}={0,2}`)

// each takes out a part of the text for each place that the pattern finds, as where says. It goes on behind what was taken.
func (t *text) each(pattern *regexp.Regexp, where func(m []int) (from, to int, ok bool), kind Kind) {
	var b strings.Builder
	last := 0
	for at := 0; at <= len(t.s); {
		m := pattern.FindStringSubmatchIndex(t.s[at:])
		if m == nil {
			break
		}
		for i := range m {
			m[i] += at
		}
		from, to, ok := where(m)
		if !ok || to <= from {
			at = max(m[1], at+1)
			continue
		}
		b.WriteString(t.s[last:from])
		b.WriteString(t.take(kind, t.s[from:to], kind != Token))
		last, at = to, to
	}
	t.s = b.String() + t.s[last:]
}

// quoted is what stands in quotes at from; they may be escaped themselves, as in JSON within JSON.
func quoted(s string, from int) (begin, end int, ok bool) {
	i := from
	for i < len(s) && s[i] == '\\' {
		i++
	}
	if i >= len(s) || s[i] != '"' && s[i] != '\'' {
		return from, from, false
	}
	open := s[from : i+1]
	for at := i + 1; at < len(s); {
		n := strings.Index(s[at:], open)
		if n < 0 {
			break
		}
		end = at + n
		if len(open) > 1 || s[end-1] != '\\' {
			return i + 1, end, true
		}
		at = end + 1
	}
	return i + 1, len(s), true // cut: all of the rest
}

// word is the length of what goes on to the next space that is not escaped.
func word(s string) int {
	for i, c := range s {
		if unicode.IsSpace(c) && (i == 0 || s[i-1] != '\\') {
			return i
		}
	}
	return len(s)
}

var (
	strong = regexp.MustCompile(`passw|passphrase|secret|token|apikey|accesskey|privatekey|credential|authorization|cookie|signature|bearer|jwt|connectionstring|connstr`)
	words  = regexp.MustCompile(`[A-Z]+[a-z]*|[a-z]+`)
)

// telling reports whether a name says that its value is a secret, and not, say, a file that has it.
func telling(name string) bool {
	all := words.FindAllString(name, -1)
	for i, w := range all {
		all[i] = strings.ToLower(w)
	}
	if len(all) == 0 {
		return false
	}
	whole := strings.Join(all, "")
	if strings.HasSuffix(whole, "sessionid") {
		return true
	}
	if slices.Contains([]string{
		"file", "path", "dir", "directory", "name", "id", "type", "ttl", "timeout", "expiry", "expires", "length", "size", "count", "limit", "mode",
		"enabled", "required", "alg", "algorithm", "bytes", "environment", "fd",
	}, all[len(all)-1]) {
		return false
	}
	if strong.MatchString(whole) {
		return true
	}
	return slices.ContainsFunc(all, func(w string) bool {
		return slices.Contains([]string{"pass", "pwd", "pw", "key", "keys", "auth", "dsn", "salt", "otp", "pin", "sid", "sig", "cred", "creds", "session"}, w)
	})
}

var plainPath = regexp.MustCompile(`^/[A-Za-z0-9_./@-]{1,255}$`)

// pathOfKey: --tls-key=/etc/ssl/web.key says where the secret is.
func pathOfKey(name, value string) bool {
	whole := strings.ToLower(name)
	return (strings.HasSuffix(whole, "key") || strings.HasSuffix(whole, "keys")) && !strong.MatchString(strings.Join(words.FindAllString(whole, -1), "")) &&
		plainPath.MatchString(value) && !random(value)
}

// random reports whether a string of 24 characters and more looks as if nobody had thought of it: its characters are of
// all three classes and change from one to another more often than in words.
func random(s string) bool {
	s = strings.TrimRight(s, "=")
	var upper, lower, digit bool
	changes, last := 0, 0
	for i := 0; i < len(s); i++ {
		class := 0
		switch c := s[i]; {
		case c >= 'A' && c <= 'Z':
			class, upper = 1, true
		case c >= 'a' && c <= 'z':
			class, lower = 2, true
		case c >= '0' && c <= '9':
			class, digit = 3, true
		}
		if class != 0 && last != 0 && class != last { // what goes from one element of a path to the next is no such change
			changes++
		}
		last = class
	}
	return len(s) >= 22 && upper && lower && digit && changes*5 >= len(s)*2
}

// jumbled is the same for small letters and digits alone.
func jumbled(s string) bool {
	changes, digits := 0, 0
	for i := 0; i < len(s); i++ {
		d := s[i] >= '0' && s[i] <= '9'
		if !d && !(s[i] >= 'a' && s[i] <= 'z') {
			return false
		}
		if d {
			digits++
		}
		if i > 0 && d != (s[i-1] >= '0' && s[i-1] <= '9') {
			changes++
		}
	}
	return digits >= 4 && changes*4 >= len(s)
}
