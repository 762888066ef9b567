package cmd

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"slices"

	"github.com/spf13/cobra"

	"github.com/zdt-dev/zdt/release"
	"github.com/zdt-dev/zdt/unitgen"
)

// sourceOptions are the flags that say what becomes a release, and how one can
// be sure of it. zdt stage has them, and zdt upgrade.
type sourceOptions struct {
	Binary    string
	SHA256    string
	Signature string
	Exec      string // the program within an archive or a directory
	Why       string
}

// stageDoc is the document of zdt stage.
type stageDoc struct {
	Schema   string     `json:"schema"`  // zdt.stage/1
	Outcome  string     `json:"outcome"` // staged, verified (it was there, its signature is noted), unchanged
	ExitCode ExitCode   `json:"exit_code"`
	Changed  bool       `json:"changed"`
	Service  string     `json:"service"`
	Release  releaseDoc `json:"release"`
}

func newStageCmd(f *factory) *cobra.Command {
	var o sourceOptions
	cmd := &cobra.Command{
		Use:   "stage NAME --binary FILE [FLAGS]",
		Short: "Put a new program into the release store, without using it",
		Long: `Put a new program into the release store and print the ID of its release.
Nothing else changes: zdt upgrade --release ID uses it later, without FILE.

FILE is a program, a directory, or a .tar or .tar.gz of one. A directory
becomes a release with all its files; the unit starts its program as
current/PROGRAM, wherever it lies in it. The same content is the same release,
whenever and from wherever it is staged.

With --sha256 or --signature nothing but the file that was meant is taken.
Signatures are those of minisign, and of ssh-keygen -Y sign -n zdt, by the keys
in /etc/zdt/keys. With RequireSignature=yes in [X-Zdt] of the unit there has to
be one; FILE.minisig and FILE.sig are then found by themselves.`,
		Example: `  zdt stage web --binary ./web-1.4.3 --sha256 "$SUM"
  zdt stage web --binary web-1.4.3.tar.gz --signature web-1.4.3.tar.gz.minisig
  id=$(zdt stage -q web --binary dist/ --exec bin/web)`,
		Args:              arguments(1, 1, "the NAME of the service"),
		ValidArgsFunction: f.completeServices(1),
	}
	flags := cmd.Flags()
	flags.StringVar(&o.Binary, "binary", "", "the new program: a `FILE`, a directory, or a tar of one")
	flags.StringVar(&o.Exec, "exec", "", "the program in a directory or tar, a `PATH` in it (default: the file with the program's name)")
	flags.StringVar(&o.SHA256, "sha256", "", "refuse a FILE with a checksum other than `HEX`")
	flags.StringVar(&o.Signature, "signature", "", "the detached signature of FILE, a `FILE`")
	flags.StringVarP(&o.Why, "message", "m", "", "why: a `TEXT` for the record of the release")
	return f.command(cmd, func(ctx context.Context, args []string) error {
		name, err := serviceName(args[0])
		if err != nil {
			return err
		}
		if o.Binary == "" {
			return usage("give the program with --binary FILE", "stage: --binary is missing")
		}
		return runStage(ctx, f, name, o)
	}, ExitOK, ExitUnexpected, ExitRefused, ExitUsage, ExitUnavailable, ExitNotAuthorised, ExitInt, ExitTerm)
}

func runStage(ctx context.Context, f *factory, name string, o sourceOptions) error {
	store, policy, err := f.openStaging(ctx, name)
	if err != nil {
		return err
	}
	defer store.Close()
	options, err := f.stageOptions(policy, o)
	if err != nil {
		return refused(err)
	}
	if err := f.blockers(ctx, name, o.Binary); err != nil {
		return refused(err)
	}
	r, err := store.Stage(ctx, o.Binary, options)
	if err != nil {
		return refused(err)
	}
	// Of an archive only now there is a program to look at.
	if err := f.blockers(ctx, name, r.Path); err != nil {
		f.say("%s %v", f.errStyle().warn.Render("warning:"), err)
	}
	doc := stageDoc{Schema: "zdt.stage/1", Outcome: "unchanged", Service: name, Changed: r.New || r.Noted, Release: describeStaged(r, "")}
	what := "is there already"
	switch {
	case r.New:
		doc.Outcome, what = "staged", "staged"
	case r.Noted:
		doc.Outcome, what = "verified", "was there; its signature is noted"
	}
	if f.globals.output != outputText {
		return f.print(doc)
	}
	st := f.errStyle()
	width := math.MaxInt
	if f.ErrTTY {
		width = f.Width()
	}
	f.say("%s", st.line(width, append([]string{fmt.Sprintf("%s %s: %s %s", st.good.Render(st.marks.ok), st.bold.Render(name), stagedName(r), what)}, releaseFacts(r)...)))
	f.say("%s %s", st.note.Render("next:"), f.zdt()+" upgrade "+name+" --release "+shortID(r.ID))
	_, err = fmt.Fprintln(f.Out, r.ID)
	return err
}

// refused is an error before anything was changed, unless it is of a kind that
// has its own exit code.
func refused(err error) error {
	if codeOf(err) != ExitUnexpected {
		return err
	}
	return &Failure{Code: ExitRefused, Err: err, Hint: hintOf(err)}
}

// stageOptions are what package release is told about a source: the flags, the
// policy of the unit, the keys of the host.
func (f *factory) stageOptions(policy unitgen.Policy, o sourceOptions) (release.StageOptions, error) {
	who := release.Identify()
	options := release.StageOptions{
		SHA256: o.SHA256, Exec: o.Exec, Signature: o.Signature, Require: release.Require(policy.RequireSignature), Who: &who, Why: o.Why,
	}
	if options.Signature == "" && options.Require.Needed() {
		options.Signature = besides(o.Binary, options.Require)
	}
	if options.Signature == "" && !options.Require.Needed() {
		return options, nil
	}
	dir, err := f.keysDir()
	if err != nil {
		return options, err
	}
	options.Keys, err = release.ReadKeys(dir)
	return options, err
}

// besides is the signature that lies beside a file, as the tools name it.
func besides(file string, q release.Require) string {
	names := []string{".minisig", ".sig"}
	if q == release.RequireSSH {
		slices.Reverse(names)
	}
	for _, suffix := range names {
		if fi, err := os.Stat(file + suffix); err == nil && fi.Mode().IsRegular() {
			return file + suffix
		}
	}
	return ""
}

// keysDir is where the keys are whose signatures count: beside the directory of
// the units, /etc/zdt/keys.
func (f *factory) keysDir() (string, error) {
	p, err := f.paths()
	if err != nil {
		return "", err
	}
	return p.disk(filepath.Join(filepath.Dir(filepath.Dir(p.Units)), "zdt", "keys")), nil
}

// openStaging opens the store of a service, and reads its policy: as systemd has
// it or, of a system that does not run, from the files. The caller closes the store.
func (f *factory) openStaging(ctx context.Context, name string) (*release.Store, unitgen.Policy, error) {
	if f.globals.root == "" {
		s, err := f.openSite(ctx, name)
		if err != nil {
			return nil, unitgen.Policy{}, err
		}
		s.host.close()
		return s.store, s.policy, nil
	}
	p, err := f.paths()
	if err != nil {
		return nil, unitgen.Policy{}, err
	}
	policy, err := readPolicy(p, name)
	if err != nil {
		return nil, policy, refused(fmt.Errorf("read [X-Zdt] of %s.service: %w", name, err))
	}
	store, err := release.Open(p.disk(p.StateDir(name)), release.Options{Program: policy.Exec})
	if errors.Is(err, fs.ErrNotExist) {
		err = fail(ExitRefused, f.zdt()+" init "+name+" --exec FILE", "%s has no release store: zdt does not manage it", name)
	}
	if err != nil {
		return nil, policy, refused(err)
	}
	return store, policy, nil
}

// readPolicy reads the unit and its drop-ins below --root, those that an
// administrator makes.
func readPolicy(p Paths, name string) (unitgen.Policy, error) {
	unit := p.disk(filepath.Join(p.Units, name+".service"))
	paths, err := filepath.Glob(escapeGlob(unit) + ".d/*.conf")
	if err != nil {
		return unitgen.Policy{}, err
	}
	if template, _, ok := unitgen.SplitName(name); ok {
		shared := p.disk(filepath.Join(p.Units, template+".service"))
		more, err := filepath.Glob(escapeGlob(shared) + ".d/*.conf")
		if err != nil {
			return unitgen.Policy{}, err
		}
		paths = append(more, paths...)
		if _, err := os.Lstat(unit); errors.Is(err, fs.ErrNotExist) {
			unit = shared
		}
	}
	var files []unitgen.File
	for _, path := range append([]string{unit}, paths...) {
		data, err := os.ReadFile(path)
		if errors.Is(err, fs.ErrNotExist) && path == unit && len(paths) > 0 {
			continue // a package's, of which an administrator has only changed something
		}
		if err != nil {
			return unitgen.Policy{}, err
		}
		files = append(files, unitgen.File{Name: filepath.Base(path), Path: path, Data: data})
	}
	return unitgen.InstancePolicy(name, files...)
}
