package cmd

import (
	"bytes"
	"encoding/json"
	"io/fs"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"strings"
	"testing"

	"github.com/zdt-dev/zdt/internal/operators"
	"github.com/zdt-dev/zdt/internal/schema"
	"github.com/zdt-dev/zdt/rehearse"
	"github.com/zdt-dev/zdt/upgrade"
)

// documents are the types of all documents that zdt prints or passes on.
func documents() map[string]reflect.Type {
	return map[string]reflect.Type{
		"zdt.bugreport/1": reflect.TypeFor[bugreportDoc](),
		"zdt.adopt/1":     reflect.TypeFor[adoptDoc](),
		"zdt.check/1":     reflect.TypeFor[checkDoc](),
		"zdt.checks/1":    reflect.TypeFor[checksDoc](),
		"zdt.doctor/1":    reflect.TypeFor[doctorDoc](),
		"zdt.error/1":     reflect.TypeFor[errorDoc](),
		"zdt.explain/1":   reflect.TypeFor[explainDoc](),
		"zdt.handoff/1":   reflect.TypeFor[handoffDoc](),
		"zdt.helper/1":    reflect.TypeFor[helperDoc](),
		"zdt.history/1":   reflect.TypeFor[historyDoc](),
		"zdt.hold/1":      reflect.TypeFor[holdDoc](),
		"zdt.hook/1":      reflect.TypeFor[upgrade.HookDoc](),
		"zdt.init/1":      reflect.TypeFor[initDoc](),
		"zdt.order/1":     reflect.TypeFor[orderDoc](),
		"zdt.detached/1":  reflect.TypeFor[detachedDoc](),
		"zdt.running/1":   reflect.TypeFor[broadcastHead](),
		"zdt.pin/1":       reflect.TypeFor[pinDoc](),
		"zdt.plan/1":      reflect.TypeFor[planDoc](),
		"zdt.prove/1":     reflect.TypeFor[proveDoc](),
		"zdt.prune/1":     reflect.TypeFor[pruneDoc](),
		"zdt.rehearse/1":  reflect.TypeFor[rehearse.Result](),
		"zdt.releases/1":  reflect.TypeFor[releasesDoc](),
		"zdt.roll/1":      reflect.TypeFor[rollDoc](),
		"zdt.stage/1":     reflect.TypeFor[stageDoc](),
		"zdt.status/1":    reflect.TypeFor[statusDoc](),
		"zdt.update/1":    reflect.TypeFor[updateDoc](),
		"zdt.upgrade/1":   reflect.TypeFor[upgrade.Report](),
		"zdt.version/1":   reflect.TypeFor[versionDoc](),
		"zdt.watch/1":     reflect.TypeFor[watchDoc](),
		"zdt.operators/1": reflect.TypeFor[operatorsDoc](),
		"zdt.request/1":   reflect.TypeFor[operators.Request](),
	}
}

func schemas(t *testing.T) map[string]schema.Schema {
	t.Helper()
	comments, err := schema.ReadComments(".", "../upgrade", "../release", "../handoff/control", "../journal", "../internal/health", "../internal/load", "../internal/operators", "../rehearse", "../handoffcheck")
	if err != nil {
		t.Fatal(err)
	}
	all := make(map[string]schema.Schema)
	for id, typ := range documents() {
		all[id] = schema.Of(id, typ, comments)
	}
	return all
}

const schemaDir = "../docs/schemas"

// The published schemas are those of the types. -update writes them.
func TestSchemasArePublished(t *testing.T) {
	files := make(map[string]bool)
	for id, s := range schemas(t) {
		name := strings.ReplaceAll(id, "/", ".") + ".json"
		files[name] = true
		var want bytes.Buffer
		e := json.NewEncoder(&want)
		e.SetEscapeHTML(false)
		e.SetIndent("", "  ")
		if err := e.Encode(s); err != nil {
			t.Fatal(err)
		}
		path := filepath.Join(schemaDir, name)
		if *update {
			if err := os.WriteFile(path, want.Bytes(), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		if got, err := os.ReadFile(path); err != nil || !bytes.Equal(got, want.Bytes()) {
			t.Errorf("%s is not that of its type (%v): go test ./cmd -run Schemas -update makes it", path, err)
		}
	}
	entries, err := os.ReadDir(schemaDir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if strings.HasSuffix(e.Name(), ".json") && !files[e.Name()] {
			t.Errorf("%s is the schema of nothing", e.Name())
		}
	}
}

// Every schema that the sources name has a type here.
func TestSchemasAreKnown(t *testing.T) {
	named := regexp.MustCompile(`"(zdt\.[a-z-]+/[0-9]+)"`)
	for _, dir := range []string{".", "../rehearse", "../upgrade"} {
		files, err := filepath.Glob(filepath.Join(dir, "*.go"))
		if err != nil {
			t.Fatal(err)
		}
		for _, name := range files {
			src, err := os.ReadFile(name)
			if err != nil {
				t.Fatal(err)
			}
			for _, m := range named.FindAllSubmatch(src, -1) {
				if _, ok := documents()[string(m[1])]; !ok && !strings.HasSuffix(name, "_test.go") {
					t.Errorf("%s names %s, which has no schema", name, m[1])
				}
			}
		}
	}
}

// Documents of all kinds, as other tests keep them, are what the schemas say.
func TestDocumentsConform(t *testing.T) {
	all := schemas(t)
	checked := 0
	err := filepath.WalkDir("testdata", func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || !strings.Contains(path, "json") {
			return err
		}
		f, err := os.Open(path)
		if err != nil {
			return err
		}
		defer f.Close()
		for dec := json.NewDecoder(f); dec.More(); {
			var doc map[string]any
			if err := dec.Decode(&doc); err != nil {
				t.Errorf("%s: %v", path, err)
				break
			}
			id, _ := doc["schema"].(string)
			s, ok := all[id]
			if !ok {
				t.Errorf("%s: there is no schema %q", path, id)
				continue
			}
			if err := s.Check(doc); err != nil {
				t.Errorf("%s: %v", path, err)
			}
			checked++
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if checked < 20 {
		t.Errorf("only %d documents were checked", checked)
	}
}
