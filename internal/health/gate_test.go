package health

import (
	"encoding/json"
	"os"
	"regexp"
	"strings"
	"testing"
	"time"
)

func gate(t *testing.T, text string) Gate {
	t.Helper()
	g, err := Parse(text)
	if err != nil {
		t.Fatal(err)
	}
	return g
}

func TestParse(t *testing.T) {
	for _, tt := range []struct {
		text string
		want string // canonical; empty: the same
		err  string // what the error has
	}{
		{text: "http://127.0.0.1:8080/healthz"},
		{text: `http://127.0.0.1:8080/healthz status=200 body~="ok" successes=3 within=30s every=500ms failures=3 timeout=2s`, want: `http://127.0.0.1:8080/healthz status=200 body~=ok`},
		{text: `successes=5 http://h/?a=b&status=200 timeout=1500ms`, want: `http://h/?a=b&status=200 successes=5 timeout=1.5s`},
		{text: `https://web.example/ verify=no host=other.example`, want: "https://web.example/ host=other.example verify=no"},
		{text: `https://[::1]:8443/x verify=yes from=candidate`, want: "https://[::1]:8443/x"},
		{text: `http+unix:/run/x.sock:/path from=anyone`},
		{text: `http+unix:@web host=localhost`},
		{text: `http://h/ status=204,2xx,300-301,404 within=2m every=1m successes=2`, want: "http://h/ status=200-301,404 successes=2 within=2m every=1m"},
		{text: `http://h/ body~="it's "'"up"'`, want: `http://h/ body~="it's "'"'"up"'"'""`},
		{text: `http://h/ body~=^\d+$`},
		{text: "tcp:127.0.0.1:8080"},
		{text: "tcp:[::1]:8080  within=1h\tevery=1h30m successes=1", want: "tcp:[::1]:8080 successes=1 within=1h every=1h30m"},
		{text: "unix:/run/web.sock failures=1"},
		{text: `unix:"/run/my web.sock"`, want: `"unix:/run/my web.sock"`},
		{text: "exec:/usr/local/bin/check arg --name=x y=z 'a b' '' 'within=5s'", want: `exec:/usr/local/bin/check arg --name=x y=z "a b" "" "within=5s"`},
		{text: "exec:/bin/check within=5s", err: "all behind exec: is the command's: write within=5s in front of it"},
		{text: "within=5s timeout=1s exec:/bin/check http://x/ exec:no"},
		{text: `journal:"ready to serve" within=1m`, want: `"journal:ready to serve" within=1m`},
		{text: `'journal:x y'`, want: `"journal:x y"`},
		{text: "journal!:panic|fatal for=2s"},
		{text: "journal!:^E"},
		{text: "errors:0"},
		{text: "errors:5/1m for=30s"},
		{text: "errors:007/90s", want: "errors:7/1m30s"},

		{text: "", err: "there is no check in it"},
		{text: "status=200", err: "there is no check in it"},
		{text: "healthz", err: `what is "healthz"? A gate begins with http://`},
		{text: "/run/web.sock", err: "A gate begins with"},
		{text: "ftp://host/", err: "A gate begins with"},
		{text: "HTTP://host/", err: "A gate begins with"},
		{text: "http://h/ ok", err: `what is "ok"? A gate is one check and its options`},
		{text: "journal:ready to serve", err: "put quotes around what has spaces"},
		{text: "tcp:h:1 tcp:h:2", err: "a second check"},
		{text: "tcp:h:1 exec:/bin/x", err: "a second check"},
		{text: "http://h/ within=5", err: "within=5: of what? Write 5s for seconds"},
		{text: "http://h/ within=five", err: "it is a time, as 500ms"},
		{text: "http://h/ within=", err: "it is a time"},
		{text: "http://h/ within=-1s", err: "a time from 10ms to 24h"},
		{text: "http://h/ every=0s", err: "a time from 10ms"},
		{text: "http://h/ every=1us", err: "a time from 10ms"},
		{text: "http://h/ within=25h", err: "to 24h"},
		{text: "http://h/ within=1s within=2s", err: "within= is given twice"},
		{text: "http://h/ sucesses=3", err: "http:// has no option sucesses=; there are status=, body~=, host=, from=, successes="},
		{text: "http://h/ body=ok", err: "no option body="},
		{text: "http://h/ verify=no", err: "no option verify="},
		{text: "tcp:h:1 status=200", err: "tcp: has no option status="},
		{text: "journal:x every=1s", err: "journal: has no option every="},
		{text: "journal!:x within=1s", err: "journal!: has no option within=; there are for="},
		{text: "http://h/ successes=0", err: "a number from 1 to 1000"},
		{text: "http://h/ failures=three", err: "a number from 1"},
		{text: "http://h/ status=99", err: `"99" is no status`},
		{text: "http://h/ status=1xx", err: "is no status"},
		{text: "http://h/ status=300-200", err: "is no status"},
		{text: "http://h/ status=200,", err: "is no status"},
		{text: "http://h/ body~=(", err: "missing closing )"},
		{text: "http://h/ body~=", err: "Write body~=REGEXP"},
		{text: "http://h/ host=", err: "this is no host"},
		{text: "http://h/ host=a/b", err: "this is no host"},
		{text: "http://h/ host=[::1", err: "parse"},
		{text: "http://h/ from=me", err: "candidate or anyone"},
		{text: "https://h/ verify=maybe", err: "yes or no"},
		{text: "http://h/ timeout=1m", err: "timeout=1m is longer than within=30s"},
		{text: "http://h/ within=1s", err: "successes=3, one every=500ms, do not fit into within=1s"},
		{text: "http:8080", err: "no host: write http://HOST:PORT/PATH"},
		{text: "http:///x", err: "no host"},
		{text: "http://h:0/", err: "not a number from 1"},
		{text: "http://me:pw@h/", err: "a password there"},
		{text: "http://h/#x", err: "behind # is never sent"},
		{text: "http://h/%zz", err: "invalid URL escape"},
		{text: "http+unix:run/x:/", err: "begins with /"},
		{text: `http+unix:"/run/x:/a b"`, err: "no path of a URL"},
		{text: "tcp:8080", err: "write HOST:PORT"},
		{text: "tcp::8080", err: "write 127.0.0.1:8080"},
		{text: "tcp:h:http", err: "not a number"},
		{text: "unix:x", err: "begins with /"},
		{text: "unix:/" + strings.Repeat("x", 107), err: "107 bytes at most"},
		{text: "exec:check", err: "takes an absolute path"},
		{text: "exec:", err: "takes an absolute path"},
		{text: "journal:", err: "which line?"},
		{text: "journal!:", err: "Write journal!:REGEXP"},
		{text: "errors:", err: "how many are still fine? Write errors:N, or errors:N/1m"},
		{text: "errors:-1", err: "with N from 0 to 1000"},
		{text: "errors:1001", err: "with N from 0 to 1000"},
		{text: "errors:5/", err: "it is a time, as 500ms"},
		{text: "errors:5/1", err: "of what? Write 1s"},
		{text: "errors:5 within=1m", err: "errors: has no option within=; there are for="},
		{text: "journal:[", err: "missing closing ]"},
		{text: "journal:'x", err: "the quote ' is not closed"},
		{text: "tcp:h:1\n", err: "control character"},
		{text: "tcp:h:1 \xff", err: "UTF-8"},
		{text: "tcp:h:1 " + strings.Repeat(" ", lineLimit), err: "longer than"},
	} {
		got, err := Parse(tt.text)
		if tt.err != "" {
			if err == nil || !strings.Contains(err.Error(), tt.err) || !strings.HasPrefix(err.Error(), "read gate ") || got.kind != "" {
				t.Errorf("%q: %v, %v; want an error with %q", tt.text, got, err, tt.err)
			}
			continue
		}
		want := tt.want
		if want == "" {
			want = tt.text
		}
		if err != nil || got.String() != want {
			t.Errorf("%q is written\n%s, want\n%s (%v)", tt.text, got, want, err)
		}
	}
}

func TestParseValues(t *testing.T) {
	g := gate(t, `http+unix:/run/a:b.sock:/x?y status=2xx,404 body~="up [0-9]" successes=2 within=10s every=100ms failures=5 timeout=1s host=web`)
	if g.network != "unix" || g.address != "/run/a:b.sock" || g.uri != "/x?y" || g.host != "web" || !g.status.has(299) || g.status.has(300) || !g.status.has(404) ||
		!g.body.MatchString("up 3") || g.successes != 2 || g.within != 10*time.Second || g.every != 100*time.Millisecond || g.failures != 5 || g.timeout != time.Second {
		t.Errorf("%+v", g)
	}
	g = gate(t, `"https://host/a b?c"`)
	if g.uri != "/a%20b?c" || g.String() != `"https://host/a b?c"` {
		t.Errorf("%+v", g)
	}
}

// What docs/gates.md shows is a gate, and it tells of all options with their defaults.
func TestDocument(t *testing.T) {
	raw, err := os.ReadFile("../../docs/gates.md")
	if err != nil {
		t.Fatal(err)
	}
	page := string(raw)
	shown := regexp.MustCompile(`--gate '([^']*)'`).FindAllStringSubmatch(page, -1)
	shown = append(shown, regexp.MustCompile(`(?m)^Gate=(.*)$`).FindAllStringSubmatch(page, -1)...)
	if len(shown) != 6 {
		t.Errorf("%d gates are shown", len(shown))
	}
	for _, m := range shown {
		gate(t, m[1])
	}
	for _, text := range []string{"http://h/", "https://h/", "http+unix:/s:/", "tcp:h:1", "unix:/s", "exec:/x", "journal:x", "journal!:x", "errors:5"} {
		g := gate(t, text)
		if !strings.Contains(page, "`"+schemeOf(g.kind)) {
			t.Errorf("no word of %s", g.kind)
		}
		for _, name := range optionsOf(g.kind) {
			if !strings.Contains(page, "| `"+name+"=") {
				t.Errorf("no word of %s=", name)
			}
		}
	}
	for name, text := range map[string]string{"within=D": "30s", "every=D": "500ms; `exec:` 2s", "timeout=D": "2s; `exec:` 10s", "failures=N": "3", "successes=N": "3; `exec:`, `journal:` 1", "for=D": "1s"} {
		if !strings.Contains(page, "| `"+name+"` | "+text+" |") {
			t.Errorf("the default of %s is another", name)
		}
	}
	if h, e, j, s := defaults(kindTCP), defaults(kindExec), defaults(kindJournal), defaults(kindSilence); h.within != 30*time.Second || e.within != h.within || j.within != h.within ||
		h.every != 500*time.Millisecond || e.every != 2*time.Second || h.timeout != 2*time.Second || e.timeout != 10*time.Second || h.failures != 3 || e.failures != 3 ||
		h.successes != 3 || e.successes != 1 || j.successes != 1 || s.within != time.Second {
		t.Error("the document has other defaults")
	}
}

func TestGateJSON(t *testing.T) {
	data, err := json.Marshal([]Gate{gate(t, `tcp:h:1 within=1m`)})
	if err != nil || string(data) != `["tcp:h:1 within=1m"]` {
		t.Error(string(data), err)
	}
	var gates []Gate
	if err := json.Unmarshal(data, &gates); err != nil || len(gates) != 1 || gates[0].within != time.Minute {
		t.Error(gates, err)
	}
	if err := json.Unmarshal([]byte(`["tcp:"]`), &gates); err == nil {
		t.Error("nonsense is taken")
	}
	if (Gate{}).String() != "" {
		t.Error("no gate has a text")
	}
	if d := Longest([]Gate{gate(t, "tcp:h:1 within=1m"), gate(t, "journal!:x")}); d != time.Minute {
		t.Error(d)
	}
}

// What is read and written is read as the same again.
func FuzzParse(f *testing.F) {
	for _, seed := range []string{
		`http://127.0.0.1:8080/healthz status=200 body~="ok" successes=3 within=30s every=500ms failures=3 timeout=2s`,
		`http+unix:@a:/b host=c`, `https://[::1]/ verify=no from=anyone`, `tcp:a:1`, `unix:"/a b"`, `within=1s exec:/a 'b "c' "d'e" ''`,
		`journal:"a b" successes=2`, `journal!:'"' for=3s`, `http://h/ status=200-204,5xx`, `http://h/ body~='"'"'"`,
	} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		g, err := Parse(text)
		if err != nil {
			return
		}
		canonical := g.String()
		again, err := Parse(canonical)
		if len(canonical) > lineLimit {
			return // quotes make it longer
		}
		if err != nil {
			t.Fatalf("%q is written %q: %v", text, canonical, err)
		}
		if again.String() != canonical {
			t.Fatalf("%q is written %q and then %q", text, canonical, again)
		}
		if again.address != g.address || again.uri != g.uri || again.host != g.host || strings.Join(again.argv, "\x00") != strings.Join(g.argv, "\x00") || again.within != g.within || again.timeout != g.timeout {
			t.Fatalf("%q: %+v and %+v", text, g, again)
		}
		if g.Within() < timeLeast || g.kind == kindExec && !strings.HasPrefix(g.argv[0], "/") {
			t.Fatalf("%q: %+v", text, g)
		}
	})
}
