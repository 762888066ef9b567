package rehearse

import (
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/zdt-dev/zdt/dbusctl"
	"github.com/zdt-dev/zdt/handoff/control"
	"github.com/zdt-dev/zdt/internal/health"
	"github.com/zdt-dev/zdt/release"
	"github.com/zdt-dev/zdt/unitgen"
)

// Options are what is rehearsed, and for how long.
type Options struct {
	Release release.Release
	TxID    string
	Current string // the store's "current": what of the command leads through it is the release
	User    bool   // of a user manager

	ReadyTimeout time.Duration
	Gates        []health.Gate

	UnitDir string // where units for this boot are
	RunDir  string // where RuntimeDirectory= is
}

// SocketUnit is a socket unit of the service: what systemd says of it, and its files.
type SocketUnit struct {
	Facts dbusctl.Unit
	Files []unitgen.File
}

// Service is what is known of the service.
type Service struct {
	Name    string
	Facts   dbusctl.Unit
	Files   []unitgen.File // the unit's file, then its drop-ins
	Sockets []SocketUnit
	Policy  unitgen.Policy
	Status  *control.Status // nil: it does not run
}

// Impossible says why a service cannot be rehearsed: nothing is wrong with the candidate as far as is known.
type Impossible struct {
	Why string
	Fix string // may be empty
}

func (e *Impossible) Error() string { return "a rehearsal is not possible: " + e.Why }

// Hint returns what to do about it.
func (e *Impossible) Hint() string { return e.Fix }

func impossible(fix, format string, args ...any) error {
	return &Impossible{Why: fmt.Sprintf(format, args...), Fix: fix}
}

// prefix is how every unit of a rehearsal begins.
const prefix = "zdt-rehearse-"

// stem is how the units of all rehearsals of a service begin. A txid follows.
func stem(service string) string { return prefix + service + "-" }

// Plan is a rehearsal that has not begun: what is written, and what is asked.
type Plan struct {
	Name    string // of the unit, without .service
	Sockets []Socket
	Gates   []health.Gate
	Skipped []Skipped
	// Differences are what the rehearsal has otherwise than the service.
	Differences []string

	groups       []group
	words        []string // argv
	from, to     string   // how a path through current begins, and how the release's does
	helper       bool
	startTimeout time.Duration
	stopTimeout  time.Duration // 0: that of the service
	longest      time.Duration
	envFile      string
}

// Skipped is a gate that is not asked.
type Skipped struct {
	Gate string `json:"gate"`
	Why  string `json:"why"`
}

func (p *Plan) differ(format string, args ...any) {
	text := fmt.Sprintf(format, args...)
	if !slices.Contains(p.Differences, text) {
		p.Differences = append(p.Differences, text)
	}
}

// New plans a rehearsal. It touches nothing. The error is *Impossible, or about a unit that cannot be read.
func New(s Service, o Options) (*Plan, []unitgen.File, error) {
	p := &Plan{
		Name: stem(s.Name) + o.TxID, helper: s.Policy.Runtime == unitgen.RuntimeHelper,
		from: o.Current + "/", to: filepath.Join(filepath.Dir(o.Current), "releases", o.Release.ID) + "/",
		startTimeout: o.ReadyTimeout,
	}
	if s.Facts.TimeoutStop == dbusctl.Infinity {
		p.stopTimeout = longestStop
	}
	p.envFile = filepath.Join(o.UnitDir, p.Name+".env")
	if o.User {
		return nil, nil, impossible("", "a user manager cannot open sockets in a network namespace of their own")
	}
	if err := p.readCommand(s, o); err != nil {
		return nil, nil, err
	}
	if err := p.findSockets(s, o); err != nil {
		return nil, nil, err
	}
	p.chooseGates(o.Gates)
	p.longest = p.startTimeout + health.Longest(p.Gates) + time.Duration(len(p.Sockets))*acceptTimeout
	files, err := p.files(s, o)
	return p, files, err
}

// longestStop is how long a candidate of a service may take to end that may take for ever: nobody is served, and somebody waits.
const longestStop = 5 * time.Minute

// Foresee says how long a rehearsal would take at most, without a margin for the host. Its
// error is that of Rehearse, as far as it can be told when nothing was written or started.
func Foresee(s Service, o Options) (time.Duration, error) {
	p, _, err := New(s, o)
	if err != nil {
		return 0, err
	}
	ns, err := openNamespace()
	if err != nil {
		return 0, err
	}
	ns.close()
	if p.stopTimeout > 0 {
		return p.longest + p.stopTimeout, nil
	}
	return p.longest + s.Facts.TimeoutStop, nil
}

func (p *Plan) files(s Service, o Options) ([]unitgen.File, error) {
	file := func(name string, data []byte) unitgen.File {
		return unitgen.File{Name: name, Path: filepath.Join(o.UnitDir, name), Mode: 0o644, Data: data}
	}
	files := []unitgen.File{file(p.Name+".env", []byte(environ))}
	for _, g := range p.groups {
		data, err := p.socketText(g)
		if err != nil {
			return nil, fmt.Errorf("read the files of %s: %w", g.from.Facts.Name, err)
		}
		files = append(files, file(g.unit, data))
	}
	data, err := p.serviceText(s, o)
	if err != nil {
		return nil, fmt.Errorf("read the files of %s: %w", s.Facts.Name, err)
	}
	return append(files, file(p.Name+".service", data)), nil
}

// environ is what the candidate's environment has besides the service's. The control socket and the takeover are what two
// generations find each other by: this one is to find nobody.
const environ = "ZDT_REHEARSAL=1\nZDT_TAKEOVER=-\nZDT_CONTROL_SOCKET=\n"

// readCommand makes the candidate's command of the service's.
func (p *Plan) readCommand(s Service, o Options) error {
	p.words = slices.Clone(s.Facts.ExecStart)
	found := false
	for i, w := range p.words {
		p.words[i] = strings.ReplaceAll(w, p.from, p.to)
		found = found || p.words[i] != w
	}
	if !found && !strings.Contains(s.Facts.ExecStartPath, p.from) {
		return impossible("", "ExecStart= of %s does not lead through %s", s.Facts.Name, o.Current)
	}
	if !p.helper {
		return nil
	}
	p.startTimeout += helperMargin // zdt run goes by the same limit, and can say why
	dash := slices.Index(p.words, "--")
	if dash < 0 {
		return impossible("", "ExecStart= of %s is not zdt run -- COMMAND", s.Facts.Name)
	}
	return p.readFlags(p.words[:dash], o)
}

const helperMargin = 5 * time.Second

// readFlags looks at the flags of zdt run.
func (p *Plan) readFlags(words []string, o Options) error {
	const beside = "Rehearse=no in [X-Zdt] of the unit says that this is known"
	for i, w := range words {
		name, value, ok := strings.Cut(w, "=")
		at := i
		if !ok && i+1 < len(words) {
			at, value = i+1, words[i+1] // "--ready WHEN"
		}
		set := func(v string) {
			words[at] = v
			if at == i {
				words[at] = name + "=" + v
			}
		}
		switch name {
		case "--strategy":
			if value == "restart" {
				return impossible(beside, "the program cannot run twice at a time (--strategy=restart)")
			}
		case "--pass":
			if value == "none" {
				return impossible(beside, "the program opens its sockets itself (--pass=none): those would be the service's")
			}
		case "--control":
			set("-")
		case "--ready":
			kind, rest, _ := strings.Cut(value, ":")
			switch kind {
			case "http", "https", "tcp", "unix":
				// zdt run asks where the service is. In its place the gate is asked where the rehearsal is.
				g, err := health.Parse(fmt.Sprintf("%s successes=1 every=100ms within=%s", value, o.ReadyTimeout))
				if err != nil {
					return impossible("", "--ready=%s cannot be asked from outside: %v", value, err)
				}
				p.Gates = append(p.Gates, g)
				set("alive:10ms")
			case "exec":
				p.differ("--ready=exec:%s is not asked: it would ask the service", rest)
				set("alive:1s")
			}
		}
	}
	return nil
}

// findSockets finds the sockets that the service has, and gives each a private one.
func (p *Plan) findSockets(s Service, o Options) error {
	const shared = "a rehearsal could get real clients; Rehearse=no in [X-Zdt] says that this is known"
	used := func(Socket) bool { return true }
	if st := s.Status; st != nil {
		for _, held := range st.Sockets {
			if held.ReusePort {
				return impossible(shared, "socket %q shares its address (SO_REUSEPORT)", held.Name)
			}
		}
		used = func(c Socket) bool {
			return !slices.ContainsFunc(st.Sockets, func(held control.Socket) bool {
				return held.Name == c.Name && held.Address == c.Address && !held.InUse
			})
		}
	}
	add := func(g *group, c Socket) error {
		if c.path() && !p.helper && strings.HasSuffix(c.Name, ".socket") {
			return impossible("give it a name: FileDescriptorName= of its socket unit", "the program finds the socket %s by its path, which is the service's", c.Address)
		}
		c.At, c.asked = p.private(c, o.RunDir), used(c)
		g.sockets = append(g.sockets, len(p.Sockets))
		p.Sockets = append(p.Sockets, c)
		return nil
	}
	newGroup := func(name string, from *SocketUnit) *group {
		p.groups = append(p.groups, group{unit: fmt.Sprintf("%s.%d.socket", p.Name, len(p.groups)), name: name, from: from})
		return &p.groups[len(p.groups)-1]
	}
	for i := range s.Sockets {
		u := &s.Sockets[i]
		if u.Facts.Accept {
			return impossible("", "%s starts a process for each connection (Accept=yes)", u.Facts.Name)
		}
		if all, err := unitgen.ReadSettings(u.Files...); err == nil && slices.ContainsFunc(all, func(set unitgen.Setting) bool {
			return set.Section == "Socket" && set.Key == "ReusePort" && isYes(set.Value)
		}) {
			return impossible(shared, "%s shares its address (ReusePort=yes)", u.Facts.Name)
		}
		g := newGroup(u.Facts.FileDescriptorName, u)
		for _, l := range u.Facts.Listen {
			c := Socket{Name: g.name, Network: networkOf(l.Type, l.Address), Address: l.Address}
			if c.Network == "" {
				return impossible("", "%s has a %s socket (%s), which cannot be made a second time", u.Facts.Name, l.Type, l.Address)
			}
			if err := add(g, c); err != nil {
				return err
			}
		}
	}
	for _, c := range ownSockets(s) {
		if err := add(newGroup(c.Name, nil), c); err != nil {
			return err
		}
	}
	if len(p.Sockets) == 0 && s.Status == nil {
		return impossible("start the service", "it does not run, and no socket unit says what it listens on")
	}
	return nil
}

// ownSockets are those that the service has bound itself.
func ownSockets(s Service) []Socket {
	var out []Socket
	if s.Status != nil {
		for _, held := range s.Status.Sockets {
			known := slices.ContainsFunc(s.Sockets, func(u SocketUnit) bool { return u.Facts.FileDescriptorName == held.Name })
			if !known {
				out = append(out, Socket{Name: held.Name, Network: held.Network, Address: held.Address})
			}
		}
	}
	return out
}

func isYes(value string) bool {
	switch strings.ToLower(value) {
	case "1", "yes", "y", "true", "t", "on":
		return true
	}
	return false
}
