package redact

import (
	"strings"
	"testing"
	"unicode/utf8"
)

// secret stands for each secret of the tables; no output may have it.
const secret = "hunter2-Wq7zP0"

func TestText(t *testing.T) {
	for in, want := range map[string]string{
		"nothing to see, at 127.0.0.1:8080 for 3 s":                                          "",
		"listen on [::]:8080, /run/zdt/web/control.sock, pid 12":                             "",
		"--password=" + secret + " --port=80":                                                "--password=* --port=80",
		"--password " + secret + " --port 80":                                                "--password * --port 80",
		"-api-key " + secret:                                                                 "-api-key *",
		`"--password=two ` + secret + `" -v`:                                                 `"--password=*" -v`,
		`--password="two ` + secret + `" -v`:                                                 `--password="*" -v`,
		`--password=two\ ` + secret + ` -v`:                                                  `--password=* -v`,
		"DB_PASSWORD=" + secret + " MODE=prod":                                               "DB_PASSWORD=* MODE=prod",
		"token: " + secret:                                                                   "token: *",
		`{"user":"bob","accessToken": "` + secret + `","n":1}`:                               `{"user":"bob","accessToken": "*","n":1}`,
		`msg="{\"apiKey\":\"` + secret + `\",\"n\":1}"`:                                      `msg="{\"apiKey\":\"*\",\"n\":1}"`,
		"client_secret => " + secret:                                                         "client_secret => *",
		"sessionId=" + secret:                                                                "sessionId=*",
		"--tls-key=/etc/ssl/web.key --password-file=/etc/web.pw":                             "",
		"monkey=banana passenger=7 keyboard=de":                                              "",
		"--no-password --verbose":                                                            "",
		"postgres://web:" + secret + "@db:5432/shop":                                         "postgres://*@db:5432/shop",
		"postgres://web:a/b?" + secret + "@db:5432/shop":                                     "postgres://*@db:5432/shop",
		"https://" + secret + "@example.org/x":                                               "https://*@example.org/x",
		"web:" + secret + "@tcp(db:3306)/shop":                                               "web:*@tcp(db:3306)/shop",
		"curl -u web:" + secret + " https://example.org":                                     "curl -u web:* https://example.org",
		"see https://example.org:8080/@bob":                                                  "",
		"GET /x?page=2&sig=" + secret + " HTTP/1.1":                                          "GET /x?page=*&sig=* HTTP/1.1",
		"GET /x;jsessionid=" + secret + " HTTP/1.1":                                          "GET /x;jsessionid=* HTTP/1.1",
		"sh -c 'test -e /x || y;z=1'":                                                        "",
		"Authorization: Digest username=\"u\", r=\"" + secret + "\"\nnext":                   "Authorization: *\nnext",
		`-H "Authorization: Bearer ` + secret + `" -v`:                                       `-H "Authorization: *`,
		`{"authorization":"Basic ` + secret + `","n":1}`:                                     `{"authorization":"*","n":1}`,
		"Set-Cookie: sid=" + secret + "; Path=/":                                             "Set-Cookie: *",
		"sent Bearer " + secret + ", got 401":                                                "sent Bearer * got 401",
		"basic functionality is there":                                                       "",
		"a -----BEGIN RSA PRIVATE KEY-----\n" + secret + "\n-----END RSA PRIVATE KEY----- b": "a -----BEGIN RSA PRIVATE KEY-----*-----END RSA PRIVATE KEY----- b",
		"a -----BEGIN PRIVATE KEY-----\nMIIE\n" + secret:                                     "a -----BEGIN PRIVATE KEY-----*",
		"jwt eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.c2lnbmF0dXJl ok":                           "jwt * ok",
		"ghp_0123456789abcdefghijABCDEFGHIJ012345":                                           "*",
		"AKIAIOSFODNN7EXAMPLE":                                                               "*",
		"id 0123456789abcdef0123456789abcdef":                                                "id *",
		"id 01234567-89ab-cdef-0123-456789abcdef":                                            "id *",
		"key wJalrXUtnFEMI/K7MDENG+bPxRfiCYzQ8a1b2c3d":                                       "key *",
		"at 12345678901234567890123456789012345678":                                          "",
		"/var/lib/zdt/web/releases/20261123T172211Z-0123456789ab/web":                        "",
		"upgrade 20261101T101112123Z-00ff00ff of web":                                        "",
		"sum " + kept + ".":                                                                  "",
		"/usr/lib/x86_64-linux-gnu/perl-base/auto/List/Util/Util.so":                         "",
		"github.com/zdt-dev/zdt/internal/sockowner.TestSomethingLonger":                      "",
		"password=\x00" + secret:                                                             "password=*",
		"\xffpassword=" + secret + "\x1b[31m":                                                "\uFFFDpassword=*",
	} {
		if want == "" {
			want = in
		}
		var r Redactor
		r.Keep(kept)
		got := r.Text(in)
		if stars(got) != want || strings.Contains(got, secret) {
			t.Errorf("Text(%q)\n got %q\nwant %q", in, stars(got), want)
		}
		if again := r.Text(got); again != got {
			t.Errorf("Text(%q) again: %q", got, again)
		}
		if n := len(r.Take()); (n > 0) != (want != in && strings.Contains(want, "*")) {
			t.Errorf("Text(%q) counts %d kinds", in, n)
		}
	}
}

const kept = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"

// stars are short for what was taken out.
func stars(s string) string {
	var b strings.Builder
	for {
		head, rest, ok := strings.Cut(s, "«redacted ")
		b.WriteString(head)
		if !ok {
			return b.String()
		}
		b.WriteString("*")
		_, s, _ = strings.Cut(rest, " bytes»")
	}
}

func TestUnit(t *testing.T) {
	in := `# Environment=OLD=` + secret + `
[Service]
Environment=A=1 "B=two ` + secret + `" C=
Environment = D='` + secret + `' \
    E=` + secret + ` \
# Environment=F=` + secret + `
    G=` + secret + `
PassEnvironment=HOME PATH
EnvironmentFile=-/etc/web.env
SetCredential=db:` + secret + `
StandardInputText=` + secret + `
LoadCredential=tls:/etc/ssl/web.key
ExecStart=/bin/web -l :80 --token ` + secret + ` \
  --dsn postgres://web:` + secret + `@db/x
Restart=always
[X-Zdt]
Generated=sha256:` + kept + `
Health=http://u:` + secret + `@localhost/healthz?k=` + secret + `
RequireSignature=always
ApiToken=` + secret + `
Environment=LAST=` + secret + ` \`
	want := `# Environment=OLD=*
[Service]
Environment=A=* B=* C=
# Environment=F=*
Environment = D=* E=* G=*
PassEnvironment=HOME PATH
EnvironmentFile=-/etc/web.env
SetCredential=db:*
StandardInputText=*
LoadCredential=tls:*
ExecStart=/bin/web -l :80 --token *    --dsn *
Restart=always
[X-Zdt]
Generated=sha256:` + kept + `
Health=http://*@localhost/healthz?k=*
RequireSignature=always
ApiToken=*
Environment=LAST=*
`
	var r Redactor
	if got := stars(r.Unit(in)); got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
	if c := r.Take(); c[Environment] != 8 || c[Credential] != 3 || c[Argument] != 3 || c[URL] != 3 {
		t.Errorf("counted %v", c)
	}
}

func TestEnvironmentFile(t *testing.T) {
	in := "# OLD=" + secret + "\nA=" + secret + "\n\n B = \"one\nC=" + secret + "\"\nD=one\\\nE=" + secret + "\nno name " + secret + "\nF=\n"
	want := "*\nA=*\nB=*\nD=*\n*\nF=\n"
	var r Redactor
	if got := stars(r.EnvironmentFile(in)); got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestArgs(t *testing.T) {
	var r Redactor
	got := stars(strings.Join(r.Args([]string{"/bin/web", "--password", secret, "--key", "/etc/web.key", "-l", ":80", "--token=two " + secret, "--secret", "--verbose"}), "|"))
	if want := "/bin/web|--password|*|--key|/etc/web.key|-l|:80|--token=*|--secret|--verbose"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
}

// What is a secret in the configuration is one in a log line, whatever stands around it there; words that everybody uses are not.
func TestLearn(t *testing.T) {
	var r Redactor
	r.Learn(func() {
		r.Environ([]string{"PASSWORD=abcd", "SALT=xyzzy", "MODE=production", "LISTEN=127.0.0.1:8080", "DIR=/srv/web", "OTHER=deadbeef77", "TOKEN=info", "URL=amqp://u:rabbit-19@mq/"})
		r.Unit("ExecStart=/bin/web --token " + secret)
		r.Environ([]string{`PASS=it's "odd" & sweet`})
	})
	if n := len(r.Take()); n > 0 {
		t.Errorf("learning counts")
	}
	for _, in := range []string{`it's "odd" & sweet`, `"it's \"odd\" & sweet"`, "it%27s+%22odd%22+%26+sweet", "aXQncyAib2RkIiAmIHN3ZWV0"} {
		if got := stars(r.Text(in)); strings.Trim(got, `"`) != "*" {
			t.Errorf("%s stays as %s", in, got)
		}
	}
	in := "x" + secret + "x abcd abcde (xyzzy) production info 127.0.0.1:8080 /srv/web deadbeef77 u:rabbit-19"
	if got, want := stars(r.Text(in)), "x*x * abcde (*) production info 127.0.0.1:8080 /srv/web * *"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

// A program that prints a key writes a journal entry for each line of it.
func TestLines(t *testing.T) {
	var r Redactor
	l := r.Lines()
	var out []string
	for _, s := range []string{"begin", "-----BEGIN PRIVATE KEY-----", "short" + secret, secret, "-----END PRIVATE KEY----- end", "last"} {
		out = append(out, stars(l.Line(s)))
	}
	if got, want := strings.Join(out, "|"), "begin|-----BEGIN PRIVATE KEY-----|*|*|*-----END PRIVATE KEY----- end|last"; got != want && got != strings.Replace(want, "*-----END", "-----END", 1) {
		t.Errorf("got %s, want %s", got, want)
	}
}

// Whatever stands around it, and whatever it is made of: what stands in the place of a secret is gone, and the rest is text.
func FuzzText(f *testing.F) {
	f.Add("before ", secret, " after")
	f.Add(`"--x=`, `a"b'c`, `" -----BEGIN A-----`)
	f.Add("https://u:", "p@ss/w?rd", "@host/?a=b")
	f.Fuzz(func(t *testing.T, before, value, after string) {
		var r Redactor
		for _, out := range []string{r.Text(before + value + after), r.Unit(before + value + after), r.EnvironmentFile(before + value + after), r.Lines().Line(before + value + after)} {
			if !utf8.ValidString(out) || strings.Contains(out, "\x00") {
				t.Errorf("%q is no text", out)
			}
		}
		r.Args([]string{before, value, after})
		plain := strings.Map(func(c rune) rune {
			if c <= ' ' || c == '"' || c == '\'' || c == '\\' || c > '~' {
				return -1
			}
			return c
		}, value)
		if len(plain) < 6 || strings.Contains("«redacted 0123456789 bytes»", plain) || plainPath.MatchString(plain) {
			return
		}
		for place, context := range map[string]string{
			"argument": "web --password=" + plain, "flag": "web --password x" + plain, "variable": "DB_SECRET=" + plain, "header": "Authorization: " + plain,
			"json": `{"token":"` + plain + `"}`, "parameter": "GET /?key=" + strings.NewReplacer("&", "", "<", "", ">", "", "#", "").Replace(plain) + " HTTP/1.1",
		} {
			if got := r.Text(context); strings.Contains(got, plain) {
				t.Errorf("%s: %q stays in %q", place, plain, got)
			}
		}
		if got := r.Unit("[Service]\nEnvironment=X=" + plain + "\nSetCredential=x:" + plain + "\n"); strings.Contains(got, plain) {
			t.Errorf("unit: %q stays in %q", plain, got)
		}
		if got := r.EnvironmentFile("X=" + plain + "\n"); strings.Contains(got, plain) {
			t.Errorf("environment file: %q stays in %q", plain, got)
		}
		if len(plain) < 8 || common.MatchString(plain) || strings.Contains(before+after, plain) {
			return
		}
		r = Redactor{}
		r.Learn(func() { r.Environ([]string{"PASSWORD=" + plain}) })
		before, after = strings.ToValidUTF8(before, ""), strings.ToValidUTF8(after, "")
		if got := r.Text(before + plain + after); strings.Count(before+plain+after, plain) == 1 && strings.Contains(got, plain) {
			t.Errorf("learned: %q stays in %q", plain, got)
		}
	})
}
