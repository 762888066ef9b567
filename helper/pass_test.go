package helper

import (
	"reflect"
	"slices"
	"strconv"
	"strings"
	"testing"
)

func testSockets() []Socket {
	return []Socket{
		{"http", "tcp", "127.0.0.1:8080", 70},
		{"admin", "unix", "/run/web/admin.sock", 71},
		{"dns", "udp", "0.0.0.0:53", 72},
		{"six", "tcp6", "[::]:80", 73},
	}
}

func TestArrange(t *testing.T) {
	all := Passing{Systemd: true, ServerStarter: true, Einhorn: true, Nginx: true, generation: 3}
	tests := []struct {
		name    string
		p       Passing
		sockets []Socket
		argv    []string
		env     []string
		want    program
	}{
		{"systemd", Passing{Systemd: true}, testSockets()[:2], []string{"app", "-x"}, []string{"A=b"}, program{
			Path: "app", Argv: []string{"app", "-x"}, FDs: []int{70, 71}, Stdio: [3]int{0, 1, 2},
			Env: []string{"A=b", "LISTEN_PID=" + ownPID, "LISTEN_FDS=2", "LISTEN_FDNAMES=http:admin"},
		}},
		{"all at once", all, testSockets(), []string{"app"}, nil, program{
			Path: "app", Argv: []string{"app"}, FDs: []int{70, 71, 72, 73}, Stdio: [3]int{0, 1, 2},
			Env: []string{
				"EINHORN_FD_0=3", "EINHORN_FD_FAMILY_0=AF_INET", "EINHORN_FD_1=4", "EINHORN_FD_FAMILY_1=AF_UNIX", "EINHORN_FD_2=6", "EINHORN_FD_FAMILY_2=AF_INET6",
				"LISTEN_PID=" + ownPID, "LISTEN_FDS=4", "LISTEN_FDNAMES=http:admin:dns:six",
				"SERVER_STARTER_PORT=127.0.0.1:8080=3;/run/web/admin.sock=4;[::]:80=6", "SERVER_STARTER_GENERATION=3",
				"EINHORN_FD_COUNT=3", "EINHORN_FDS=3 4 6",
				"NGINX=3;4;5;6;",
			},
		}},
		{"none to tell", all, nil, []string{"app"}, []string{"A=b"}, program{
			Path: "app", Argv: []string{"app"}, Stdio: [3]int{0, 1, 2}, Env: []string{"A=b"},
		}},
		{"descriptor 0", Passing{Systemd: true, ServerStarter: true, Stdin: "http"}, testSockets()[:2], []string{"app", "{fd:http}{fd:admin}"}, nil, program{
			Path: "app", Argv: []string{"app", "03"}, FDs: []int{71}, Stdio: [3]int{70, 1, 2},
			Env: []string{"LISTEN_PID=" + ownPID, "LISTEN_FDS=1", "LISTEN_FDNAMES=admin",
				"SERVER_STARTER_PORT=127.0.0.1:8080=0;/run/web/admin.sock=3", "SERVER_STARTER_GENERATION=0"},
		}},
		{"descriptor 0 alone", Passing{Systemd: true, Stdin: "http"}, testSockets()[:1], []string{"app"}, nil, program{
			Path: "app", Argv: []string{"app"}, Stdio: [3]int{70, 1, 2},
		}},
		{"a port on every address", Passing{ServerStarter: true}, []Socket{{"a", "tcp", ":80", 9}}, []string{"app"}, nil, program{
			Path: "app", Argv: []string{"app"}, FDs: []int{9}, Stdio: [3]int{0, 1, 2},
			Env: []string{"SERVER_STARTER_PORT=80=3", "SERVER_STARTER_GENERATION=0"},
		}},
		{"placeholders", Passing{}, testSockets(),
			[]string{"app", "fd={fd:dns}", "{port:six}{addr:admin}", "{{fd:x}", "{{{fd:x}", "{{fd:{fd:http}", "{} {{}} {.Name} {fd} {"},
			[]string{"PORT={port:http}", "F={addr:six}", "{fd:http}=kept", "odd", "W=" + ownPID},
			program{
				Path: "app", FDs: []int{70, 71, 72, 73}, Stdio: [3]int{0, 1, 2},
				Argv: []string{"app", "fd=5", "80/run/web/admin.sock", "{fd:x}", "{{fd:x}", "{fd:3", "{} {{}} {.Name} {fd} {"},
				Env:  []string{"PORT=8080", "F=[::]:80", "{fd:http}=kept", "odd", "W=" + ownPID},
			}},
		{"stale", Passing{}, nil, []string{"app"}, []string{
			"LISTEN_PID=1", "LISTEN_PIDFDID=2", "LISTEN_FDS=3", "LISTEN_FDNAMES=a", "WATCHDOG_PID=5", "WATCHDOG_USEC=6", "SYSTEMD_EXEC_PID=7",
			"ZDT_PREDECESSOR_FD=8", "ZDT_GROUP=x", "SERVER_STARTER_PORT=80=3", "SERVER_STARTER_GENERATION=1", "NGINX=3;", "EINHORN_FDS=3", "EINHORN_FD_7=3",
			"EINHORN_MASTER_PID=1", "NOTIFY_SOCKET=/n", "NGINX_CONF=/c",
		}, program{
			Path: "app", Argv: []string{"app"}, Stdio: [3]int{0, 1, 2}, Env: []string{"WATCHDOG_USEC=6", "NOTIFY_SOCKET=/n", "NGINX_CONF=/c"},
		}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, err := tt.p.arrange(tt.sockets, tt.argv, tt.env)
			if err != nil {
				t.Fatal(err)
			}
			if !reflect.DeepEqual(got, tt.want) {
				t.Errorf("got  %#v\nwant %#v", got, tt.want)
			}
		})
	}
}

func TestArrangeRefuses(t *testing.T) {
	twice := []Socket{{"a", "tcp", "1.2.3.4:5", 9}, {"a", "tcp", "1.2.3.4:6", 10}}
	tests := []struct {
		p         Passing
		sockets   []Socket
		argv, env []string
		want      string
	}{
		{Passing{}, nil, nil, nil, "no command to run"},
		{Passing{}, nil, []string{""}, nil, "no command to run"},
		{Passing{}, testSockets(), []string{"app", "-l{fd:htp}"}, nil, `argument 1 "-l{fd:htp}": {fd:htp}: no socket is named "htp", there is: admin, dns, http, six; write {{fd: for the text itself`},
		{Passing{}, nil, []string{"app"}, []string{"X={port:http}"}, `variable X: {port:http}: no socket is named "http", there are none at all`},
		{Passing{}, testSockets(), []string{"app", "{fd:http"}, nil, "has no closing brace"},
		{Passing{}, testSockets(), []string{"app", "{port:admin}"}, nil, `the socket's address "/run/web/admin.sock" has no port`},
		{Passing{}, twice, []string{"app", "{fd:a}"}, nil, `2 sockets are named "a"`},
		{Passing{Stdin: "a"}, twice, []string{"app"}, nil, "more than one of that name"},
		{Passing{Stdin: "b"}, twice, []string{"app"}, nil, `as descriptor 0: no socket is named "b", there is: a`},
		{Passing{ServerStarter: true}, []Socket{{"a", "unix", "/run/a=b", 9}}, []string{"app"}, nil, "must not hold = or ;"},
		{Passing{}, []Socket{{"a:b", "tcp", "1.2.3.4:5", 9}}, []string{"app"}, nil, `pass socket "a:b"`},
		{Passing{}, []Socket{{"", "tcp", "1.2.3.4:5", 9}}, []string{"app"}, nil, `pass socket ""`},
		{Passing{}, nil, []string{"app", "a\x00b"}, nil, "argument 1"},
		{Passing{}, nil, []string{"app"}, []string{"A=\x00"}, `variable "A"`},
		{Passing{}, []Socket{{"a", "tcp", "1.2.3.4:5", -1}}, []string{"app"}, nil, "pass descriptor -1"},
	}
	for _, tt := range tests {
		_, err := tt.p.arrange(tt.sockets, tt.argv, tt.env)
		if err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%+v %q: %v, want %q", tt.p, tt.argv, err, tt.want)
		}
	}
}

// FuzzArrange: no panic, and no number is told that the program does not have.
func FuzzArrange(f *testing.F) {
	f.Add("http", "tcp", "127.0.0.1:80", "-l={fd:http}", "A={port:http}{{fd:x}", uint8(0xff), "")
	f.Add("a", "unix", "/run/a", "{addr:a}", "LISTEN_FDS=4", uint8(3), "a")
	f.Add("a", "udp", ":1", "{fd:b}{", "X", uint8(8), "b")
	f.Fuzz(func(t *testing.T, name, network, address, arg, variable string, flags uint8, stdin string) {
		p := Passing{Systemd: flags&1 != 0, ServerStarter: flags&2 != 0, Einhorn: flags&4 != 0, Nginx: flags&8 != 0, Stdin: stdin}
		sockets := []Socket{{name, network, address, 100}, {"second", "tcp", "[::1]:443", 200}}
		prog, err := p.arrange(sockets, []string{"app", arg, "{fd:second}"}, []string{variable})
		if err != nil {
			return
		}
		has := func(text string) {
			n, err := strconv.Atoi(text)
			if err != nil || n < 0 || n > 0 && (n < 3 || n >= 3+len(prog.FDs)) || n == 0 && (stdin == "" || prog.Stdio[0] == 0) {
				t.Errorf("%q is not a descriptor of %+v", text, prog)
			}
		}
		has(prog.Argv[2])
		// What came with the variable is first, if anything; behind it is what is told.
		told := prog.Env
		if len(told) > 0 && !isStale(variable) {
			told = told[1:]
		}
		for _, kv := range told {
			key, value, _ := strings.Cut(kv, "=")
			switch {
			case key == "LISTEN_FDS":
				if value != strconv.Itoa(len(prog.FDs)) {
					t.Errorf("%s for %+v", kv, prog)
				}
			case key == "NGINX":
				for n := range strings.SplitSeq(strings.TrimSuffix(value, ";"), ";") {
					has(n)
				}
			case key == "EINHORN_FDS":
				for n := range strings.SplitSeq(value, " ") {
					has(n)
				}
			case key == "SERVER_STARTER_PORT":
				for one := range strings.SplitSeq(value, ";") {
					_, n, _ := strings.Cut(one, "=")
					has(n)
				}
			case strings.HasPrefix(key, "EINHORN_FD_") && key != "EINHORN_FD_COUNT" && !strings.HasPrefix(key, "EINHORN_FD_FAMILY_"):
				has(value)
			}
		}
		if slices.ContainsFunc(prog.Argv, func(s string) bool { return strings.Contains(s, "\x00") }) {
			t.Errorf("NUL in %q", prog.Argv)
		}
	})
}

func TestOrdersTravel(t *testing.T) {
	for _, p := range []program{
		{Path: "/bin/a"},
		{Path: "a", Dir: "/tmp", Argv: []string{"a", "", "\xff\xfe", "long " + strings.Repeat("x", 1<<17)}, Env: []string{"LISTEN_PID=" + ownPID}, IgnoreSIGPIPE: true},
	} {
		got, err := decodeOrders(encodeOrders(p))
		if err != nil || !reflect.DeepEqual(got, p) {
			t.Errorf("got %+v, %v, want %+v", got, err, p)
		}
	}
}

func FuzzOrders(f *testing.F) {
	f.Add(encodeOrders(program{Path: "/bin/a", Argv: []string{"a", "b"}, Env: []string{"C=d"}, Dir: "/"}))
	f.Add([]byte{1, 0xff, 0xff, 0xff, 0xff})
	f.Fuzz(func(t *testing.T, b []byte) {
		p, err := decodeOrders(b)
		if err != nil {
			return
		}
		if got := encodeOrders(p); !slices.Equal(got, b) {
			t.Errorf("decoded %q, encoded again %q", b, got)
		}
	})
}
