// Package redact takes secrets out of what is shown to somebody else: unit files, command lines, log lines. It knows them by
// where they stand (the value of an environment variable, a password= in a command line, the user of a URL), by how they
// look (PEM blocks, JSON web tokens, long random strings), and by what it was told ([Redactor.Learn]): a password that
// stands in a unit file is found in a log line, too. Names stay, so that one sees what was set; a value becomes
// "«redacted 12 bytes»".
//
// It errs on the side of taking away too much. It cannot know a secret that looks like any other word and stands where
// nothing announces it, which is why whoever passes a text on should read it first.
package redact

import (
	"encoding/base64"
	"fmt"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// Kind says by what a secret was known.
type Kind string

// The kinds.
const (
	Environment Kind = "environment" // the value of an environment variable
	Credential  Kind = "credential"  // of SetCredential=, LoadCredential= and the like
	Argument    Kind = "argument"    // the value behind a name that speaks of a secret
	URL         Kind = "url"         // user and password, or the value of a parameter
	Header      Kind = "header"      // of HTTP
	PEM         Kind = "pem"
	Token       Kind = "token"   // looks random, or like a known form of token
	Learned     Kind = "learned" // was found elsewhere before
)

// Redactor takes secrets out, and counts them. The zero value is ready.
type Redactor struct {
	counts   map[Kind]int
	keep     map[string]bool
	learned  []string // longest first
	learning bool
}

// Keep names long random strings that are no secrets, such as checksums.
func (r *Redactor) Keep(ids ...string) {
	if r.keep == nil {
		r.keep = make(map[string]bool)
	}
	for _, id := range ids {
		r.keep[id] = true
	}
}

// Learn runs f, which redacts what is configuration, and remembers what is taken out there: it is taken out everywhere from
// now on. What f redacts is not counted.
func (r *Redactor) Learn(f func()) {
	counts := r.counts
	r.counts, r.learning = nil, true
	f()
	r.counts, r.learning = counts, false
	slices.SortFunc(r.learned, func(a, b string) int {
		if len(a) != len(b) {
			return len(b) - len(a)
		}
		return strings.Compare(a, b)
	})
	r.learned = slices.Compact(r.learned)
}

// Take returns how many secrets of each kind were taken out since it was called last.
func (r *Redactor) Take() map[Kind]int {
	counts := r.counts
	r.counts = nil
	return counts
}

// common are values that stand behind names of secrets, or in the environment, and are none. Taking them out everywhere would
// leave nothing to read.
var common = regexp.MustCompile(`(?i)^(?:true|false|yes|no|on|off|none|null|default|auto|info|warn|warning|debug|error|trace|test|testing|dev|development|prod|production|stage|staging|local|localhost|root|admin|user|password|secret|token|enabled|disabled|required|[0-9.]+[a-z%]{0,3}|/[^:@]*|[a-z]+\.service)$`)

// taken notes a secret. sure: its place tells that it is one.
func (r *Redactor) taken(kind Kind, value string, sure bool) string {
	if r.learning {
		least := 8
		if sure {
			least = 4
		}
		if v := strings.TrimSpace(value); len(v) >= least && (!common.MatchString(v) || sure && len(v) >= 6 && strings.Trim(v, "0123456789") == "") && (sure || mixed(v)) {
			r.learned = append(r.learned, spellings(v)...)
		}
		return mark(value)
	}
	if r.counts == nil {
		r.counts = make(map[Kind]int)
	}
	r.counts[kind]++
	return mark(value)
}

// spellings are a secret as it is, and as URLs, JSON and HTTP headers have it.
func spellings(s string) []string {
	all := []string{s, url.QueryEscape(s), url.PathEscape(s), strings.Trim(strconv.Quote(s), `"`)}
	if len(s) >= 8 { // what is shorter might be a part of anything
		all = append(all, base64.RawStdEncoding.EncodeToString([]byte(s)))
	}
	return all
}

// Secret is what stands in place of a value that is known to be a secret.
func (r *Redactor) Secret(kind Kind, value string) string { return r.taken(kind, value, true) }

func mark(value string) string { return fmt.Sprintf("«redacted %d bytes»", len(value)) }

// mixed: it has letters and digits, which few words have.
func mixed(s string) bool {
	return strings.ContainsAny(s, "0123456789") && strings.IndexFunc(s, func(c rune) bool { return c|0x20 >= 'a' && c|0x20 <= 'z' }) >= 0
}

// text is a text on its way through the rules. What a rule has decided about stands in it as NUL, a number, NUL, so that no
// later rule looks into it again.
type text struct {
	r    *Redactor
	s    string
	held []held
}

type held struct{ raw, shown string }

// one is a character of a value that goes on to the next space, or something decided.
const one = `(?:[^\s\x00]|\x00\d+\x00)`

var (
	heldMark = regexp.MustCompile(`\x00(\d+)\x00`)
	decided  = regexp.MustCompile(`^\x00\d+\x00$`)
)

func (t *text) hold(raw, shown string) string {
	t.held = append(t.held, held{t.expand(raw, func(h held) string { return h.raw }), shown})
	return "\x00" + strconv.Itoa(len(t.held)-1) + "\x00"
}

// take is what stands in the text instead of a secret.
func (t *text) take(kind Kind, value string, sure bool) string {
	if value == "" || decided.MatchString(value) {
		return value
	}
	raw := t.expand(value, func(h held) string { return h.raw })
	return t.hold(raw, t.r.taken(kind, raw, sure))
}

func (t *text) expand(s string, what func(held) string) string {
	if !strings.Contains(s, "\x00") {
		return s
	}
	return heldMark.ReplaceAllStringFunc(s, func(m string) string {
		n, err := strconv.Atoi(m[1 : len(m)-1])
		if err != nil || n >= len(t.held) {
			return ""
		}
		return what(t.held[n])
	})
}

// replace takes out what a group of the pattern matches, if ok says so.
func (t *text) replace(pattern *regexp.Regexp, group int, kind Kind, ok func(value string) bool) {
	var b strings.Builder
	last := 0
	for _, m := range pattern.FindAllStringSubmatchIndex(t.s, -1) {
		from, to := m[2*group], m[2*group+1]
		if from < last || ok != nil && !ok(t.s[from:to]) {
			continue
		}
		b.WriteString(t.s[last:from])
		b.WriteString(t.take(kind, t.s[from:to], kind != URL))
		last = to
	}
	t.s = b.String() + t.s[last:]
}

// Text takes the secrets out of any text.
func (r *Redactor) Text(s string) string {
	t := &text{r: r, s: strings.ReplaceAll(strings.ToValidUTF8(s, "\uFFFD"), "\x00", "\uFFFD")}
	t.s = earlier.ReplaceAllStringFunc(t.s, func(m string) string { return t.hold(m, m) })
	t.known()
	t.replace(pemBlock, 1, PEM, nil)
	t.s = ownID.ReplaceAllStringFunc(t.s, func(id string) string { return t.hold(id, id) })
	t.headers()
	t.urls()
	t.names()
	t.tokens()
	return t.expand(t.s, func(h held) string { return h.shown })
}

// earlier is what an earlier pass has left.
var earlier = regexp.MustCompile(`«redacted \d+ bytes»`)

// pemBlock may lack its end, when the text was cut.
var pemBlock = regexp.MustCompile(`-----BEGIN [A-Z0-9 ]{1,60}-----((?s:.*?))(?:-----END [A-Z0-9 ]{1,60}-----|\z)`)

// ownID are the IDs of releases and of transactions.
var ownID = regexp.MustCompile(`\b[0-9]{8}T[0-9]{6,9}Z-(?:[0-9a-f]{12}|[0-9a-f]{8})\b`)

// known takes out what was learned. Short ones count only as whole words.
func (t *text) known() {
	if t.r.learning {
		return
	}
	for _, secret := range t.r.learned {
		if !strings.Contains(t.s, secret) {
			continue
		}
		var b strings.Builder
		rest, before := t.s, byte(' ')
		for {
			i := strings.Index(rest, secret)
			if i < 0 {
				break
			}
			if i > 0 {
				before = rest[i-1]
			}
			after := byte(' ')
			if end := i + len(secret); end < len(rest) {
				after = rest[end]
			}
			b.WriteString(rest[:i])
			if len(secret) < 8 && (wordByte(before) || wordByte(after)) {
				b.WriteString(secret[:1])
				before, rest = secret[0], rest[i+1:]
				continue
			}
			b.WriteString(t.take(Learned, secret, true))
			before, rest = secret[len(secret)-1], rest[i+len(secret):]
		}
		b.WriteString(rest)
		t.s = b.String()
	}
}

func wordByte(c byte) bool {
	return c|0x20 >= 'a' && c|0x20 <= 'z' || c >= '0' && c <= '9' || c == '_' || c == 0
}

// Lines takes secrets out of a text that comes line by line, as one program writes it: a PEM block goes over many.
type Lines struct {
	r    *Redactor
	left int // how many lines may still belong to the block
}

// Lines begins such a text.
func (r *Redactor) Lines() *Lines { return &Lines{r: r} }

// mostPEM is how many lines a PEM block may have.
const mostPEM = 400

var (
	pemBegin = regexp.MustCompile(`-----BEGIN [A-Z0-9 ]{1,60}-----`)
	pemEnd   = regexp.MustCompile(`-----END [A-Z0-9 ]{1,60}-----`)
)

// Line is the next line, or several.
func (l *Lines) Line(s string) string {
	head := ""
	if l.left > 0 {
		end := pemEnd.FindStringIndex(s)
		if end == nil {
			l.left--
			if s == "" {
				return ""
			}
			return l.r.taken(PEM, s, true)
		}
		l.left, head, s = 0, l.r.taken(PEM, s[:end[0]], true), s[end[0]:]
	}
	if begins := pemBegin.FindAllStringIndex(s, -1); begins != nil && pemEnd.FindStringIndex(s[begins[len(begins)-1][0]:]) == nil {
		l.left = mostPEM
	}
	return head + l.r.Text(s)
}
