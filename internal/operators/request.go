package operators

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"regexp"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/zdt-dev/zdt/release"
)

// Verb is what an operator can ask for. There are no others.
type Verb string

// The verbs.
const (
	Upgrade  Verb = "upgrade"
	Rollback Verb = "rollback"
	Promote  Verb = "promote" // an upgrade that operators asked for
	Abort    Verb = "abort"   // the same
)

// requestSchema names the document.
const requestSchema = "zdt.request/1"

// A Request is what an operator puts into the incoming directory. It has only what the policy of the service leaves to whoever
// upgrades it; what would take something of the policy away is not a field, and an unknown field is an error.
type Request struct {
	Schema  string `json:"schema"` // zdt.request/1
	Service string `json:"service"`
	Do      Verb   `json:"do"` // upgrade, rollback, promote, abort

	// Program comes along with the request of an upgrade; nil: Release names one that is in the store.
	Program *Program `json:"program,omitempty"`
	// Release is the ID of a release, or how that begins. Of a rollback it may be empty.
	Release string `json:"release,omitempty"`

	Rehearse bool          `json:"rehearse,omitempty"` // also if the service does not ask for it
	Bake     time.Duration `json:"bake,omitempty"`     // nanoseconds; not less than the service's
	Timeout  time.Duration `json:"timeout,omitempty"`  // nanoseconds; undo it unless it has taken over by then
	Wait     time.Duration `json:"wait,omitempty"`     // nanoseconds; for another upgrade to end
	Why      string        `json:"why,omitempty"`

	// TxID says which upgrade an order is about; "": the one there is.
	TxID string `json:"txid,omitempty"`
}

// A Program is the file that lies beside a request.
type Program struct {
	Name   string `json:"name"`   // the base name it had
	SHA256 string `json:"sha256"` // hex; any other file is refused
	// Exec is the path of the program in an archive.
	Exec string `json:"exec,omitempty"`
	// Signed: its detached signature lies beside it, too.
	Signed bool `json:"signed,omitempty"`
}

const (
	maxRequest = 64 << 10
	maxText    = 1000 // bytes of Why and of a path
	// maxSpan bounds each duration but maxWait: whoever waits occupies the service's only unit for requests.
	maxSpan = 7 * 24 * time.Hour
	maxWait = 24 * time.Hour
)

var (
	fileName  = regexp.MustCompile(`^[A-Za-z0-9_][A-Za-z0-9._+-]{0,99}$`)
	sumText   = regexp.MustCompile(`^[0-9a-f]{64}$`)
	releaseID = regexp.MustCompile(`^[A-Za-z0-9-]{1,64}$`)
)

// ParseRequest reads a request and says what is wrong with it. Whoever wrote it may mean harm.
func ParseRequest(data []byte, service string) (Request, error) {
	var r Request
	if len(data) > maxRequest {
		return r, fmt.Errorf("it has more than %d bytes", maxRequest)
	}
	d := json.NewDecoder(bytes.NewReader(data))
	d.DisallowUnknownFields()
	if err := d.Decode(&r); err != nil {
		return Request{}, fmt.Errorf("it is not a request: %w", err)
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return Request{}, errors.New("something follows the request")
	}
	if err := r.check(service); err != nil {
		return Request{}, err
	}
	return r, nil
}

func (r Request) check(service string) error {
	if r.Schema != requestSchema {
		return fmt.Errorf("its schema is %q, want %s", r.Schema, requestSchema)
	}
	if r.Service != service {
		return fmt.Errorf("it is about the service %q, and this is the way to %s", r.Service, service)
	}
	for _, span := range []time.Duration{r.Bake, r.Timeout, r.Wait} {
		if span < 0 || span > maxSpan {
			return fmt.Errorf("a time of %v: it must be between 0 and %v", span, maxSpan)
		}
	}
	if r.Wait > maxWait {
		return fmt.Errorf("a wait of %v: it must not be more than %v", r.Wait, maxWait)
	}
	if err := checkText("why", r.Why); err != nil {
		return err
	}
	if r.Release != "" && !releaseID.MatchString(r.Release) {
		return fmt.Errorf("%q is not the ID of a release", r.Release)
	}
	if r.TxID != "" && r.Do != Promote && r.Do != Abort {
		return fmt.Errorf("a request to %s names no upgrade", r.Do)
	}
	rest := r
	rest.Schema, rest.Service, rest.Do, rest.Why = "", "", "", ""
	switch r.Do {
	case Upgrade:
		if (r.Program == nil) == (r.Release == "") {
			return errors.New("an upgrade is to a program or to a release")
		}
		return r.Program.check()
	case Rollback:
		rest.Release, rest.Timeout, rest.Wait = "", 0, 0
	case Promote, Abort:
		rest.TxID = ""
		if r.TxID != "" && !validTxID(r.TxID) {
			return fmt.Errorf("%q is not the ID of an upgrade", r.TxID)
		}
		if r.Why != "" {
			return fmt.Errorf("%s takes no reason", r.Do)
		}
	default:
		return fmt.Errorf("operators cannot ask for %q", r.Do)
	}
	if rest != (Request{}) {
		return fmt.Errorf("it has something that a request to %s cannot have", r.Do)
	}
	return nil
}

func (p *Program) check() error {
	switch {
	case p == nil:
		return nil
	case !fileName.MatchString(p.Name):
		return fmt.Errorf("%q is not a plain file name", p.Name)
	case !sumText.MatchString(p.SHA256):
		return fmt.Errorf("%q is not a SHA-256", p.SHA256)
	}
	return checkText("path in an archive", p.Exec)
}

// checkText refuses what could play with a terminal, a log or an argument list.
func checkText(what, s string) error {
	if len(s) > maxText || !utf8.ValidString(s) || strings.ContainsFunc(s, func(r rune) bool { return !unicode.IsPrint(r) }) {
		return fmt.Errorf("the %s is too long, or has control characters", what)
	}
	return nil
}

// Args is the command line that carries the request out, for the files that were taken and who asks; as is the value of --as.
// Only upgrades and rollbacks have one. Every value stands behind its flag's "=", so none of them can be another flag.
func (r Request) Args(as string, program, signature string) []string {
	argv := []string{string(r.Do)}
	add := func(name, value string) {
		if value != "" {
			argv = append(argv, "--"+name+"="+value)
		}
	}
	span := func(name string, d time.Duration) {
		if d > 0 {
			add(name, d.String())
		}
	}
	if p := r.Program; p != nil {
		add("binary", program)
		add("sha256", p.SHA256)
		add("exec", p.Exec)
		add("signature", signature)
	}
	if r.Do == Rollback {
		add("to", r.Release)
	} else {
		add("release", r.Release)
	}
	if r.Rehearse {
		add("rehearse", "true")
	}
	span("bake", r.Bake)
	span("timeout", r.Timeout)
	span("wait", r.Wait)
	add("message", r.Why)
	add("as", as)
	return append(argv, "--", r.Service)
}

// Encode is the request as ParseRequest reads it; the error is what that would say.
func (r Request) Encode() ([]byte, error) {
	r.Schema = requestSchema
	data, err := json.Marshal(r)
	if err != nil {
		return nil, err
	}
	if _, err := ParseRequest(data, r.Service); err != nil {
		return nil, err
	}
	return data, nil
}

// Name makes a plain file name of any: what is odd in it goes.
func Name(base string) string {
	var b strings.Builder
	for _, r := range base {
		if fileName.MatchString("a"+string(r)) && (b.Len() > 0 || fileName.MatchString(string(r))) && b.Len() < 100 {
			b.WriteRune(r)
		}
	}
	if b.Len() == 0 {
		return "program"
	}
	return b.String()
}

// validTxID keeps what becomes a directory's name from being a path.
func validTxID(txid string) bool { return release.ValidTxID(txid) }
