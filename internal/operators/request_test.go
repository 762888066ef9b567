package operators

import (
	"bytes"
	"encoding/json"
	"slices"
	"strings"
	"testing"
	"time"
)

const sum = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"

func TestParseRequest(t *testing.T) {
	head := `{"schema":"zdt.request/1","service":"web",`
	program := `"program":{"name":"web-1.4","sha256":"` + sum + `"}`
	for _, tt := range []struct{ text, want string }{ // want: what the error has; empty: none
		{head + `"do":"upgrade",` + program + `}`, ""},
		{head + `"do":"upgrade","release":"4f2a91","bake":60000000000,"rehearse":true,"why":"CVE-2026-1"}`, ""},
		{head + `"do":"rollback"}`, ""},
		{head + `"do":"rollback","release":"4f2a91","timeout":1,"wait":1,"why":"x"}`, ""},
		{head + `"do":"promote"}`, ""},
		{head + `"do":"abort"}`, ""},
		{``, "not a request"},
		{`[]`, "not a request"},
		{head + `"do":"abort"} {}`, "something follows"},
		{head + `"do":"abort"}x`, "something follows"},
		{`{"schema":"zdt.request/2","service":"web","do":"abort"}`, "schema"},
		{`{"schema":"zdt.request/1","service":"shop","do":"abort"}`, `the service "shop"`},
		{head + `"do":"hold"}`, "cannot ask for"},
		{head + `"do":"resume"}`, "cannot ask for"},
		{head + `"do":""}`, "cannot ask for"},
		{head + `"do":"upgrade --ignore-hold"}`, "cannot ask for"},
		// What would take something of the service's policy away is no field.
		{head + `"do":"rollback","ignore_hold":true}`, "unknown field"},
		{head + `"do":"rollback","skip_gates":true}`, "unknown field"},
		{head + `"do":"rollback","gates":["exec:/bin/sh"]}`, "unknown field"},
		{head + `"do":"rollback","strategy":"restart"}`, "unknown field"},
		{head + `"do":"rollback","who":{"uid":0}}`, "unknown field"},
		{head + `"do":"rollback","args":["--ignore-hold"]}`, "unknown field"},
		{head + `"do":"upgrade"}`, "to a program or to a release"},
		{head + `"do":"upgrade","release":"4f",` + program + `}`, "to a program or to a release"},
		{head + `"do":"rollback",` + program + `}`, "cannot have"},
		{head + `"do":"rollback","bake":1}`, "cannot have"},
		{head + `"do":"abort","why":"x"}`, "no reason"},
		{head + `"do":"abort","release":"4f"}`, "cannot have"},
		{head + `"do":"upgrade","release":"--skip-gates"}`, ""}, // stands behind --release=
		{head + `"do":"upgrade","release":"../../x"}`, "not the ID"},
		{head + `"do":"upgrade","release":"4f","bake":-1}`, "between 0"},
		{head + `"do":"upgrade","release":"4f","wait":9223372036854775807}`, "between 0"},
		{head + `"do":"upgrade","release":"4f","why":"a\u001b[31m"}`, "control"},
		{head + `"do":"upgrade","release":"4f","why":"a\nb"}`, "control"},
		{head + `"do":"upgrade","release":"4f","why":"` + strings.Repeat("a", maxText+1) + `"}`, "too long"},
		{head + `"do":"upgrade","program":{"name":"../web","sha256":"` + sum + `"}}`, "plain file name"},
		{head + `"do":"upgrade","program":{"name":".signature","sha256":"` + sum + `"}}`, "plain file name"},
		{head + `"do":"upgrade","program":{"name":"-x","sha256":"` + sum + `"}}`, "plain file name"},
		{head + `"do":"upgrade","program":{"name":"web","sha256":""}}`, "not a SHA-256"},
		{head + `"do":"upgrade","program":{"name":"web","sha256":"` + sum + `","exec":"a\u0000"}}`, "control"},
		{strings.Repeat(" ", maxRequest+1), "more than"},
	} {
		_, err := ParseRequest([]byte(tt.text), "web")
		if tt.want == "" && err != nil || tt.want != "" && (err == nil || !strings.Contains(err.Error(), tt.want)) {
			t.Errorf("%.200s: %v, want %q", tt.text, err, tt.want)
		}
	}
}

func TestArgs(t *testing.T) {
	for _, tt := range []struct {
		r    Request
		want string
	}{
		{Request{Service: "web", Do: Upgrade, Program: &Program{Name: "web", SHA256: sum, Exec: "bin/web", Signed: true}, Bake: time.Minute, Timeout: time.Hour, Wait: time.Second, Rehearse: true, Why: "--ignore-hold"},
			"upgrade --binary=/t/web --sha256=" + sum + " --exec=bin/web --signature=/t/s --rehearse=true --bake=1m0s --timeout=1h0m0s --wait=1s --message=--ignore-hold --as={} -- web"},
		{Request{Service: "web", Do: Upgrade, Release: "--skip-gates"}, "upgrade --release=--skip-gates --as={} -- web"},
		{Request{Service: "web", Do: Rollback, Release: "4f2a"}, "rollback --to=4f2a --as={} -- web"},
	} {
		signature := ""
		if tt.r.Program != nil && tt.r.Program.Signed {
			signature = "/t/s"
		}
		if got := strings.Join(tt.r.Args("{}", "/t/web", signature), " "); got != tt.want {
			t.Errorf("%s\nwant %s", got, tt.want)
		}
	}
}

func TestName(t *testing.T) {
	for in, want := range map[string]string{"web-1.4.3": "web-1.4.3", ".hidden": "hidden", "a b/c": "abc", "": "program", "--x": "x", "日本": "program", strings.Repeat("a", 200): strings.Repeat("a", 100)} {
		if got := Name(in); got != want || !fileName.MatchString(got) {
			t.Errorf("Name(%q) = %q, want %q", in, got, want)
		}
	}
}

// Whatever is accepted is within the bounds, is the same when it is written again, and becomes a command line in which every value
// stands behind its own flag.
func FuzzParseRequest(f *testing.F) {
	f.Add([]byte(`{"schema":"zdt.request/1","service":"web","do":"upgrade","program":{"name":"web","sha256":"` + sum + `","exec":"bin/x","signed":true},"bake":1,"why":"x"}`))
	f.Add([]byte(`{"schema":"zdt.request/1","service":"web","do":"rollback","release":"4f2a"}`))
	f.Add([]byte(`{"schema":"zdt.request/1","service":"web","do":"abort"}`))
	f.Add([]byte(`{"schema":"zdt.request/1","SERVICE":"web","do":"upgrade","do":"abort"}`))
	allowed := []string{"binary", "sha256", "exec", "signature", "to", "release", "rehearse", "bake", "timeout", "wait", "message", "as"}
	f.Fuzz(func(t *testing.T, data []byte) {
		r, err := ParseRequest(data, "web")
		if err != nil {
			return
		}
		if r.Service != "web" || r.Bake < 0 || r.Wait > maxSpan || len(r.Why) > maxText {
			t.Fatalf("%+v", r)
		}
		again, err := r.Encode()
		if err != nil {
			t.Fatalf("%+v: %v", r, err)
		}
		twice, err := ParseRequest(again, "web")
		if one, two := mustJSON(t, r), mustJSON(t, twice); err != nil || !bytes.Equal(one, two) {
			t.Fatalf("%s became %s, %v", one, two, err)
		}
		if r.Do != Upgrade && r.Do != Rollback {
			return
		}
		argv := r.Args("{}", "/t/p", "/t/s")
		if !slices.Equal(argv[len(argv)-2:], []string{"--", "web"}) || argv[0] != string(r.Do) {
			t.Fatalf("%q", argv)
		}
		for _, a := range argv[1 : len(argv)-2] {
			name, _, ok := strings.Cut(strings.TrimPrefix(a, "--"), "=")
			if !ok || !slices.Contains(allowed, name) || strings.ContainsRune(a, 0) {
				t.Fatalf("%q in %q", a, argv)
			}
		}
	})
}

func mustJSON(t *testing.T, v any) []byte {
	t.Helper()
	data, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return data
}
