package unitgen

import (
	"errors"
	"strings"
	"testing"
)

func TestParseListen(t *testing.T) {
	for _, c := range []struct {
		in        string
		want      Listen
		text      string // String, "" stands for in
		directive string
	}{
		{":8080", Listen{"tcp", ":8080", ""}, "", "ListenStream=8080"},
		{"8080", Listen{"tcp", ":8080", ""}, ":8080", "ListenStream=8080"},
		{"tcp::8080=http", Listen{"tcp", ":8080", "http"}, ":8080=http", "ListenStream=8080"},
		{"127.0.0.1:80", Listen{"tcp", "127.0.0.1:80", ""}, "", "ListenStream=127.0.0.1:80"},
		{"[::1]:80=six", Listen{"tcp", "[::1]:80", "six"}, "", "ListenStream=[::1]:80"},
		{"[0:0::0:1]:080", Listen{"tcp", "[::1]:80", ""}, "[::1]:80", "ListenStream=[::1]:80"},
		{"udp::53", Listen{"udp", ":53", ""}, "", "ListenDatagram=53"},
		{"udp:[2001:db8::1]:53=dns", Listen{"udp", "[2001:db8::1]:53", "dns"}, "", "ListenDatagram=[2001:db8::1]:53"},
		{"/run/a%b.sock", Listen{"unix", "/run/a%b.sock", ""}, "", "ListenStream=/run/a%%b.sock"},
		{"unix:/run/a.sock=a-b_C9", Listen{"unix", "/run/a.sock", "a-b_C9"}, "/run/a.sock=a-b_C9", "ListenStream=/run/a.sock"},
		{"/run/a=b=c", Listen{"unix", "/run/a=b", "c"}, "", "ListenStream=/run/a=b"},
		{"@app", Listen{"unix", "@app", ""}, "", "ListenStream=@app"},
		{"unixgram:/run/log", Listen{"unixgram", "/run/log", ""}, "", "ListenDatagram=/run/log"},
		{"unixpacket:@seq", Listen{"unixpacket", "@seq", ""}, "", "ListenSequentialPacket=@seq"},
	} {
		got, err := ParseListen(c.in)
		if err != nil {
			t.Errorf("ParseListen(%q): %v", c.in, err)
			continue
		}
		if c.text == "" {
			c.text = c.in
		}
		if got != c.want || got.String() != c.text || got.directive(Spec{}) != c.directive {
			t.Errorf("ParseListen(%q) = %#v, %q, %q; want %#v, %q, %q", c.in, got, got.String(), got.directive(Spec{}), c.want, c.text, c.directive)
		}
	}
}

// Each refusal says what is wrong in words an operator can act on.
func TestParseListenRefuses(t *testing.T) {
	for in, problem := range map[string]string{
		"":                                 "not an address",
		"=http":                            "not an address",
		":":                                "not an address",
		":0":                               "port 0",
		":65536":                           "not an address",
		":-1":                              "not an address",
		":80x":                             "not an address",
		"localhost:8080":                   "resolves no names",
		"*:8080":                           "resolves no names",
		"127.0.0.1":                        "not an address",
		"[fe80::1%eth0]:80":                "interface",
		":80=":                             "is empty",
		":80=a b":                          "letters, digits",
		":80=a.b":                          "letters, digits",
		":80=a:b":                          "letters, digits",
		":80=-":                            "letters, digits",
		":80=unknown":                      "meaning of its own",
		":80=" + strings.Repeat("a", 65):   "letters, digits",
		"unix:run/a.sock":                  "absolute path",
		"unix:@":                           "absolute path",
		"/":                                "absolute path",
		"udp:/run/a.sock":                  "not an address",
		"/run/../a.sock":                   "plain path",
		"/run/a b.sock":                    "spaces",
		"/run/a\nb":                        "spaces",
		`/run/a\`:                          "spaces",
		"/run/\xff":                        "spaces",
		"/run/" + strings.Repeat("a", 103): "107",
		"@" + strings.Repeat("a", 107):     "107",
		"sctp::80":                         "not an address",
		"ListenStream=80":                  "not an address",
	} {
		_, err := ParseListen(in)
		var bad *InputError
		if !errors.As(err, &bad) || !strings.Contains(err.Error(), problem) || bad.Hint() == "" {
			t.Errorf("ParseListen(%q): %v (hint %q), want %q and a hint", in, err, bad.Hint(), problem)
		}
	}
}

func TestListenCollides(t *testing.T) {
	for _, c := range []struct {
		a, b string
		want bool
	}{
		{":80", ":80", true},
		{":80", ":81", false},
		{":80", "udp::80", false},
		{":80", "127.0.0.1:80", true},
		{":80", "0.0.0.0:80", true},
		{":80", "[::]:80", true},
		{":80", "[::1]:80", true},
		{"0.0.0.0:80", "127.0.0.1:80", true},
		{"0.0.0.0:80", "[::1]:80", false},
		{"127.0.0.1:80", "[::1]:80", false},
		{"127.0.0.1:80", "127.0.0.2:80", false},
		{"udp::53", "udp:127.0.0.1:53", false},
		{"udp::53", "udp::53=x", true},
		{"/run/a", "unixgram:/run/a", true},
		{"/run/a", "@a", false},
	} {
		a, errA := ParseListen(c.a)
		b, errB := ParseListen(c.b)
		if errA != nil || errB != nil {
			t.Fatal(errA, errB)
		}
		if a.collides(b) != c.want || b.collides(a) != c.want {
			t.Errorf("%s and %s: %v and %v, want %v", a, b, a.collides(b), b.collides(a), c.want)
		}
	}
}

// What was parsed is written so that parsing it again gives the same.
func FuzzParseListen(f *testing.F) {
	for _, s := range []string{":8080", "8080", "udp:[::1]:53=dns", "/run/x=y=z", "@a", "unixpacket:/run/a", "tcp:127.0.0.1:1=a", "[::ffff:1.2.3.4]:80", "unix:8080", "+8080", "tcp:unix:/run/a"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		l, err := ParseListen(s)
		if err != nil {
			return
		}
		again, err := ParseListen(l.String())
		if err != nil || again != l {
			t.Fatalf("ParseListen(%q) = %#v, written as %q, read back as %#v, %v", s, l, l.String(), again, err)
		}
		if strings.ContainsAny(l.directive(Spec{}), "\n\r\x00") || continues(l.directive(Spec{})) {
			t.Fatalf("directive %q of %q is not one line", l.directive(Spec{}), s)
		}
	})
}
