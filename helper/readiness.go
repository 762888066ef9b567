//go:build linux

package helper

import (
	"errors"
	"fmt"
	"net"
	"net/url"
	"strconv"
	"strings"
	"time"
)

// Readiness says how the helper learns that a generation is ready: the value of --ready. The zero value
// waits for READY=1 of sd_notify(3).
//
// The others ask from outside, until the answer is yes:
//
//	http://HOST:PORT/URI       a GET is answered with 2xx or 3xx; https:// too, its certificate is not looked at
//	http+unix:/PATH:/URI       the same over a unix socket
//	tcp:HOST:PORT, unix:/PATH  the program accepts a connection
//	exec:COMMAND ARGUMENTS…    the command exits with 0; quotes as in a shell, but no shell
//	alive:DURATION             the program is still there after that time
//
// While a handoff is under way the address may well be that of the generation before,
// whose answers prove nothing about this one. So an answer counts only if a process of this generation
// accepted the connection, which the kernel tells (see probe); an answer of another
// process does not count, and the next connection follows. A command has to see for itself: it gets ZDT_APP_PID and
// ZDT_GENERATION. In every address and argument {pid} and {generation} stand for the same, for programs that
// also listen at a place of their own: http+unix:/run/web/admin-{generation}.sock:/health.
type Readiness struct {
	kind    string // a scheme; empty: notify
	network string // tcp or unix, of those that connect
	address string
	uri     string // of http and https
	host    string // likewise: the Host of the request
	argv    []string
	alive   time.Duration
	text    string
}

// ParseReadiness reads the value of --ready.
func ParseReadiness(text string) (Readiness, error) {
	r := Readiness{text: text}
	kind, rest, _ := strings.Cut(text, ":")
	err := error(nil)
	switch r.kind = kind; kind {
	case "", "notify":
		if rest != "" {
			err = errors.New("it has no argument")
		}
		r.kind = ""
	case "http", "https":
		err = r.parseURL()
	case "http+unix":
		path, uri, _ := strings.Cut(rest, ":/")
		r.network, r.address, r.uri, r.host = "unix", path, "/"+uri, "localhost"
		if err = checkUnix(path); err == nil {
			_, err = url.ParseRequestURI(r.uri)
		}
	case "tcp":
		r.network, r.address = "tcp", rest
		err = checkTCP(rest)
	case "unix":
		r.network, r.address = "unix", rest
		err = checkUnix(rest)
	case "exec":
		if r.argv, err = splitWords(rest); err == nil && len(r.argv) == 0 {
			err = errNoCommand
		}
	case "alive":
		if r.alive, err = time.ParseDuration(rest); err == nil && r.alive <= 0 {
			err = errors.New("it is a time that passes, as in alive:2s")
		}
	default:
		err = errors.New("it is notify, or begins with http://, https://, http+unix:, tcp:, unix:, exec: or alive:")
	}
	if err != nil {
		return Readiness{}, fmt.Errorf("read readiness %q: %w", text, err)
	}
	return r, nil
}

// String is the value as it was given.
func (r Readiness) String() string {
	if r.text == "" {
		return "notify"
	}
	return r.text
}

func (r *Readiness) parseURL() error {
	u, err := url.Parse(r.text)
	if err != nil {
		return err
	}
	if u.Opaque != "" || u.Host == "" {
		return fmt.Errorf("no host: write %s://HOST:PORT/URI", r.kind)
	}
	if u.User != nil {
		return errors.New("a password there could be read by everybody: use exec:")
	}
	port := u.Port()
	if port == "" {
		port = map[string]string{"http": "80", "https": "443"}[r.kind]
	}
	r.network, r.address, r.host, r.uri = "tcp", net.JoinHostPort(u.Hostname(), port), u.Host, u.RequestURI()
	return checkTCP(r.address)
}

func checkTCP(address string) error {
	_, port, err := net.SplitHostPort(address)
	if err != nil {
		return err
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
	return nil
}

// splitWords takes a command apart at its spaces. Within '…' and "…" all is literal.
func splitWords(text string) ([]string, error) {
	var words []string
	var word strings.Builder
	quote, within := rune(0), false
	for _, r := range text {
		switch {
		case quote != 0 && r == quote:
			quote = 0
		case quote != 0:
			word.WriteRune(r)
		case r == '\'' || r == '"':
			quote, within = r, true
		case r == ' ' || r == '\t':
			if within {
				words = append(words, word.String())
			}
			word.Reset()
			within = false
		default:
			word.WriteRune(r)
			within = true
		}
	}
	if quote != 0 {
		return nil, fmt.Errorf("the quote %c is not closed", quote)
	}
	if within {
		words = append(words, word.String())
	}
	return words, nil
}

// of is the readiness of one generation: with its numbers in the place of {pid} and {generation}.
func (r Readiness) of(pid, generation int) Readiness {
	with := strings.NewReplacer("{pid}", strconv.Itoa(pid), "{generation}", strconv.Itoa(generation))
	r.address, r.uri = with.Replace(r.address), with.Replace(r.uri)
	argv := make([]string, len(r.argv))
	for i, arg := range r.argv {
		argv[i] = with.Replace(arg)
	}
	r.argv = argv
	return r
}
