package cmd

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/zdt-dev/zdt/dbusctl"
	"github.com/zdt-dev/zdt/internal/redact"
)

// bugreportDoc is the document of zdt bugreport.
type bugreportDoc struct {
	Schema   string   `json:"schema"`  // zdt.bugreport/1
	Outcome  string   `json:"outcome"` // written
	ExitCode ExitCode `json:"exit_code"`
	Changed  bool     `json:"changed"`           // always false: of the services
	File     string   `json:"file"`              // the archive
	SHA256   string   `json:"sha256"`            // of the archive
	Size     int      `json:"size"`              // bytes, of the archive
	Services []string `json:"services"`          // that it is about
	Files    []filed  `json:"files"`             // what is in it, besides the MANIFEST
	Missing  []string `json:"missing,omitempty"` // what could not be read, and why
}

// filed is a file of a bug report.
type filed struct {
	Path string `json:"path"`
	Size int    `json:"size"` // bytes
	// Redacted counts what was taken out, by what it was known by.
	Redacted map[redact.Kind]int `json:"redacted,omitempty"`
	Cut      []string            `json:"cut,omitempty"` // what was left out because there is too much of it

	data []byte
}

// secrets is how many were taken out of the file.
func (f filed) secrets() (n int) {
	for _, c := range f.Redacted {
		n += c
	}
	return n
}

func newBugreportCmd(f *factory) *cobra.Command {
	var file string
	cmd := &cobra.Command{
		Use:   "bugreport [NAME...] [--file FILE]",
		Short: "Put what a helper has to see into one archive, without secrets",
		Long: `Put into one archive what somebody who is to help has to see of services, or of
all of them: units and their properties, what zdt check, status and doctor say,
upgrades and their journal, releases without their programs, and the host.

Secrets become "«redacted 12 bytes»": values of environment variables and
credentials, passwords and tokens in command lines, URLs and log lines, and
what looks like a key. No rule finds all of them: read it before you pass it on.

Works as any user, with broken services and without systemd: what cannot be
read is named. Changes nothing and takes no lock.`,
		Example: `  zdt bugreport web
  zdt bugreport --file /tmp/report.tar.gz
  tar xzOf zdt-bugreport-*.tar.gz | less`,
		Args:              cobra.ArbitraryArgs,
		ValidArgsFunction: f.completeSets(true),
	}
	cmd.Flags().StringVar(&file, "file", "", "write it to `FILE`, which must not exist yet")
	return f.command(cmd, func(ctx context.Context, args []string) error {
		return runBugreport(ctx, f, args, file)
	}, ExitOK, ExitNoService, ExitRefused, ExitUsage, ExitUnavailable, ExitNotAuthorised, ExitInt, ExitTerm)
}

func runBugreport(ctx context.Context, f *factory, args []string, file string) error {
	p, err := f.paths()
	if err != nil {
		return err
	}
	b := &bugreport{f: f, paths: p}
	bus, err := f.dialSystemd(ctx, f.globals.user)
	if err != nil {
		b.lacks("systemd", err)
	} else {
		defer bus.Close()
		b.bus = bus
	}
	names, err := servicesOf(p, args)
	if err != nil {
		return err
	}
	if len(args) == 0 {
		if names, err = p.Services(); err != nil {
			b.lacks("the list of services", err)
		}
	}
	slices.Sort(names)
	names = slices.Compact(names)
	for _, name := range names {
		if err := b.known(ctx, name); err != nil {
			return err
		}
	}
	if err := b.collect(ctx, names); err != nil {
		return err
	}
	made, host := f.now().UTC(), hostName()
	root := "zdt-bugreport-" + host + "-" + made.Format("20060102T150405Z")
	if file == "" {
		file = root + ".tar.gz"
	}
	doc := bugreportDoc{Schema: "zdt.bugreport/1", Outcome: "written", Services: append([]string{}, names...), Files: b.files, Missing: b.missing}
	if doc.File, err = filepath.Abs(file); err != nil {
		return err
	}
	manifest := filed{Path: "MANIFEST", data: []byte(manifestText(doc, root, made))}
	archive, err := pack(root, append([]filed{manifest}, b.files...), made)
	if err != nil {
		return err
	}
	doc.SHA256, doc.Size = checksum(archive), len(archive)
	if err := writeNew(doc.File, archive); err != nil {
		if errors.Is(err, fs.ErrExist) {
			return fail(ExitRefused, "name another one with --file", "write the report: %w", err)
		}
		return fmt.Errorf("write the report: %w", err)
	}
	if f.globals.output != outputText {
		return f.print(doc)
	}
	_, err = f.Out.Write([]byte(bugreportText(f.outStyle(), doc)))
	return err
}

// bugreport is one in the making.
type bugreport struct {
	f       *factory
	bus     systemd // nil: cannot be reached
	paths   Paths
	secrets redact.Redactor
	files   []filed
	missing []string
}

// lacks notes what could not be read. It is text like any other.
func (b *bugreport) lacks(what string, err error) {
	b.missing = append(b.missing, clean(b.secrets.Text(fmt.Sprintf("%s: %v", what, err))))
	b.secrets.Take()
}

// add puts a file into the report, of which the secrets were taken out since the last one.
func (b *bugreport) add(path string, data []byte, cut ...string) {
	b.files = append(b.files, filed{Path: path, Size: len(data), Redacted: b.secrets.Take(), Cut: cut, data: data})
}

// known is an error for a service that there is nothing of.
func (b *bugreport) known(ctx context.Context, name string) error {
	_, err := os.Stat(b.paths.disk(b.paths.StateDir(name)))
	if err == nil {
		return nil
	}
	if b.bus == nil {
		return &Failure{Code: ExitUnavailable, Err: fmt.Errorf("zdt manages no service %s, and systemd cannot be asked for it", name), Details: b.missing}
	}
	if _, err := b.bus.Unit(ctx, name+".service"); errors.Is(err, dbusctl.ErrNoUnit) {
		return &Failure{Code: ExitNoService, Err: err, Hint: b.f.zdt() + " bugreport, without a name, is about all services and the host"}
	}
	return nil // whatever else is wrong with it belongs into the report
}

// collect reads everything, learns which secrets there are, and writes it down without them.
func (b *bugreport) collect(ctx context.Context, names []string) error {
	var services []*reported
	for _, name := range names {
		services = append(services, b.read(ctx, name))
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
	}
	b.secrets.Learn(func() {
		for _, s := range services {
			s.configuration(&b.secrets)
		}
	})
	b.host(ctx)
	for _, s := range services {
		b.service(ctx, s)
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
	}
	return nil
}

// hostName is the name of the host as a part of a file name.
func hostName() string {
	name, _ := os.Hostname()
	name = strings.Map(func(c rune) rune {
		if c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || c == '-' || c == '.' {
			return c
		}
		return '-'
	}, name)
	if name = strings.Trim(name, "-."); name == "" {
		return "host"
	}
	return name[:min(len(name), 64)]
}
