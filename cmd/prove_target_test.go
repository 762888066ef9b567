package cmd

import (
	"errors"
	"net"
	"os"
	"path/filepath"
	"testing"

	"github.com/zdt-dev/zdt/handoff/control"
)

func TestParseTarget(t *testing.T) {
	for s, want := range map[string]target{
		"http://example.com":          {Network: "tcp", Address: "example.com:80", Host: "example.com"},
		"http://example.com:8080/a?b": {Network: "tcp", Address: "example.com:8080", Host: "example.com:8080", Path: "/a?b"},
		"http://[::1]":                {Network: "tcp", Address: "[::1]:80", Host: "[::1]"},
		"http://[::1]:81?x":           {Network: "tcp", Address: "[::1]:81", Host: "[::1]:81", Path: "/?x"},
		"unix:/run/web.sock":          {Network: "unix", Address: "/run/web.sock", Host: "localhost"},
		"unix:@web":                   {Network: "unix", Address: "@web", Host: "localhost"},
	} {
		if got, err := parseTarget(s); err != nil || *got != want {
			t.Errorf("%s: %+v, %v", s, got, err)
		}
	}
}

func TestChooseSocket(t *testing.T) {
	tcp := func(name, address string) control.Socket {
		return control.Socket{Name: name, Network: "tcp", Address: address, InUse: true}
	}
	unused := tcp("http", ":1")
	unused.InUse = false
	udp := control.Socket{Name: "http", Network: "udp", Address: ":53", InUse: true}
	unix := control.Socket{Name: "local", Network: "unix", Address: "/run/web", InUse: true}
	for _, tt := range []struct {
		sockets []control.Socket
		want    string
	}{
		{[]control.Socket{unused, udp, tcp("metrics", ":9090"), tcp("http", ":80")}, "http"},
		{[]control.Socket{tcp("https", ":443"), tcp("web", ":8080"), tcp("other", ":8081")}, "web"},
		{[]control.Socket{tcp("admin", ":8081"), tcp("http-public", ":80")}, "http-public"},
		{[]control.Socket{tcp("https", ":443"), unix}, "local"},
		{[]control.Socket{tcp("https", ":443")}, "https"},
		{[]control.Socket{unused, udp}, ""},
	} {
		got, err := chooseSocket(tt.sockets)
		if got.Name != tt.want && err == nil || (err != nil) != (tt.want == "") {
			t.Errorf("%+v: %+v, %v", tt.sockets, got, err)
		}
	}
}

func TestLocalAddress(t *testing.T) {
	for s, want := range map[string]string{
		"0.0.0.0:80": "127.0.0.1:80", "[::]:8080": "[::1]:8080", "127.0.0.53:53": "127.0.0.53:53", "[::1]:1": "[::1]:1",
		"192.0.2.1:80": "", "example.com:80": "", "/run/x": "", "[2001:db8::1]:80": "",
	} {
		if got, err := localAddress(s); got != want || (err == nil) != (want != "") {
			t.Errorf("%s: %q, %v", s, got, err)
		}
	}
}

// The path of a unix socket is the service's word: root goes only where the service's user could go.
func TestOpenServiceSocket(t *testing.T) {
	dir, err := os.MkdirTemp("", "zdt")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	path := filepath.Join(dir, "web.sock")
	ln, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	link, plain := filepath.Join(dir, "link"), filepath.Join(dir, "plain")
	if err := errors.Join(os.Symlink(path, link), os.WriteFile(plain, nil, 0o666), os.Chmod(plain, 0o666), os.Symlink(dir, dir+"-link")); err != nil {
		t.Fatal(err)
	}
	defer os.Remove(dir + "-link")
	me, other := uint32(os.Geteuid()), uint32(os.Geteuid()+1)
	for _, tt := range []struct {
		path string
		mode os.FileMode
		uid  uint32
		ok   bool
	}{
		{path, 0o600, me, true}, {path, 0o660, other, false}, {path, 0o666, other, true},
		{link, 0o666, me, false}, {dir + "-link/web.sock", 0o666, me, false}, {plain, 0o666, me, false}, {dir + "/none", 0o666, me, false},
	} {
		if err := os.Chmod(path, tt.mode); err != nil {
			t.Fatal(err)
		}
		file, err := openServiceSocket(tt.path, tt.uid)
		if (err == nil) != tt.ok {
			t.Errorf("%s with mode %o for uid %d: %v", tt.path, tt.mode, tt.uid, err)
		}
		if err == nil {
			tg := &target{Network: "unix", Address: tt.path, file: file}
			conn, err := tg.dial(t.Context())
			if err != nil {
				t.Error(err)
			} else {
				conn.Close()
			}
			tg.close()
		}
	}
}
