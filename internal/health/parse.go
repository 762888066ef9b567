package health

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/url"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"
)

const (
	// lineLimit bounds a gate, in bytes.
	lineLimit = 4 << 10
	// timesLimit bounds successes= and failures=, timeLimit and timeLeast what is a time.
	timesLimit = 1000
	timeLimit  = 24 * time.Hour
	timeLeast  = 10 * time.Millisecond
)

// optionsOf are the options that a kind has, in the order in which they are told.
func optionsOf(k kind) []string {
	times := []string{"successes", "within", "every", "failures", "timeout"}
	switch k {
	case kindHTTPS:
		return append([]string{"status", "body~", "host", "verify", "from"}, times...)
	case kindHTTP, kindHTTPUnix:
		return append([]string{"status", "body~", "host", "from"}, times...)
	case kindTCP, kindUnix:
		return append([]string{"from"}, times...)
	case kindJournal:
		return []string{"successes", "within"}
	case kindSilence, kindErrors:
		return []string{"for"}
	}
	return times
}

// option is name=value or name~=value; the value is cut off.
func optionName(w word) (name string, ok bool) {
	i := strings.IndexByte(w.text, '=')
	if i < 1 || i >= w.bare {
		return "", false
	}
	name = w.text[:i]
	for _, r := range strings.TrimSuffix(name, "~") {
		if (r < 'a' || r > 'z') && r != '_' && r != '-' {
			return "", false
		}
	}
	return name, true
}

// Parse reads a gate: the value of --gate, and of Gate= in [X-Zdt].
func Parse(text string) (Gate, error) {
	g, err := parse(text)
	if err != nil {
		return Gate{}, fmt.Errorf("read gate %q: %w", text, err)
	}
	return g, nil
}

func parse(text string) (Gate, error) {
	switch {
	case len(text) > lineLimit:
		return Gate{}, fmt.Errorf("it is longer than %d bytes", lineLimit)
	case !utf8.ValidString(text):
		return Gate{}, errors.New("it is not UTF-8")
	case strings.ContainsFunc(text, func(r rune) bool { return unicode.IsControl(r) && r != '\t' }):
		return Gate{}, errors.New("it has a control character in it")
	}
	all, err := words(text)
	if err != nil {
		return Gate{}, err
	}
	var g Gate
	var options []word
	for i, w := range all {
		if _, ok := optionName(w); ok {
			options = append(options, w)
			continue
		}
		k, target, ok := scheme(w)
		switch {
		case !ok && g.kind != "":
			return Gate{}, fmt.Errorf("what is %q? A gate is one check and its options; put quotes around what has spaces", w.text)
		case !ok:
			return Gate{}, fmt.Errorf("what is %q? A gate begins with http://, https://, http+unix:, tcp:, unix:, exec:, journal:, journal!: or errors:", w.text)
		case g.kind != "":
			return Gate{}, fmt.Errorf("%q is a second check: give each a gate of its own", w.text)
		}
		g = defaults(k)
		g.target = target
		if k == kindExec {
			err = g.command(target, all[i+1:])
			if err != nil {
				return Gate{}, err
			}
			break
		}
		if err := g.aim(); err != nil {
			return Gate{}, err
		}
	}
	if g.kind == "" {
		return Gate{}, errors.New("there is no check in it: it begins with http://, https://, http+unix:, tcp:, unix:, exec:, journal:, journal!: or errors:")
	}
	given := map[string]bool{}
	for _, w := range options {
		name, _ := optionName(w)
		if given[name] {
			return Gate{}, fmt.Errorf("%s= is given twice", name)
		}
		given[name] = true
		if known := optionsOf(g.kind); !slices.Contains(known, name) {
			return Gate{}, fmt.Errorf("%s has no option %s=; there are %s=", schemeOf(g.kind), name, strings.Join(known, "=, "))
		}
		if err := g.set(name, w.text[len(name)+1:]); err != nil {
			return Gate{}, fmt.Errorf("%s: %w", w.text, err)
		}
	}
	return g, g.agree(given)
}

func schemeOf(k kind) string {
	if k == kindHTTP || k == kindHTTPS {
		return string(k) + "://"
	}
	return string(k) + ":"
}

// scheme takes the kind off the beginning of a word.
func scheme(w word) (k kind, target string, ok bool) {
	scheme, target, _ := strings.Cut(w.text, ":")
	if len(scheme) == len(w.text) {
		return "", "", false
	}
	switch k = kind(scheme); k {
	case kindHTTP, kindHTTPS, kindHTTPUnix, kindTCP, kindUnix, kindExec, kindJournal, kindSilence, kindErrors:
		return k, target, true
	}
	return "", "", false
}

// command is the target of exec: all to the end of the line.
func (g *Gate) command(path string, args []word) error {
	if !filepath.IsAbs(path) {
		return fmt.Errorf("exec: takes an absolute path, as in exec:/usr/local/bin/check, and not %q", path)
	}
	g.target, g.argv = "", []string{path}
	for _, w := range args {
		if name, ok := optionName(w); ok && slices.Contains(optionsOf(kindExec), name) {
			return fmt.Errorf("all behind exec: is the command's: write %s in front of it, or, if the command shall have it, in quotes", w.text)
		}
		g.argv = append(g.argv, w.text)
	}
	return nil
}

// aim reads the target of the others.
func (g *Gate) aim() (err error) {
	switch g.kind {
	case kindHTTP, kindHTTPS:
		return g.aimURL()
	case kindHTTPUnix:
		path, uri, _ := strings.Cut(g.target, ":/")
		g.network, g.address, g.uri, g.host = "unix", path, "/"+uri, "localhost"
		if err := checkUnix(path); err != nil {
			return err
		}
		return checkURI(g.uri)
	case kindTCP:
		g.network, g.address = "tcp", g.target
		return checkTCP(g.target)
	case kindUnix:
		g.network, g.address = "unix", g.target
		return checkUnix(g.target)
	case kindErrors:
		return g.bound()
	}
	if g.target == "" {
		return fmt.Errorf("which line? Write %s:REGEXP", g.kind)
	}
	g.line, err = regexp.Compile(g.target)
	return err
}

// bound reads N or N/D: so many lines at most, in all or in any time of that length.
func (g *Gate) bound() (err error) {
	number, per, any := strings.Cut(g.target, "/")
	if g.most, err = strconv.Atoi(number); err != nil || g.most < 0 || g.most > timesLimit {
		return fmt.Errorf("how many are still fine? Write errors:N, or errors:N/1m for so many a minute, with N from 0 to %d", timesLimit)
	}
	g.target = strconv.Itoa(g.most)
	if !any {
		return nil
	}
	if g.per, err = parseTime(per); err != nil {
		return fmt.Errorf("%s: %w", per, err)
	}
	g.target += "/" + short(g.per)
	return nil
}

func (g *Gate) aimURL() error {
	u, err := url.Parse(string(g.kind) + ":" + g.target)
	switch {
	case err != nil:
		return err
	case u.Opaque != "" || u.Host == "":
		return fmt.Errorf("no host: write %s://HOST:PORT/PATH", g.kind)
	case u.User != nil:
		return errors.New("a password there could be read by everybody: use exec:")
	case u.Fragment != "" || strings.Contains(g.target, "#"):
		return errors.New("what is behind # is never sent")
	}
	port := u.Port()
	if port == "" {
		port = map[kind]string{kindHTTP: "80", kindHTTPS: "443"}[g.kind]
	}
	g.network, g.address, g.host, g.uri = "tcp", net.JoinHostPort(u.Hostname(), port), u.Host, u.RequestURI()
	if err := checkTCP(g.address); err != nil {
		return err
	}
	return checkURI(g.uri)
}

func checkURI(uri string) error {
	if strings.ContainsAny(uri, " \t#") {
		return fmt.Errorf("%q is no path of a URL: write %%20 for a space, and nothing behind #", uri)
	}
	_, err := url.ParseRequestURI(uri)
	return err
}

func checkTCP(address string) error {
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		return fmt.Errorf("%w: write HOST:PORT", err)
	}
	if host == "" {
		return fmt.Errorf("no host: write 127.0.0.1:%s", port)
	}
	if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 {
		return fmt.Errorf("port %q is not a number from 1 to 65535", port)
	}
	return nil
}

func checkUnix(path string) error {
	if !strings.HasPrefix(path, "/") && !strings.HasPrefix(path, "@") || len(path) < 2 {
		return errors.New("the path of a unix socket begins with / (or with @, an abstract one)")
	}
	if len(path) > 107 { // sun_path, unix(7)
		return errors.New("the path of a unix socket has 107 bytes at most")
	}
	return nil
}

// set takes one option.
func (g *Gate) set(name, value string) (err error) {
	switch name {
	case "status":
		g.status, err = parseStatus(value)
	case "body~":
		if value == "" {
			return errors.New("which text? Write body~=REGEXP")
		}
		g.body, err = regexp.Compile(value)
	case "host":
		if value == "" || strings.ContainsFunc(value, func(r rune) bool { return r <= ' ' || r > '~' || strings.ContainsRune(`/\?#@"`, r) }) {
			return errors.New("this is no host")
		}
		g.host, g.named = value, true
	case "verify":
		switch value {
		case "yes", "no":
			g.verify = value == "yes"
		default:
			return errors.New("it is yes or no")
		}
	case "from":
		switch value {
		case "candidate", "anyone":
			g.anyone = value == "anyone"
		default:
			return errors.New("it is candidate or anyone")
		}
	case "successes":
		g.successes, err = parseTimes(value)
	case "failures":
		g.failures, err = parseTimes(value)
	case "within", "for":
		g.within, err = parseTime(value)
	case "every":
		g.every, err = parseTime(value)
	case "timeout":
		g.timeout, err = parseTime(value)
	}
	return err
}

func parseTimes(value string) (int, error) {
	n, err := strconv.Atoi(value)
	if err != nil || n < 1 || n > timesLimit {
		return 0, fmt.Errorf("it is a number from 1 to %d", timesLimit)
	}
	return n, nil
}

func parseTime(value string) (time.Duration, error) {
	d, err := time.ParseDuration(value)
	if _, notNumber := strconv.ParseFloat(value, 64); err != nil && notNumber == nil {
		return 0, fmt.Errorf("of what? Write %ss for seconds (ms, s, m, h)", value)
	}
	if err != nil {
		return 0, errors.New("it is a time, as 500ms, 30s or 2m")
	}
	if d < timeLeast || d > timeLimit {
		return 0, fmt.Errorf("it is a time from %v to %s", timeLeast, short(timeLimit))
	}
	return d, nil
}

// agree refuses options that contradict each other.
func (g *Gate) agree(given map[string]bool) error {
	if g.uri != "" {
		if _, err := g.request(context.Background()); err != nil {
			return err
		}
	}
	if g.every == 0 {
		return nil // of those that ask nothing
	}
	if given["timeout"] && g.timeout > g.within {
		return fmt.Errorf("timeout=%s is longer than within=%s, the time for all tries", short(g.timeout), short(g.within))
	}
	if least := time.Duration(g.successes-1) * g.every; least >= g.within {
		return fmt.Errorf("successes=%d, one every=%s, do not fit into within=%s", g.successes, short(g.every), short(g.within))
	}
	return nil
}
