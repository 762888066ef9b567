package unitgen

import (
	"errors"
	"fmt"
	"net/url"
	"path"
	"regexp"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"
)

var (
	// serviceName is narrower than systemd's rule. Dots, @ and : have a meaning in
	// unit names and in RuntimeDirectory=; a dash at the end would make
	// NAME-.service.d/ the drop-ins of every unit that begins so.
	serviceName = regexp.MustCompile(`^[A-Za-z0-9]([A-Za-z0-9_-]*[A-Za-z0-9])?$`)
	baseName    = regexp.MustCompile(`^[A-Za-z0-9_][A-Za-z0-9._+-]*$`)
	userName    = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_-]{0,30}$|^[0-9]{1,9}$`)
	envName     = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_]*$`)
)

// maxName keeps $XDG_RUNTIME_DIR/zdt/NAME/control.sock within sockaddr_un for every uid.
const maxName = 64

// maxText bounds one argument or variable; the kernel's limit is 128 KiB for one.
const maxText = 64 << 10

// Validate checks everything that goes into the units and returns all that is
// wrong with it, joined; each part is an *InputError.
func (s Spec) Validate() error {
	var errs []error
	add := func(err error) {
		if err != nil {
			errs = append(errs, err)
		}
	}
	if err := s.validateNames(); err != nil {
		add(err)
		s.Name, s.Instances = "name", nil // the paths made from it shall not be complained about as well
	}
	s = s.withDefaults()
	add(validateText("description", s.Description, 1024))
	if strings.HasSuffix(s.Description, `\`) {
		add(refuse("description", s.Description, "systemd joins a line that ends with a backslash to the next one", "end it with something else"))
	}
	if !baseName.MatchString(s.Exec) || len(s.Exec) > 128 {
		add(refuse("program", s.Exec, "not a plain file name", "rename the file; letters, digits, . _ + and - are fine"))
	}
	add(s.validateCommands())
	add(s.validateEnvironment())
	add(s.validatePaths())
	add(s.validateListen())
	add(s.validateIdentity())
	add(s.validatePolicy())
	switch s.Runtime {
	case RuntimeHelper:
		for _, flag := range s.Run {
			add(validateRun(flag))
		}
	case RuntimeLibrary:
		if len(s.Run) > 0 {
			add(refuse("flag of zdt run", s.Run[0], "the program hands over by itself and not under zdt run", "use --runtime helper, or leave the flag out"))
		}
	default:
		add(refuse("runtime", string(s.Runtime), "unknown", "use library or helper"))
	}
	if s.SystemdVersion < 0 || s.SystemdVersion > 0 && s.SystemdVersion < MinSystemd {
		add(refuse("systemd version", fmt.Sprint(s.SystemdVersion), fmt.Sprintf("older than %d", MinSystemd), "use a newer distribution"))
	}
	return errors.Join(errs...)
}

// validateNames checks the name, and those of the instances of a template.
func (s Spec) validateNames() error {
	if !s.Template() {
		if template, _, ok := SplitName(s.Name); ok {
			return refuse("name", s.Name, "an instance has no units of its own", "make the template, "+template)
		}
		if len(s.Instances) > 0 {
			return refuse("name", s.Name, "only a template has instances", "name it "+s.Name+"@")
		}
		return ValidateName(s.Name)
	}
	errs := []error{ValidateTemplate(s.Name)}
	if errs[0] == nil {
		for _, name := range s.Services() {
			errs = append(errs, ValidateName(name))
		}
	}
	return errors.Join(errs...)
}

// ValidateName checks the name of a service, NAME or, of an instance of a template, NAME@INSTANCE. The error is an
// *InputError.
func ValidateName(name string) error {
	prefix, instance, instantiated := strings.Cut(name, "@")
	switch {
	case name == "":
		return refuse("name", name, "empty", "name the service, for example web")
	case strings.HasSuffix(name, ".service") || strings.HasSuffix(name, ".socket"):
		return refuse("name", name, "this is a unit's name", "use "+strings.TrimSuffix(strings.TrimSuffix(name, ".service"), ".socket"))
	case instantiated && instance == "" && serviceName.MatchString(prefix):
		return refuse("name", name, "this is a template", "name one of its instances, such as "+name+"1")
	case instantiated && strings.HasPrefix(prefix, "zdt-"):
		return refuse("name", name, "units that are called so are zdt's own", "choose another name")
	case !serviceName.MatchString(prefix) || instantiated && !serviceName.MatchString(instance):
		return refuse("name", name, "only letters, digits, - and _ are possible, with a letter or digit first and last", "choose another name")
	case len(name) > maxName:
		return refuse("name", name, fmt.Sprintf("longer than %d characters", maxName), "choose a shorter name")
	}
	return nil
}

// validateText refuses what cannot be shown or stored in a unit.
func validateText(field, s string, limit int) error {
	switch {
	case !utf8.ValidString(s):
		return refuse(field, s, "not UTF-8", "")
	case strings.ContainsFunc(s, unicode.IsControl):
		return refuse(field, s, "has a newline or another control character", "put such text into a file the program reads")
	case len(s) > limit:
		return refuse(field, s[:32]+"...", fmt.Sprintf("longer than %d bytes", limit), "")
	}
	return nil
}

func (s Spec) validateCommands() error {
	var errs []error
	total := 0
	for _, a := range append(append([]string{}, s.Args...), s.StartProbe...) {
		errs = append(errs, validateText("argument", a, maxText))
		total += len(a) + 1
	}
	if total > 2*maxText {
		errs = append(errs, refuse("arguments", fmt.Sprintf("(%d bytes)", total), "too long for one command line", "use a configuration file"))
	}
	if len(s.StartProbe) > 0 {
		errs = append(errs, validatePath("start probe", s.StartProbe[0]))
	}
	return errors.Join(errs...)
}

func (s Spec) validateEnvironment() error {
	var errs []error
	for _, kv := range s.Environment {
		name, _, ok := strings.Cut(kv, "=")
		switch {
		case !ok || !envName.MatchString(name):
			errs = append(errs, refuse("environment", kv, "not NAME=VALUE", ""))
		case strings.HasPrefix(name, "ZDT_") || strings.HasPrefix(name, "LISTEN_") || name == "NOTIFY_SOCKET" || name == "RUNTIME_DIRECTORY":
			errs = append(errs, refuse("environment", kv, "zdt or systemd sets this itself", "set ZDT_ variables in a drop-in"))
		default:
			errs = append(errs, validateText("environment", kv, maxText))
		}
	}
	return errors.Join(errs...)
}

// validatePath checks a path that is the first word of a command, or part of it: there
// systemd takes no quotes and expands no $.
func validatePath(field, p string) error {
	if err := validateText(field, p, 1024); err != nil {
		return err
	}
	switch {
	case !strings.HasPrefix(p, "/"):
		return refuse(field, p, "not an absolute path", "give the whole path")
	case path.Clean(p) != p:
		return refuse(field, p, "not a plain path", "write "+path.Clean(p))
	case strings.ContainsAny(p, `"'\$`):
		return refuse(field, p, `systemd takes no ", ', \ or $ in the path of a program`, "choose another directory")
	}
	return nil
}

// hidden are the directories the sandbox of a system service replaces by empty ones.
var hidden = []string{"/home", "/root", "/run/user", "/tmp", "/var/tmp", "/dev"}

func (s Spec) validatePaths() error {
	var errs []error
	for _, d := range []struct {
		field, path string
		runs        bool // must be visible from within the sandbox
	}{
		{"state directory", fill(s.StateDir, s.samples()[0]), true},
		{"unit directory", s.UnitDir, false},
		{"path of zdt", s.Zdt, true},
	} {
		if err := validatePath(d.field, d.path); err != nil {
			errs = append(errs, err)
			continue
		}
		for _, h := range hidden {
			if d.runs && !s.UserManager && strings.HasPrefix(d.path+"/", h+"/") {
				errs = append(errs, refuse(d.field, d.path, "the service's sandbox hides "+h+" (ProtectHome=, PrivateTmp=)", "install it elsewhere, for example in /usr/local/bin"))
			}
		}
	}
	return errors.Join(errs...)
}

func (s Spec) validateListen() error {
	var errs []error
	type socket struct {
		Listen
		instance string
	}
	var all []socket
	for _, instance := range s.samples() {
		for _, written := range s.Listen {
			l := written.at(instance)
			if err := l.validate(l.String()); err != nil {
				errs = append(errs, err)
				continue
			}
			if l.local() && strings.HasPrefix(l.Addr, "/run/zdt/"+fill(s.self(), instance)+"/") {
				errs = append(errs, refuse("listen", l.String(), "that directory is removed whenever the service stops", "use a path such as /run/"+s.self()+".sock"))
			}
			for _, other := range all {
				switch {
				case !l.collides(other.Listen):
				case instance != other.instance:
					errs = append(errs, refuse("listen", written.String(), fmt.Sprintf("instances %s and %s take the same address", other.instance, instance), "put %i, which stands for the instance, into the address"))
				default:
					errs = append(errs, refuse("listen", l.String(), "takes the same address as "+other.String(), "a port without an address covers IPv6 and IPv4; leave one out"))
				}
			}
			all = append(all, socket{l, instance})
		}
		if len(errs) > 0 {
			break // of the other instances the same would be said
		}
	}
	return errors.Join(errs...)
}

func (s Spec) validateIdentity() error {
	var errs []error
	if s.UserManager && (s.User != "" || s.Group != "" || s.DynamicUser) {
		errs = append(errs, refuse("user", s.User, "a user manager runs everything as its own user", "leave the user out"))
	}
	if s.DynamicUser && (s.User != "" || s.Group != "") {
		errs = append(errs, refuse("user", s.User, "a dynamic user is made up by systemd", "give a user or ask for a dynamic one, not both"))
	}
	if s.Group != "" && s.User == "" {
		errs = append(errs, refuse("group", s.Group, "given without a user", "give the user, too"))
	}
	for _, n := range []struct{ field, name string }{{"user", s.User}, {"group", s.Group}} {
		switch {
		case n.name == "":
		case !userName.MatchString(n.name) || n.name == "65535":
			errs = append(errs, refuse(n.field, n.name, "not a name or number systemd accepts", ""))
		case n.name == "nobody" || n.name == "nogroup" || n.name == "65534":
			errs = append(errs, refuse(n.field, n.name, "shared by unrelated programs, which could then reach control.sock", "use --dynamic-user"))
		}
	}
	return errors.Join(errs...)
}

func (s Spec) validatePolicy() error {
	var errs []error
	for _, h := range s.Health {
		errs = append(errs, validateHealth(fill(h, s.samples()[0])))
	}
	for _, d := range []struct {
		field string
		value time.Duration
		least time.Duration
	}{
		{"ready timeout", s.ReadyTimeout, time.Millisecond},
		{"drain timeout", s.DrainTimeout, time.Millisecond},
		{"bake", s.Bake, 0},
	} {
		errs = append(errs, validateSpan(d.field, d.value, d.least))
	}
	errs = append(errs, validateOnFailure(s.OnFailure))
	return errors.Join(errs...)
}

// runFlag is a flag of zdt run with its value in the same word: in any other form the
// end of the flags could not be told without knowing all of them.
var runFlag = regexp.MustCompile(`^--[a-z][a-z-]*=`)

// validateRun checks the form of a flag of zdt run, which knows the meaning.
func validateRun(flag string) error {
	switch {
	case !runFlag.MatchString(flag):
		return refuse("flag of zdt run", flag, "not of the form --NAME=VALUE", "")
	case strings.TrimSpace(flag) != flag || strings.HasSuffix(flag, `\`):
		return refuse("flag of zdt run", flag, "begins or ends with a space, or ends with a backslash", "") // [X-Zdt] could not keep it
	}
	return validateText("flag of zdt run", flag, maxText)
}

func validateSpan(field string, d, least time.Duration) error {
	if d < least || d > maxSpan {
		return refuse(field, d.String(), "not between "+formatSpan(least)+" and "+formatSpan(maxSpan), "")
	}
	return nil
}

func validateOnFailure(f OnFailure) error {
	if f != OnFailureRollback && f != OnFailureFreeze {
		return refuse("on failure", string(f), "unknown", "use rollback or freeze")
	}
	return nil
}

func validateHealth(s string) error {
	const fix = "give an URL such as http://127.0.0.1:8080/healthz"
	if err := validateText("health", s, 2048); err != nil {
		return err
	}
	u, err := url.Parse(s)
	switch {
	case strings.ContainsFunc(s, unicode.IsSpace) || strings.HasSuffix(s, `\`):
		return refuse("health", s, "has a space or ends with a backslash", fix)
	case err != nil || u.Host == "":
		return refuse("health", s, "not a URL", fix)
	case u.Scheme != "http" && u.Scheme != "https":
		return refuse("health", s, "only http and https can be asked", fix)
	}
	return nil
}
