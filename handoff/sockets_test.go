package handoff

import (
	"net"
	"strings"
	"testing"
)

func TestClaim(t *testing.T) {
	inherited := func() *sockets {
		return &sockets{all: []*socket{
			{name: "http", network: "tcp", address: "[::]:80", origin: fromSystemd},
			{name: "http", network: "tcp", address: "[::]:443", origin: fromSystemd},
			{name: "dns", network: "udp", address: "0.0.0.0:53", origin: fromSystemd},
			{name: "dns", network: "tcp", address: "0.0.0.0:53", origin: fromSystemd},
			{name: "unknown", network: "unix", address: "/run/web.sock", origin: fromSystemd},
			{name: "web.socket", network: "tcp", address: "127.0.0.1:9090", origin: fromPredecessor},
			{name: "own", network: "tcp", address: "127.0.0.1:1", origin: boundHere},
		}}
	}
	type wish struct{ name, network, address string }
	for _, tt := range []struct {
		name   string
		before []wish
		wish
		want int // index, -1 for none
		err  string
	}{
		{"by name", nil, wish{"http", "tcp", ":80"}, 0, ""},
		{"by name and address", nil, wish{"http", "tcp", ":443"}, 1, ""},
		{"by name with another address", nil, wish{"http", "tcp", ":8080"}, 0, ""},
		{"the second of a name", []wish{{"http", "tcp", ":8080"}}, wish{"http", "tcp", ":8080"}, 1, ""},
		{"all of a name are taken", []wish{{"http", "tcp", ":80"}, {"http", "tcp", ":443"}}, wish{"http", "tcp", ":80"}, 0, "in use"},
		{"one name, two kinds", nil, wish{"dns", "tcp", ":53"}, 3, ""},
		{"one name, the other kind", nil, wish{"dns", "udp4", ":53"}, 2, ""},
		{"one name, two kinds, taken", []wish{{"dns", "udp", ":53"}}, wish{"dns", "udp", ":53"}, 2, "in use"},
		{"wrong kind", nil, wish{"http", "unix", "/x"}, 0, "is tcp, the program wants unix"},
		{"unnamed by address", nil, wish{"web", "unix", "/run/web.sock"}, 4, ""},
		{"unit's name by address", nil, wish{"metrics", "tcp", "127.0.0.1:9090"}, 5, ""},
		{"unit's name by name", nil, wish{"web.socket", "tcp", ":1234"}, 5, ""},
		{"unnamed with another address", nil, wish{"web", "unix", "/run/other.sock"}, -1, ""},
		{"nothing of that name", nil, wish{"admin", "tcp", ":81"}, -1, ""},
		{"bound by this process", nil, wish{"own", "tcp", "127.0.0.1:1"}, -1, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := inherited()
			for _, w := range tt.before {
				if s, err := r.claim(w.name, w.network, w.address); s == nil || err != nil {
					t.Fatalf("%v: %v, %v", w, s, err)
				}
			}
			got, err := r.claim(tt.wish.name, tt.network, tt.address)
			switch {
			case tt.err != "":
				if err == nil || !strings.Contains(err.Error(), tt.err) {
					t.Errorf("error %v, want one with %q", err, tt.err)
				}
			case err != nil:
				t.Error(err)
			case tt.want < 0:
				if got != nil {
					t.Errorf("got %+v", got)
				}
			case got != r.all[tt.want] || !got.inUse:
				t.Errorf("got %+v, want %+v", got, r.all[tt.want])
			}
		})
	}
}

func TestListenErrors(t *testing.T) {
	busy, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer busy.Close()
	r := &sockets{all: []*socket{{name: "http", network: "tcp", address: "[::]:80", origin: fromSystemd, fd: -1}}}
	for _, tt := range []struct{ name, network, address, err string }{
		{"", "tcp", ":0", "socket name"},
		{"a:b", "tcp", ":0", "socket name"},
		{"admin", "tcp", busy.Addr().String(), `not among the inherited ones [http (tcp [::]:80)]`},
		{"http", "udp", ":0", "is tcp, the program wants udp"},
		{"x", "carrier-pigeon", ":0", "carrier-pigeon"},
	} {
		if ln, _, err := r.listen(tt.name, tt.network, tt.address); err == nil || !strings.Contains(err.Error(), tt.err) {
			t.Errorf("listen %v: %v, %v", tt, ln, err)
		}
	}
}
