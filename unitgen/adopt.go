package unitgen

import (
	"errors"
	"fmt"
	"path"
	"strings"
	"time"

	"github.com/zdt-dev/zdt/templates"
)

// AdoptFile is the base name of the drop-in that brings a service under zdt. Drop-ins are read in the order of their
// names, and this one has to come behind the override.conf of systemctl edit, which may say how the service was started.
const AdoptFile = "zdt.conf"

// An Adoption is what zdt adds to a service that somebody else has written.
type Adoption struct {
	Name    string
	Zdt     string // absolute
	Runtime Runtime

	// Prefix and Command are the value of ExecStart= as it is to be, without zdt run: special characters (systemd.service(5),
	// "special executable prefixes"), and the program with its arguments, written as in a unit.
	Prefix, Command string
	Exec            string   // base name of the program
	Run             []string // flags of zdt run
	Bind            []Listen // what zdt run binds when it has not inherited it; any other program does so itself
	Sockets         []string // the socket units it has

	Health                           []string
	ReadyTimeout, DrainTimeout, Bake time.Duration

	// KeepMode: the service has runtime directories of its own, with a mode that somebody may rely on.
	KeepMode bool

	// What of the service has to change, and would not have to for every one.
	PIDFile, RemainAfterExit, ExitType, NonBlocking, Restart bool
	TimeoutStart, TimeoutStop                                bool

	Store int // FileDescriptorStoreMax=; 0: as it is
}

// DropIn is the file, for a unit directory.
func (a Adoption) DropIn(unitDir string) (File, error) {
	if err := a.validate(); err != nil {
		return File{}, err
	}
	a.ReadyTimeout, a.DrainTimeout = or(a.ReadyTimeout, DefaultReadyTimeout), or(a.DrainTimeout, DefaultDrainTimeout)
	none := Spec{}
	view := struct {
		Adoption
		Format                                 int
		Helper                                 bool
		ExecStart, ExecReload, ExecStop        string
		ReadyTimeout, DrainTimeout, Bake       string
		TimeoutStart, TimeoutStop, RuntimeMode string
	}{
		Adoption: a, Format: formatVersion, Helper: a.Runtime == RuntimeHelper,
		ExecStart:    a.Prefix + a.Command,
		ExecReload:   none.command([]string{a.Zdt, "handoff"}),
		ExecStop:     none.command([]string{a.Zdt, "stop"}),
		ReadyTimeout: formatSpan(a.ReadyTimeout), DrainTimeout: formatSpan(a.DrainTimeout),
	}
	if view.Helper {
		words := append([]string{a.Zdt, "run"}, a.Run...)
		for _, l := range a.Bind {
			words = append(words, "--listen="+l.String())
		}
		view.ExecStart = a.Prefix + none.command(words) + " -- " + a.Command
	}
	if a.Bake > 0 {
		view.Bake = formatSpan(a.Bake)
	}
	if a.TimeoutStart {
		view.TimeoutStart = formatSpan(a.ReadyTimeout + startMargin)
	}
	if a.TimeoutStop {
		view.TimeoutStop = formatSpan(a.DrainTimeout + stopMargin)
	}
	if !a.KeepMode {
		view.RuntimeMode = "0700"
	}
	data, err := render("adopt", templates.Adopt(), view)
	if err != nil {
		return File{}, err
	}
	unit := a.Name + ".service"
	return File{Name: unit + ".d/" + AdoptFile, Path: path.Join(unitDir, unit+".d", AdoptFile), Mode: 0o644, Data: data}, nil
}

func or(d, otherwise time.Duration) time.Duration {
	if d == 0 {
		return otherwise
	}
	return d
}

// validate checks what is not taken from the unit, and so was not checked by systemd.
func (a Adoption) validate() error {
	errs := []error{ValidateName(a.Name)}
	if !path.IsAbs(a.Zdt) {
		errs = append(errs, refuse("zdt", a.Zdt, "not an absolute path", ""))
	}
	if !baseName.MatchString(a.Exec) {
		errs = append(errs, refuse("program", a.Exec, "not a plain file name", "letters, digits, . _ + and - are fine"))
	}
	if strings.ContainsAny(a.Command, "\n\r\x00") || a.Command == "" || continues(a.Command) {
		errs = append(errs, refuse("command", a.Command, "it does not fit on one line of a unit", ""))
	}
	for _, flag := range a.Run {
		errs = append(errs, validateRun(flag))
	}
	s := Spec{Name: a.Name, Exec: a.Exec, Zdt: a.Zdt, Runtime: a.Runtime, Run: a.Run, Health: a.Health, ReadyTimeout: a.ReadyTimeout, DrainTimeout: a.DrainTimeout, Bake: a.Bake}.withDefaults()
	errs = append(errs, s.validatePolicy())
	return errors.Join(errs...)
}

// SplitCommand takes the value of an ExecStart= apart: its prefix, its first word as it is written, and the rest with the space
// before it.
func SplitCommand(value string) (prefix, program, rest string, err error) {
	bare := strings.TrimLeft(value, "@-:+!|")
	prefix = value[:len(value)-len(bare)]
	end := strings.IndexAny(bare, " \t")
	if bare != "" && (bare[0] == '"' || bare[0] == '\'') {
		if end = strings.IndexByte(bare[1:], bare[0]); end < 0 {
			return "", "", "", fmt.Errorf("a quote of %q is not closed", value)
		}
		end += 2
	}
	if end < 0 {
		end = len(bare)
	}
	if end == 0 {
		return "", "", "", fmt.Errorf("%q names no program", value)
	}
	return prefix, bare[:end], bare[end:], nil
}

// QuoteArguments writes arguments of a command as the rest of an Exec setting, with a space before each.
func QuoteArguments(args []string) string {
	var b strings.Builder
	for _, arg := range args {
		b.WriteString(" " + quoteArg(arg))
	}
	return b.String()
}
