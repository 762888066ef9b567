package dbusctl

import (
	"context"
	"errors"
	"fmt"
	"math"
	"os"
	"reflect"
	"strings"
	"time"

	"github.com/godbus/dbus/v5"
	"golang.org/x/sys/unix"
)

// Property is a setting of a transient unit. Its name is that of D-Bus, which
// mostly is the one of unit files; spans of time end in USec there (TimeoutStopUSec for
// TimeoutStopSec=). systemd refuses a name it does not know and a value of
// another type than it expects, and then makes no unit.
//
// Values are taken literally: there are no specifiers (%n) and no variables.
type Property struct {
	name  string
	value dbus.Variant
	// of descriptors, which are duplicated first:
	files  []*os.File
	passed func([]int) dbus.Variant
}

// Name is the property's name on D-Bus.
func (p Property) Name() string { return p.name }

// Text is a setting with one word or text: Type, User, WorkingDirectory,
// KillMode, Restart, Slice, StandardOutput (without "file:"), ProtectSystem …
func Text(name, value string) Property { return Property{name: name, value: dbus.MakeVariant(value)} }

// Flag is a setting that is on or off: DynamicUser, PrivateTmp, SendSIGHUP,
// RemainAfterExit …
func Flag(name string, on bool) Property { return Property{name: name, value: dbus.MakeVariant(on)} }

// List is a setting that takes several words: Environment (KEY=VALUE each),
// After, Wants, RuntimeDirectory, ReadWritePaths …
func List(name string, values ...string) Property {
	return Property{name: name, value: dbus.MakeVariant(append([]string{}, values...))}
}

// Span is a length of time: TimeoutStartUSec, TimeoutStopUSec, RuntimeMaxUSec
// … [Infinity] switches a limit off.
func Span(name string, d time.Duration) Property {
	usec := uint64(max(d, 0) / time.Microsecond)
	if d == Infinity {
		usec = math.MaxUint64
	}
	return Property{name: name, value: dbus.MakeVariant(usec)}
}

// Int is a signed number of 32 bits: KillSignal, Nice, OOMScoreAdjust …
func Int(name string, n int32) Property { return Property{name: name, value: dbus.MakeVariant(n)} }

// Uint is an unsigned number of 32 bits: UMask, StartLimitBurst …
func Uint(name string, n uint32) Property { return Property{name: name, value: dbus.MakeVariant(n)} }

// Size is an unsigned number of 64 bits: MemoryMax, TasksMax, LimitNOFILE,
// CapabilityBoundingSet …
func Size(name string, n uint64) Property { return Property{name: name, value: dbus.MakeVariant(n)} }

// Command is a command line of the unit: ExecStart, ExecStartPre, ExecStop …
// The program path is absolute; argv has argv[0] in it. A second Command of the
// same name is one more line. Nothing in argv is expanded.
func Command(name, path string, argv ...string) Property {
	// The Ex form takes the flag of the prefix ":"; without it $NAME in an
	// argument would become a variable's value (since 243).
	type line struct {
		Path  string
		Argv  []string
		Flags []string
	}
	return Property{name: name + "Ex", value: dbus.MakeVariant([]line{{path, argv, []string{"no-env-expand"}}})}
}

// File is a descriptor for one of the standard streams: StandardInputFileDescriptor,
// StandardOutputFileDescriptor, StandardErrorFileDescriptor. The program shares it as it is: an end
// of os.Pipe does not block, which cat(1), say, takes for an error. The file stays the caller's, and must
// stay open until StartTransient returns.
func File(name string, f *os.File) Property {
	return Property{name: name, files: []*os.File{f}, passed: func(dups []int) dbus.Variant {
		return dbus.MakeVariant(dbus.UnixFD(dups[0]))
	}}
}

// NamedFile is a descriptor with its name in LISTEN_FDNAMES.
type NamedFile struct {
	Name string
	File *os.File
}

// ExtraFiles passes descriptors the way sockets are passed, from 3 on, with
// LISTEN_FDS and LISTEN_FDNAMES. It takes systemd 254 or later: 252 refuses the
// unit, with an error that names ExtraFileDescriptors. The files stay the caller's, and must stay open
// until StartTransient returns.
func ExtraFiles(files ...NamedFile) Property {
	p := Property{name: "ExtraFileDescriptors"}
	for _, f := range files {
		p.files = append(p.files, f.File)
	}
	type entry struct {
		FD   dbus.UnixFD
		Name string
	}
	p.passed = func(dups []int) dbus.Variant {
		var list []entry
		for i, fd := range dups {
			list = append(list, entry{dbus.UnixFD(fd), files[i].Name})
		}
		return dbus.MakeVariant(list)
	}
	return p
}

// CopyProperties reads settings of the unit called name as systemd has them, for a
// transient unit that is to have the same: User, ProtectSystem, SystemCallFilter, whatever
// their types. Names that this systemd does not have, or that are not a setting of the unit's type, are
// left out.
//
// Not every property can be written as it reads. ExecStart cannot (it comes with how the command
// went), and some of what systemd works out itself, such as ControlGroup, is no setting at all.
func (m *Manager) CopyProperties(ctx context.Context, name string, properties ...string) ([]Property, error) {
	const op = "read"
	u, err := m.Unit(ctx, name)
	if err != nil {
		return nil, err
	}
	kind := name[strings.LastIndexByte(name, '.')+1:]
	interfaces := []string{destination + "." + strings.ToUpper(kind[:1]) + kind[1:], destination + ".Unit"}
	var out []Property
	for _, p := range properties {
		v, ok, err := m.property(ctx, unitPath(u.Name), p, interfaces)
		if err != nil {
			return nil, explain(ctx, op+" "+p+" of", name, err)
		}
		if !ok {
			continue
		}
		if v, err = writable(v); err != nil {
			return nil, &Error{Op: op + " " + p + " of", Unit: name, Err: err}
		}
		out = append(out, Property{name: p, value: v})
	}
	return out, nil
}

// property reads one property from the first interface that has it. Get is the call that leaves the
// type as it was on the wire; of GetAll the library loses it.
func (m *Manager) property(ctx context.Context, path dbus.ObjectPath, name string, interfaces []string) (v dbus.Variant, ok bool, err error) {
	for _, i := range interfaces {
		err := m.call(ctx, reading, path, propsIface+".Get", []any{&v}, i, name)
		var reply dbus.Error
		if errors.As(err, &reply) && (reply.Name == busIface+".Error.UnknownProperty" || reply.Name == busIface+".Error.UnknownInterface") {
			continue
		}
		return v, err == nil, err
	}
	return v, false, nil
}

// writable is v as it can be sent: the library reads a struct as a slice, which it would
// write as an array of variants.
func writable(v dbus.Variant) (dbus.Variant, error) {
	kind, rest, err := kindOf(v.Signature().String())
	if err != nil || rest != "" {
		return v, fmt.Errorf("type %s is not understood", v.Signature())
	}
	to := reflect.New(kind)
	if err := dbus.Store([]any{v.Value()}, to.Interface()); err != nil {
		return v, err
	}
	return dbus.MakeVariantWithSignature(to.Elem().Interface(), v.Signature()), nil
}

// kindOf is the Go type for the first complete type of a D-Bus signature, without dictionaries and
// variants, which no setting of a unit has.
func kindOf(signature string) (kind reflect.Type, rest string, err error) {
	if signature == "" {
		return nil, "", errors.New("signature ends early")
	}
	basic := map[byte]reflect.Type{
		'b': reflect.TypeFor[bool](), 'y': reflect.TypeFor[byte](), 's': reflect.TypeFor[string](), 'o': reflect.TypeFor[dbus.ObjectPath](),
		'i': reflect.TypeFor[int32](), 'u': reflect.TypeFor[uint32](), 'x': reflect.TypeFor[int64](), 't': reflect.TypeFor[uint64](), 'd': reflect.TypeFor[float64](),
	}
	first, rest := signature[0], signature[1:]
	switch {
	case basic[first] != nil:
		return basic[first], rest, nil
	case first == 'a':
		kind, rest, err = kindOf(rest)
		if err != nil {
			return nil, "", err
		}
		return reflect.SliceOf(kind), rest, nil
	case first == '(':
		var fields []reflect.StructField
		for !strings.HasPrefix(rest, ")") {
			if kind, rest, err = kindOf(rest); err != nil {
				return nil, "", err
			}
			fields = append(fields, reflect.StructField{Name: fmt.Sprintf("F%d", len(fields)), Type: kind})
		}
		return reflect.StructOf(fields), rest[1:], nil
	}
	return nil, "", fmt.Errorf("no setting has the type %q", first)
}

// duplicate returns copies of files. On error it returns those that it has made.
func duplicate(files []*os.File) ([]int, error) {
	var dups []int
	for _, f := range files {
		raw, err := f.SyscallConn()
		if err != nil {
			return dups, err
		}
		fd, dupErr := -1, error(nil)
		if err := raw.Control(func(from uintptr) {
			fd, dupErr = unix.FcntlInt(from, unix.F_DUPFD_CLOEXEC, 0)
		}); err != nil {
			return dups, err
		}
		if dupErr != nil {
			return dups, fmt.Errorf("duplicate %s: %w", f.Name(), dupErr)
		}
		dups = append(dups, fd)
	}
	return dups, nil
}
