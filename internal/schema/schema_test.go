package schema

import (
	"encoding/json"
	"reflect"
	"testing"
	"time"
)

// sample is a document.
type sample struct {
	Schema string            `json:"schema"`
	At     time.Time         `json:"at,omitzero"`
	Took   time.Duration     `json:"took"` // how long it took
	Names  []string          `json:"names"`
	Words  map[string]int    `json:"words,omitempty"`
	Any    map[string]any    `json:"any,omitempty"`
	Next   *struct{ N uint } `json:"next,omitempty"`
	inner
	hidden int
}

type inner struct {
	Good bool `json:"good"` // whether it is
}

func TestCheck(t *testing.T) {
	c := Comments{"schema.sample": "sample is a document.", "schema.sample.Took": "how long it took", "schema.inner.Good": "whether it is"}
	s := Of("zdt.sample/1", reflect.TypeFor[sample](), c)
	if s.Description != "sample is a document." || s.Properties["took"].Description != "how long it took (nanoseconds)" || s.Properties["good"].Description != "whether it is" {
		t.Errorf("%+v", s)
	}
	good := sample{Schema: "zdt.sample/1", At: time.Now(), Took: 3, Words: map[string]int{"a": 1}, Any: map[string]any{"x": []any{"y", nil}}, Next: &struct{ N uint }{2}}
	data, err := json.Marshal(good)
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		doc string
		ok  bool
	}{
		{string(data), true},
		{`{"schema":"zdt.sample/1","took":1,"names":null,"good":true}`, true},
		{`{"schema":"zdt.other/1","took":1,"names":null,"good":true}`, false},
		{`{"schema":"zdt.sample/1","took":1.5,"names":null,"good":true}`, false},
		{`{"schema":"zdt.sample/1","took":1,"names":null}`, false},
		{`{"schema":"zdt.sample/1","took":1,"names":null,"good":true,"more":1}`, false},
		{`{"schema":"zdt.sample/1","took":1,"names":[1],"good":true}`, false},
		{`{"schema":"zdt.sample/1","took":1,"names":null,"good":true,"at":"yesterday"}`, false},
		{`{"schema":"zdt.sample/1","took":1,"names":null,"good":true,"words":{"a":"b"}}`, false},
		{`{"schema":"zdt.sample/1","took":1,"names":null,"good":true,"next":7}`, false},
		{`[]`, false},
	} {
		var doc any
		if err := json.Unmarshal([]byte(tt.doc), &doc); err != nil {
			t.Fatal(err)
		}
		if err := s.Check(doc); (err == nil) != tt.ok {
			t.Errorf("%s: %v", tt.doc, err)
		}
	}
}

func TestReadComments(t *testing.T) {
	c, err := ReadComments(".")
	if err != nil {
		t.Fatal(err)
	}
	if c["schema.Schema"] != "Schema is one JSON Schema." || c["schema.Schema.Values"] != "Values are those of an object whose names are data." {
		t.Errorf("%q", c)
	}
	if _, err := ReadComments("testdata/none"); err == nil {
		t.Error("read what is not there")
	}
}
