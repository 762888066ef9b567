package unitgen

import (
	"bytes"
	"fmt"
	"io/fs"
	"path"
	"text/template"
	"time"

	"github.com/zdt-dev/zdt/templates"
)

// formatVersion is the Format= of [X-Zdt]: it grows when a zdt that only knows the older
// one would misread the units.
const formatVersion = 1

// A File is a unit file, as it should be or as it is.
type File struct {
	Name string      // of the unit, "web.service"
	Path string      // absolute
	Mode fs.FileMode // permissions
	Data []byte
}

// Stop and start limits are the runtime's own plus what it needs besides.
const (
	startMargin = 15 * time.Second
	stopMargin  = 10 * time.Second
)

// serviceView is what service.tmpl sees. Strings are ready to stand in a unit.
type serviceView struct {
	Spec
	Format                                int
	Description, Self                     string // Self is Name, or what becomes it in each instance
	Sockets                               string
	ExecStart, ExecReload, ExecStop       string
	StartProbe                            string
	Environment                           []string
	ReadyTimeout, DrainTimeout, Bake      string
	TimeoutStart, TimeoutStop, RestartSec string
	RestartSteps                          bool
	Helper, Restarts                      bool   // zdt run starts the program; and not twice at a time
	Ready                                 string // --ready of zdt run
	RuntimeDir                            string
}

// socketView is what socket.tmpl sees.
type socketView struct {
	Format                                int
	Name, Unit, FDName, Description       string
	Service                               string // its unit
	Listen                                []string
	Stream, TCP, Wildcard, Specific, Path bool
	UserManager, Named                    bool
}

// Generate returns the unit files for s, the service first. The same Spec
// gives the same bytes. The error is Validate's.
func Generate(s Spec) ([]File, error) {
	if err := s.Validate(); err != nil {
		return nil, err
	}
	s = s.withDefaults()
	data, err := render("service", templates.Service(), newServiceView(s))
	if err != nil {
		return nil, err
	}
	files := []File{s.file(s.ServiceUnit(), data)}
	for _, g := range s.sockets() {
		data, err := render("socket", templates.Socket(), newSocketView(s, g))
		if err != nil {
			return nil, err
		}
		files = append(files, s.file(g.unit, data))
	}
	return files, nil
}

func (s Spec) file(unit string, data []byte) File {
	return File{Name: unit, Path: path.Join(s.UnitDir, unit), Mode: 0o644, Data: seal(data)}
}

// since reports whether the systemd that will read the units is known to be v or newer.
func (s Spec) since(v int) bool { return s.SystemdVersion >= v }

func newServiceView(s Spec) serviceView {
	v := serviceView{
		Spec:         s,
		Format:       formatVersion,
		Description:  s.value(s.Description),
		Self:         s.self(),
		Sockets:      s.joinUnits(s.SocketUnits()),
		ExecStart:    s.command(s.argv()),
		ExecReload:   s.command([]string{s.Zdt, "handoff"}),
		ExecStop:     s.command([]string{s.Zdt, "stop"}),
		ReadyTimeout: formatSpan(s.ReadyTimeout),
		DrainTimeout: formatSpan(s.DrainTimeout),
		Bake:         formatSpan(s.Bake),
		TimeoutStart: formatSpan(s.ReadyTimeout + startMargin),
		TimeoutStop:  formatSpan(s.DrainTimeout + stopMargin),
		RestartSec:   "500ms",
		RuntimeDir:   s.runtimeDir(),
	}
	if s.Runtime == RuntimeHelper {
		v.Helper, v.Restarts, v.Ready = true, s.runFlag("strategy") == "restart", s.runFlag("ready")
		if v.Ready == "" {
			v.Ready = "notify" // zdt run's default
		}
		if v.Restarts {
			v.TimeoutStart = formatSpan(s.ReadyTimeout + s.DrainTimeout + startMargin)
		}
	}
	if s.since(254) {
		v.RestartSec, v.RestartSteps = "100ms", true
	}
	if len(s.StartProbe) > 0 {
		v.StartProbe = s.command(s.StartProbe)
	}
	for _, kv := range s.Environment {
		v.Environment = append(v.Environment, s.word(kv))
	}
	return v
}

func newSocketView(s Spec, g socketGroup) socketView {
	v := socketView{
		Format:      formatVersion,
		Name:        s.Name,
		Unit:        g.unit,
		Named:       g.fdName != "",
		FDName:      s.fileDescriptorName(g),
		Service:     s.refer(s.ServiceUnit()),
		Description: s.value(s.Description),
		UserManager: s.UserManager,
	}
	for _, l := range g.listen {
		v.Listen = append(v.Listen, l.directive(s))
		v.Stream = v.Stream || l.Proto == "tcp" || l.Proto == "unix" || l.Proto == "unixpacket"
		v.TCP = v.TCP || l.Proto == "tcp"
		if l.local() {
			v.Path = v.Path || l.Addr[0] == '/'
			continue
		}
		addr := l.at(s.samples()[0]).addrPort().Addr()
		v.Wildcard = v.Wildcard || addr.IsUnspecified() && addr.Is6()
		v.Specific = v.Specific || !addr.IsUnspecified() && !addr.IsLoopback()
	}
	return v
}

func render(name, text string, view any) ([]byte, error) {
	t, err := template.New(name).Option("missingkey=error").Parse(text)
	if err != nil {
		return nil, fmt.Errorf("parse template %s: %w", name, err)
	}
	var b bytes.Buffer
	if err := t.Execute(&b, view); err != nil {
		return nil, fmt.Errorf("fill in template %s: %w", name, err)
	}
	return b.Bytes(), nil
}
