package dbusctl

import (
	"context"
	"errors"
	"go/ast"
	"go/parser"
	"go/token"
	"io"
	"net"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"syscall"
	"testing"

	"github.com/godbus/dbus/v5"
)

func TestDialWithoutBus(t *testing.T) {
	_, err := Dial(testContext(t), Options{Address: "unix:path=" + filepath.Join(t.TempDir(), "none")})
	var e *Error
	if !errors.Is(err, ErrNoBus) || !errors.As(err, &e) || e.Hint == "" || !strings.Contains(err.Error(), "no such file") {
		t.Errorf("err = %v", err)
	}
}

func TestDialBusWithoutSystemd(t *testing.T) {
	b := startBus(t)
	_, err := Dial(testContext(t), Options{Address: b.address})
	if !errors.Is(err, ErrNoBus) {
		t.Errorf("err = %v, want ErrNoBus", err)
	}
}

func TestDialHungBus(t *testing.T) {
	path := filepath.Join(t.TempDir(), "bus")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	ctx, cancel := context.WithCancel(context.Background())
	asked := make(chan net.Conn, 1)
	go func() {
		c, err := l.Accept()
		if err != nil {
			return
		}
		io.ReadFull(c, make([]byte, 1))
		cancel() // the client is now in the handshake
		asked <- c
	}()
	_, err = Dial(ctx, Options{Address: "unix:path=" + path})
	if !errors.Is(err, ErrNoBus) || !errors.Is(err, context.Canceled) {
		t.Errorf("err = %v, want ErrNoBus and context.Canceled", err)
	}
	(<-asked).Close()
}

// The context given to Dial is that of the dialling alone.
func TestConnectionOutlivesContexts(t *testing.T) {
	s := startFake(t)
	ctx, cancel := context.WithCancel(context.Background())
	m, err := Dial(ctx, Options{Address: s.bus.address})
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	cancel()
	if _, err := m.Unit(ctx, "web.service"); !errors.Is(err, context.Canceled) {
		t.Errorf("with a cancelled context: %v", err)
	}
	if _, err := m.Unit(testContext(t), "web.service"); err != nil {
		t.Errorf("afterwards: %v", err)
	}
}

func TestVersion(t *testing.T) {
	m := startFake(t).dial()
	n, full, err := m.Version(testContext(t))
	if n != 252 || full != "252.38-1~deb12u1" || err != nil {
		t.Errorf("Version = %d, %q, %v", n, full, err)
	}
}

func TestParseVersion(t *testing.T) {
	for text, want := range map[string]int{"252.38-1~deb12u1": 252, "257": 257, "v246.10": 246, "258~rc1": 258, "": 0, "debian": 0} {
		if n, err := parseVersion(text); n != want || (err != nil) != (want == 0) {
			t.Errorf("parseVersion(%q) = %d, %v", text, n, err)
		}
	}
}

func TestBusLost(t *testing.T) {
	s := startFake(t)
	m := s.dial()
	if m.Err() != nil {
		t.Fatalf("Err = %v on a live connection", m.Err())
	}
	states, err := m.Watch(testContext(t), "web.service")
	if err != nil {
		t.Fatal(err)
	}
	job := make(chan error, 1)
	go func() { job <- m.Start(testContext(t), "web.service") }()
	s.waiting(m)
	hung, release := make(chan struct{}), make(chan struct{})
	defer close(release)
	s.on(func(method, unit string) *dbus.Error { close(hung); <-release; return nil })
	call := make(chan error, 1)
	go func() { call <- m.DaemonReload(testContext(t)) }()
	<-hung

	s.bus.kill()

	for what, ch := range map[string]chan error{"job": job, "call": call} {
		if err := <-ch; !errors.Is(err, ErrNoBus) {
			t.Errorf("%s: err = %v, want ErrNoBus", what, err)
		}
	}
	for range states { // ends, although nothing ended its context
	}
	<-m.Done()
	if err := m.Err(); !errors.Is(err, ErrNoBus) {
		t.Errorf("Err = %v", err)
	}
	if err := m.Start(testContext(t), "web.service"); !errors.Is(err, ErrNoBus) {
		t.Errorf("a call on the dead connection: %v", err)
	}
	if _, err := m.Watch(testContext(t), "web.service"); !errors.Is(err, ErrNoBus) {
		t.Errorf("a watch on the dead connection: %v", err)
	}
}

func TestCloseEndsEverything(t *testing.T) {
	s := startFake(t)
	m := s.dial()
	states, err := m.Watch(testContext(t), "web.service")
	if err != nil {
		t.Fatal(err)
	}
	job := make(chan error, 1)
	go func() { job <- m.Start(testContext(t), "web.service") }()
	s.waiting(m)
	if err := m.Close(); err != nil {
		t.Error(err)
	}
	if err := <-job; !errors.Is(err, ErrNoBus) {
		t.Errorf("job: %v", err)
	}
	for range states {
	}
	if err := m.Close(); err != nil {
		t.Errorf("second Close: %v", err)
	}
	if err := m.Err(); err == nil || !strings.Contains(err.Error(), "closed") {
		t.Errorf("Err = %v", err)
	}
}

func TestEndpoints(t *testing.T) {
	none := map[string]string{}
	system := "unix:path=/run/dbus/system_bus_socket"
	tests := []struct {
		name string
		o    Options
		env  map[string]string
		euid int
		want []endpoint
	}{
		{"system as root", Options{}, none, 0, []endpoint{{system, false}, {"unix:path=/run/systemd/private", true}}},
		{"system as a user", Options{}, none, 1000, []endpoint{{system, false}}},
		{"system, told where", Options{}, map[string]string{"DBUS_SYSTEM_BUS_ADDRESS": "unix:path=/x"}, 0, []endpoint{{"unix:path=/x", false}}},
		{"explicit", Options{User: true, Address: "unix:path=/y"}, none, 0, []endpoint{{"unix:path=/y", false}}},
		{"user", Options{User: true}, map[string]string{"XDG_RUNTIME_DIR": "/run/user/1000", "DBUS_SESSION_BUS_ADDRESS": "unix:path=/z"}, 1000,
			[]endpoint{{"unix:path=/run/user/1000/bus", false}, {"unix:path=/run/user/1000/systemd/private", true}}},
		{"user, only a session bus", Options{User: true}, map[string]string{"DBUS_SESSION_BUS_ADDRESS": "unix:path=/z"}, 1000, []endpoint{{"unix:path=/z", false}}},
		{"user, nothing set", Options{User: true}, none, 1001,
			[]endpoint{{"unix:path=/run/user/1001/bus", false}, {"unix:path=/run/user/1001/systemd/private", true}}},
		{"odd directory", Options{User: true}, map[string]string{"XDG_RUNTIME_DIR": "/run/a,b"}, 1000,
			[]endpoint{{"unix:path=/run/a%2cb/bus", false}, {"unix:path=/run/a%2cb/systemd/private", true}}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got := endpoints(tt.o, func(k string) string { return tt.env[k] }, tt.euid)
			if !reflect.DeepEqual(got, tt.want) {
				t.Errorf("got  %v\nwant %v", got, tt.want)
			}
		})
	}
}

// Nobody who imports dbusctl shall depend on its D-Bus library.
func TestExportsNoForeignType(t *testing.T) {
	files, err := filepath.Glob("*.go")
	if err != nil {
		t.Fatal(err)
	}
	fset := token.NewFileSet()
	for _, file := range files {
		if strings.HasSuffix(file, "_test.go") {
			continue
		}
		f, err := parser.ParseFile(fset, file, nil, 0)
		if err != nil {
			t.Fatal(err)
		}
		if !ast.FileExports(f) { // drops bodies of nothing, but all unexported names
			continue
		}
		ast.Inspect(f, func(n ast.Node) bool {
			if _, body := n.(*ast.BlockStmt); body {
				return false
			}
			if sel, ok := n.(*ast.SelectorExpr); ok {
				if pkg, ok := sel.X.(*ast.Ident); ok && pkg.Name == "dbus" && !unexportedMethod(f, sel) {
					t.Errorf("%s: exported declaration mentions dbus.%s", fset.Position(n.Pos()), sel.Sel.Name)
				}
			}
			return true
		})
	}
}

// unexportedMethod tells whether sel stands in a method of an unexported type,
// such as the dispatcher's DeliverSignal, which the library wants exported.
func unexportedMethod(f *ast.File, sel *ast.SelectorExpr) bool {
	for _, d := range f.Decls {
		fn, ok := d.(*ast.FuncDecl)
		if !ok || fn.Recv == nil || sel.Pos() < fn.Pos() || sel.Pos() > fn.End() {
			continue
		}
		recv := fn.Recv.List[0].Type
		if star, ok := recv.(*ast.StarExpr); ok {
			recv = star.X
		}
		id, ok := recv.(*ast.Ident)
		return ok && !id.IsExported()
	}
	return false
}

func TestDialForbidden(t *testing.T) {
	// Root may open every socket, so the refusal is made up.
	refused := &net.OpError{Op: "dial", Err: os.NewSyscallError("connect", syscall.EACCES)}
	err := dialError(testContext(t), Options{User: true}, endpoint{address: "unix:path=/run/user/1/bus"}, refused)
	if !errors.Is(err, ErrNotAuthorised) || err.Hint == "" || !strings.Contains(err.Error(), "/run/user/1/bus") {
		t.Errorf("err = %v", err)
	}
}
