package cmd

import (
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"reflect"
	"slices"
	"strings"

	"github.com/zdt-dev/zdt/dbusctl"
	"github.com/zdt-dev/zdt/handoffcheck"
	"github.com/zdt-dev/zdt/internal/redact"
	"github.com/zdt-dev/zdt/internal/trustpath"
	"github.com/zdt-dev/zdt/release"
)

const (
	mostUnitFile   = 64 << 10 // bytes of a unit file or an environment file
	reportHistory  = 50       // entries
	reportUpgrades = 3        // whose journal and reports go with it
)

// reported is what is known of a service, with all secrets in it.
type reported struct {
	name  string
	unit  dbusctl.Unit
	units []handoffcheck.Unit // the service and its sockets
	files []configFile        // theirs
	env   []configFile        // of EnvironmentFile=

	stored  bool // there is a release store
	history []release.Entry
}

// configFile is a file as it is on disk.
type configFile struct {
	path, text string
	more       bool // there was more of it
	err        error
}

// readConfig reads a file that nobody but root or the caller can have written: what lies in the reach of the service's user may
// lead anywhere.
func readConfig(path string) configFile {
	data, more, err := trustpath.Read(path, mostUnitFile)
	return configFile{path: path, text: string(data), more: more, err: err}
}

// read gathers what the configuration of a service is in. What fails is noted.
func (b *bugreport) read(ctx context.Context, name string) *reported {
	s := &reported{name: name}
	if b.bus != nil {
		b.readUnits(ctx, s)
	}
	store, err := release.Open(b.paths.disk(b.paths.StateDir(name)), release.Options{})
	switch {
	case err == nil:
		s.stored = true
		b.readStore(s, store)
		store.Close()
	case !errors.Is(err, fs.ErrNotExist):
		b.lacks(name+": the release store", err)
	}
	return s
}

func (b *bugreport) readUnits(ctx context.Context, s *reported) {
	h := &host{f: b.f, sd: b.bus, paths: b.paths, service: s.name, unit: s.name + ".service"}
	var err error
	if s.unit, err = b.bus.Unit(ctx, h.unit); err != nil {
		b.lacks(h.unit, err)
		return
	}
	service, err := h.properties(ctx, h.unit)
	if err != nil {
		b.lacks("the properties of "+h.unit, err)
	}
	s.units = append(s.units, service)
	for _, name := range socketsOf(s.unit, service) {
		socket, err := h.properties(ctx, name)
		if err != nil {
			b.lacks("the properties of "+name, err)
			continue
		}
		s.units = append(s.units, socket)
	}
	for _, u := range s.units {
		if id, ok := u.Properties["InvocationID"].([]byte); ok {
			b.secrets.Keep(hex.EncodeToString(id))
		}
		for _, path := range append([]string{u.Text("FragmentPath")}, u.Texts("DropInPaths")...) {
			if path != "" {
				s.files = append(s.files, readConfig(path))
			}
		}
		s.env = append(s.env, environmentOf(u)...)
	}
}

// environmentOf are the environment files of a unit, an a(sb): a path, which may be a pattern, and whether there may be none.
func environmentOf(u handoffcheck.Unit) (files []configFile) {
	all, _ := u.Properties["EnvironmentFiles"].([][]any)
	for _, e := range all {
		path, _ := e[0].(string)
		optional, _ := e[len(e)-1].(bool)
		paths, err := filepath.Glob(path)
		if err != nil || len(paths) == 0 {
			paths = []string{path}
		}
		for _, path := range paths[:min(len(paths), 50)] {
			if f := readConfig(path); !optional || !errors.Is(f.err, fs.ErrNotExist) {
				files = append(files, f)
			}
		}
	}
	return files
}

func (b *bugreport) readStore(s *reported, store *release.Store) {
	h, err := store.History()
	if err != nil {
		b.lacks(s.name+": the history", err)
	}
	if s.history = h.Entries; len(s.history) > reportHistory {
		s.history = s.history[len(s.history)-reportHistory:]
	}
	releases, err := store.List()
	if err != nil {
		b.lacks(s.name+": the releases", err)
	}
	for _, r := range releases {
		b.secrets.Keep(r.SHA256)
		if r.Build != nil {
			b.secrets.Keep(r.Build.Revision)
		}
		if r.Archive != nil {
			b.secrets.Keep(r.Archive.SHA256)
		}
	}
}

// configuration has the secrets of a service taken out of all that configures it.
func (s *reported) configuration(r *redact.Redactor) {
	for _, f := range s.files {
		r.Unit(f.text)
	}
	for _, f := range s.env {
		r.EnvironmentFile(f.text)
	}
	for _, u := range s.units {
		properties(r, u)
	}
}

// service writes down what is known of a service.
func (b *bugreport) service(ctx context.Context, s *reported) {
	dir := "services/" + s.name + "/"
	b.addConfig(dir+"units.txt", s.files, b.secrets.Unit)
	b.addConfig(dir+"environment.txt", s.env, b.secrets.EnvironmentFile)
	if len(s.units) > 0 {
		all := map[string]any{}
		for _, u := range s.units {
			all[u.Name] = properties(&b.secrets, u)
		}
		b.addDoc(dir+"properties.json", all)
		h := &host{f: b.f, sd: b.bus, paths: b.paths, service: s.name, unit: s.name + ".service"}
		if doc, err := h.check(ctx, ""); err != nil {
			b.lacks(s.name+": what zdt check says", err)
		} else {
			b.addDoc(dir+"check.json", doc)
		}
	}
	if b.bus != nil {
		st, err := b.f.collectStatus(ctx, b.bus, b.paths, s.name)
		if err != nil {
			b.lacks(s.name+": what zdt status says", err)
		} else {
			doc := statusDoc{Schema: "zdt.status/1", Services: []serviceStatus{st}}
			doc.ExitCode, doc.Outcome = statusVerdict(doc.Services)
			b.addDoc(dir+"status.json", doc)
		}
	}
	var open *release.Txn
	if s.stored {
		open = b.serviceStore(dir, s)
	}
	b.serviceJournal(ctx, dir, s, open)
}

// serviceStore writes down what the release store of a service has, and returns the open upgrade.
func (b *bugreport) serviceStore(dir string, s *reported) (open *release.Txn) {
	store, err := release.Open(b.paths.disk(b.paths.StateDir(s.name)), release.Options{})
	if err != nil {
		b.lacks(s.name+": the release store", err)
		return nil
	}
	defer store.Close()
	switch t, err := store.ReadTxn(); {
	case err == nil:
		open = &t
		b.addDoc(dir+"txn.json", t)
	case !errors.Is(err, release.ErrNoTxn):
		b.lacks(s.name+": the record of the open upgrade", err)
	}
	if doc, err := readHistory(store, s.name, reportHistory); err == nil {
		var cut []string
		if doc.Left > 0 {
			cut = append(cut, plural(doc.Left, "earlier upgrade"))
		}
		b.addDoc(dir+"history.json", doc, cut...)
	}
	if list, err := store.List(); err == nil {
		doc := releasesDoc{Schema: "zdt.releases/1", Outcome: "shown", Service: s.name, Releases: []releaseDoc{}}
		for _, r := range slices.Backward(list) {
			doc.Size += r.Size
			doc.Releases = append(doc.Releases, describeStaged(r, ""))
		}
		b.addDoc(dir+"releases.json", doc)
	}
	reports, err := store.Reports()
	if err != nil {
		b.lacks(s.name+": the reports of its upgrades", err)
	}
	for _, txid := range reports[max(0, len(reports)-reportUpgrades):] {
		data, err := store.ReadReport(txid)
		if err != nil {
			b.lacks(s.name, err)
			continue
		}
		var doc any = json.RawMessage(data)
		if !json.Valid(data) {
			doc = string(data)
		}
		b.addDoc(dir+"reports/"+txid+".json", doc)
	}
	return open
}

// addDoc adds a document as JSON.
func (b *bugreport) addDoc(path string, doc any, cut ...string) {
	data, err := plainJSON(&b.secrets, doc)
	if err != nil {
		b.lacks(path, err)
		return
	}
	b.add(path, data, cut...)
}

// addConfig adds files with their paths, as systemctl cat shows them.
func (b *bugreport) addConfig(path string, files []configFile, hide func(string) string) {
	var out strings.Builder
	var cut []string
	for _, f := range files {
		if f.err != nil {
			b.lacks(f.path, f.err)
			continue
		}
		text := f.text
		if f.more {
			text = text[:strings.LastIndexByte(text, '\n')+1]
			cut = append(cut, fmt.Sprintf("%s after %d bytes", clean(f.path), len(text)))
		}
		fmt.Fprintf(&out, "# %s\n%s\n", clean(f.path), printable(hide(text)))
	}
	if out.Len() > 0 {
		b.add(path, []byte(out.String()), cut...)
	}
}

// properties are those of a unit without their secrets, as far as their place tells: texts are yet to be looked through.
func properties(r *redact.Redactor, u handoffcheck.Unit) map[string]any {
	out := make(map[string]any, len(u.Properties))
	for name, v := range u.Properties {
		switch {
		case name == "Environment":
			out[name] = r.Environ(u.Texts(name))
		case strings.Contains(name, "Credential") && name != "ImportCredential" && name != "ImportCredentialEx":
			out[name] = credentials(r, v)
		case name == "StandardInputData" && len(text(v)) > 0:
			out[name] = r.Secret(redact.Credential, text(v))
		case strings.HasPrefix(name, "Exec"):
			out[name] = commands(r, v)
		default:
			out[name] = plain(v)
		}
	}
	return out
}

// credentials is an a(say) or a(ss): names, and what they are.
func credentials(r *redact.Redactor, v any) any {
	all, ok := v.([][]any)
	if !ok {
		return plain(v)
	}
	out := [][]any{}
	for _, c := range all {
		line := []any{}
		for i, part := range c {
			if i > 0 {
				part = r.Secret(redact.Credential, text(part))
			}
			line = append(line, plain(part))
		}
		out = append(out, line)
	}
	return out
}

// commands is an a(sasbttttuii): the path, the arguments, and how it went.
func commands(r *redact.Redactor, v any) any {
	all, ok := v.([][]any)
	if !ok {
		return plain(v)
	}
	out := [][]any{}
	for _, c := range all {
		line := []any{}
		for i, part := range c {
			if argv, ok := part.([]string); ok && i == 1 {
				line = append(line, r.Args(argv))
				continue
			}
			line = append(line, plain(part))
		}
		out = append(out, line)
	}
	return out
}

// plain is a value of D-Bus as JSON has it. Texts stay as they are.
func plain(v any) any {
	switch v := v.(type) {
	case nil, bool, string:
		return v
	case []byte:
		return hex.EncodeToString(v) // an ID, or a set of bits
	}
	switch x := reflect.ValueOf(v); x.Kind() {
	case reflect.String:
		return x.String()
	case reflect.Slice, reflect.Array:
		out := make([]any, 0, x.Len())
		for i := range x.Len() {
			out = append(out, plain(x.Index(i).Interface()))
		}
		return out
	case reflect.Int, reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64, reflect.Uint, reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64, reflect.Float32, reflect.Float64:
		return v
	}
	return fmt.Sprint(v)
}

func text(v any) string {
	if b, ok := v.([]byte); ok {
		return string(b)
	}
	return fmt.Sprint(v)
}
