// Package schema describes the JSON documents that zdt prints as JSON Schema (draft 2020-12), made from their Go types and the
// comments of those. The schemas are part of the documentation; tests hold them against the types and real documents
// against them.
package schema

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"time"
)

// Comments are what Go sources say of types and their fields: "package.Type" and "package.Type.Field".
type Comments map[string]string

// ReadComments reads those of the packages in dirs; test files are left out.
func ReadComments(dirs ...string) (Comments, error) {
	c := make(Comments)
	for _, dir := range dirs {
		files, err := filepath.Glob(filepath.Join(dir, "*.go"))
		if err != nil {
			return nil, err
		}
		if len(files) == 0 {
			return nil, fmt.Errorf("no Go file in %s: %w", dir, fs.ErrNotExist)
		}
		for _, name := range files {
			if strings.HasSuffix(name, "_test.go") {
				continue
			}
			src, err := os.ReadFile(name)
			if err != nil {
				return nil, err
			}
			f, err := parser.ParseFile(token.NewFileSet(), name, src, parser.ParseComments)
			if err != nil {
				return nil, err
			}
			c.file(f)
		}
	}
	return c, nil
}

func (c Comments) file(f *ast.File) {
	for _, d := range f.Decls {
		decl, ok := d.(*ast.GenDecl)
		if !ok || decl.Tok != token.TYPE {
			continue
		}
		for _, s := range decl.Specs {
			spec := s.(*ast.TypeSpec)
			name := f.Name.Name + "." + spec.Name.Name
			c[name] = text(spec.Doc, decl.Doc)
			body, ok := spec.Type.(*ast.StructType)
			if !ok {
				continue
			}
			for _, field := range body.Fields.List {
				for _, id := range field.Names {
					c[name+"."+id.Name] = text(field.Doc, field.Comment)
				}
			}
		}
	}
}

// text joins comments in one line.
func text(groups ...*ast.CommentGroup) string {
	var parts []string
	for _, g := range groups {
		if t := strings.Join(strings.Fields(g.Text()), " "); t != "" {
			parts = append(parts, t)
		}
	}
	return strings.Join(parts, " ")
}

// Schema is one JSON Schema.
type Schema struct {
	Version     string            `json:"$schema,omitempty"`
	ID          string            `json:"$id,omitempty"`
	Title       string            `json:"title,omitempty"`
	Description string            `json:"description,omitempty"`
	Type        string            `json:"type,omitempty"`
	Format      string            `json:"format,omitempty"`
	Const       string            `json:"const,omitempty"`
	Properties  map[string]Schema `json:"properties,omitempty"`
	Required    []string          `json:"required,omitempty"`
	Items       *Schema           `json:"items,omitempty"`
	// Values are those of an object whose names are data.
	Values *Schema `json:"additionalProperties,omitempty"`
}

// Of describes the document called id, "zdt.upgrade/1" for one, whose type is t.
func Of(id string, t reflect.Type, c Comments) Schema {
	s := c.of(t)
	s.Version, s.ID, s.Title = "https://json-schema.org/draft/2020-12/schema", "urn:"+strings.ReplaceAll(id, "/", ":"), id
	if p, ok := s.Properties["schema"]; ok {
		p.Const, p.Description = id, ""
		s.Properties["schema"] = p
	}
	return s
}

func (c Comments) of(t reflect.Type) Schema {
	switch t {
	case reflect.TypeFor[time.Time]():
		return Schema{Type: "string", Format: "date-time"}
	case reflect.TypeFor[time.Duration]():
		return Schema{Type: "integer", Description: "nanoseconds"}
	}
	switch t.Kind() {
	case reflect.Pointer:
		return c.of(t.Elem())
	case reflect.Bool:
		return Schema{Type: "boolean"}
	case reflect.String:
		return Schema{Type: "string"}
	case reflect.Int, reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64, reflect.Uint, reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64:
		return Schema{Type: "integer"}
	case reflect.Float32, reflect.Float64:
		return Schema{Type: "number"}
	case reflect.Slice, reflect.Array:
		items := c.of(t.Elem())
		return Schema{Type: "array", Items: &items}
	case reflect.Map:
		values := c.of(t.Elem())
		return Schema{Type: "object", Values: &values}
	case reflect.Struct:
		s := Schema{Type: "object", Description: c[t.String()], Properties: make(map[string]Schema)}
		c.fields(&s, t)
		slices.Sort(s.Required)
		return s
	}
	return Schema{} // an interface: anything
}

func (c Comments) fields(s *Schema, t reflect.Type) {
	for i := range t.NumField() {
		f := t.Field(i)
		name, options, _ := strings.Cut(f.Tag.Get("json"), ",")
		if f.Anonymous && name == "" {
			c.fields(s, f.Type)
			continue
		}
		if !f.IsExported() || name == "-" {
			continue
		}
		if name == "" {
			name = f.Name
		}
		p := c.of(f.Type)
		if said := c[t.String()+"."+f.Name]; said != "" {
			if p.Description != "" && p.Type == "integer" {
				said += " (" + p.Description + ")"
			}
			p.Description = said
		}
		s.Properties[name] = p
		if !strings.Contains(options, "omit") {
			s.Required = append(s.Required, name)
		}
	}
}

// Check holds a document, as encoding/json decodes it into any, against the schema. What the schema does not know is an
// error as well: it was forgotten there.
func (s Schema) Check(doc any) error { return s.check("document", doc) }

func (s Schema) check(at string, doc any) error {
	wrong := func() error { return fmt.Errorf("%s: %v is no %s", at, doc, s.Type) }
	switch v := doc.(type) {
	case nil:
		if s.Type == "array" || s.Type == "object" || s.Type == "" {
			return nil // an empty one, as Go writes it
		}
		return wrong()
	case bool:
		if s.Type != "boolean" && s.Type != "" {
			return wrong()
		}
	case float64:
		if s.Type != "number" && s.Type != "" && (s.Type != "integer" || v != float64(int64(v))) {
			return wrong()
		}
	case string:
		switch {
		case s.Type != "string" && s.Type != "":
			return wrong()
		case s.Const != "" && v != s.Const:
			return fmt.Errorf("%s: %q, want %q", at, v, s.Const)
		case s.Format == "date-time":
			if _, err := time.Parse(time.RFC3339Nano, v); err != nil {
				return fmt.Errorf("%s: %w", at, err)
			}
		}
	case []any:
		if s.Type != "array" && s.Type != "" {
			return wrong()
		}
		for i, item := range v {
			if s.Items == nil {
				break
			}
			if err := s.Items.check(fmt.Sprintf("%s[%d]", at, i), item); err != nil {
				return err
			}
		}
	case map[string]any:
		return s.checkObject(at, v)
	}
	return nil
}

func (s Schema) checkObject(at string, doc map[string]any) error {
	if s.Type == "" {
		return nil
	}
	if s.Type != "object" {
		return fmt.Errorf("%s: an object is no %s", at, s.Type)
	}
	for _, name := range s.Required {
		if _, ok := doc[name]; !ok {
			return fmt.Errorf("%s: %s is missing", at, name)
		}
	}
	for name, value := range doc {
		p, ok := s.Properties[name]
		switch {
		case !ok && s.Values == nil:
			return fmt.Errorf("%s: the schema has no %s", at, name)
		case !ok:
			p = *s.Values
		}
		if err := p.check(at+"."+name, value); err != nil {
			return err
		}
	}
	return nil
}
