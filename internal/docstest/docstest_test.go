package docstest

import (
	"reflect"
	"strings"
	"testing"
)

func TestCommands(t *testing.T) {
	blocks, err := Blocks("text\n```sh\nmake\n```\n\n```console\n# one\n# two\nout\n  more\n```\n```console\n$ three\n```\n")
	if err != nil {
		t.Fatal(err)
	}
	got, err := Commands(blocks)
	if err != nil {
		t.Fatal(err)
	}
	want := []Command{{7, "one", nil}, {8, "two", []string{"out", "  more"}}, {13, "three", nil}}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("%+v, want %+v", got, want)
	}
}

func TestBlocksRefuses(t *testing.T) {
	if _, err := Blocks("```sh\nmake\n"); err == nil || !strings.Contains(err.Error(), "line 1") {
		t.Errorf("error %v", err)
	}
	blocks, err := Blocks("```console\n# ls\n```\n```console\nout\n```\n")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Commands(blocks); err == nil || !strings.Contains(err.Error(), "line 5") {
		t.Errorf("error %v", err)
	}
}

func TestMatch(t *testing.T) {
	real := []string{"✔ hello 0123456789ab → e4100a64ae5b · pid 1 → 2 · 0 connections cut · 1.2 s", "b", "c"}
	for _, test := range []struct {
		name string
		want []string
		miss string
	}{
		{"anything", nil, ""},
		{"numbers", []string{"✔ hello 353954fa2d6d → e4100a64ae5b · pid 122 → 150 · 0 connections cut · 261 ms", "b", "c"}, ""},
		{"a count is no such number", []string{"✔ hello 353954fa2d6d → e4100a64ae5b · pid 122 → 150 · 3 connections cut · 261 ms", "…"},
			"✔ hello 353954fa2d6d → e4100a64ae5b · pid 122 → 150 · 3 connections cut · 261 ms"},
		{"skipped", []string{"…", "c"}, ""},
		{"skipped at the end", []string{"…", "b", "…"}, ""},
		{"skipped too much", []string{"…", "d"}, "d"},
		{"order", []string{"…", "c", "b"}, "b"},
		{"more than shown", []string{"…", "b"}, "(end of the output)"},
	} {
		t.Run(test.name, func(t *testing.T) {
			if got := Match(test.want, real); got != test.miss {
				t.Errorf("missed %q, want %q", got, test.miss)
			}
		})
	}
}
