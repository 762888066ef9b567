package health

import (
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
)

// kind is the scheme that a gate begins with.
type kind string

const (
	kindHTTP     kind = "http"
	kindHTTPS    kind = "https"
	kindHTTPUnix kind = "http+unix"
	kindTCP      kind = "tcp"
	kindUnix     kind = "unix"
	kindExec     kind = "exec"
	kindJournal  kind = "journal"
	kindSilence  kind = "journal!"
	kindErrors   kind = "errors"
)

// Gate is one check, with its options; see docs/gates.md for what it is written like. The zero value is none.
type Gate struct {
	kind   kind
	target string   // what is behind the scheme, as it was given; not of exec
	argv   []string // of exec

	// Of those that connect.
	network, address string
	anyone           bool // an answer counts whoever gives it
	// Of http.
	uri, host string // host is the Host of the request
	named     bool   // host= was given
	status    statusSet
	body      *regexp.Regexp // nil: whatever it is
	verify    bool           // the certificate
	// Of journal.
	line *regexp.Regexp
	// Of errors: so many lines at most, of any time that is so long; 0: of the whole time.
	most int
	per  time.Duration

	successes int           // in a row, to pass
	within    time.Duration // the time for that; of journal! how long there has to be silence, and of errors how long they are counted at least
	every     time.Duration // from one try to the next
	failures  int           // in a row, to fail after it has passed
	timeout   time.Duration // of one try
}

// defaults are the options of a gate that says nothing of them.
func defaults(k kind) Gate {
	g := Gate{kind: k, successes: 3, within: 30 * time.Second, every: 500 * time.Millisecond, failures: 3, timeout: 2 * time.Second}
	switch k {
	case kindHTTP, kindHTTPS, kindHTTPUnix:
		g.status, g.verify = statusSet{{200, 299}}, true
	case kindExec:
		g.successes, g.every, g.timeout = 1, 2*time.Second, 10*time.Second
	case kindJournal:
		g = Gate{kind: k, successes: 1, within: 30 * time.Second}
	case kindSilence, kindErrors:
		g = Gate{kind: k, within: time.Second}
	}
	return g
}

// Within is the longest that the gate takes until it has passed or failed.
func (g Gate) Within() time.Duration {
	if g.kind == kindSilence || g.kind == kindErrors {
		return g.within + journalPatience
	}
	return g.within
}

// Longest is the longest that one of the gates takes until it has passed or failed; 0 if there are none.
func Longest(gates []Gate) time.Duration {
	var d time.Duration
	for _, g := range gates {
		d = max(d, g.Within())
	}
	return d
}

// String is the gate as one would write it, without what is the default.
func (g Gate) String() string {
	if g.kind == "" {
		return ""
	}
	d := defaults(g.kind)
	var options []string
	add := func(given bool, name, value string) {
		if given {
			options = append(options, name+quote(value))
		}
	}
	add(g.status.String() != d.status.String(), "status=", g.status.String())
	if g.body != nil {
		add(true, "body~=", g.body.String())
	}
	add(g.named, "host=", g.host)
	add(g.verify != d.verify, "verify=", "no")
	add(g.anyone, "from=", "anyone")
	add(g.successes != d.successes, "successes=", strconv.Itoa(g.successes))
	if g.kind == kindSilence || g.kind == kindErrors {
		add(g.within != d.within, "for=", short(g.within))
	} else {
		add(g.within != d.within, "within=", short(g.within))
	}
	add(g.every != d.every, "every=", short(g.every))
	add(g.failures != d.failures, "failures=", strconv.Itoa(g.failures))
	add(g.timeout != d.timeout, "timeout=", short(g.timeout))
	if g.kind != kindExec {
		return strings.Join(append([]string{g.name()}, options...), " ")
	}
	// Everything behind the command is the command's.
	return strings.Join(append(options, g.name()), " ")
}

// name is the gate without its options.
func (g Gate) name() string {
	if g.kind != kindExec {
		return quote(string(g.kind) + ":" + g.target)
	}
	words := []string{quote("exec:" + g.argv[0])}
	for _, arg := range g.argv[1:] {
		q := quote(arg)
		if name, ok := optionName(word{q, len(q)}); ok && slices.Contains(optionsOf(kindExec), name) {
			q = `"` + arg + `"` // the command's, and not the gate's
		}
		words = append(words, q)
	}
	return strings.Join(words, " ")
}

// MarshalText is String.
func (g Gate) MarshalText() ([]byte, error) { return []byte(g.String()), nil }

// UnmarshalText is Parse.
func (g *Gate) UnmarshalText(text []byte) (err error) {
	*g, err = Parse(string(text))
	return err
}

// short is the duration without the zeros that String has: 2m and not 2m0s.
func short(d time.Duration) string {
	s := d.String()
	if strings.HasSuffix(s, "m0s") {
		s = strings.TrimSuffix(s, "0s")
	}
	if strings.HasSuffix(s, "h0m") {
		s = strings.TrimSuffix(s, "0m")
	}
	return s
}

// Journal reports whether the gate reads what the candidate writes to the journal, and whether it counts errors in it only.
func (g Gate) Journal() (reads, errors bool) {
	return g.kind == kindJournal || g.kind == kindSilence || g.kind == kindErrors, g.kind == kindErrors
}

// Endpoint is what the gate connects to, as package net has it; "" for one that does not.
func (g Gate) Endpoint() (network, address string) { return g.network, g.address }
