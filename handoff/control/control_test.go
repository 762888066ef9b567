package control

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// runtime plays a runtime on a socket: serve answers each connection.
func runtime(t *testing.T, serve func(conn net.Conn, r *bufio.Reader)) (path string) {
	t.Helper()
	dir, err := os.MkdirTemp("", "zdt") // short enough for a socket
	if err != nil {
		t.Fatal(err)
	}
	path = filepath.Join(dir, "c")
	ln, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			serve(conn, bufio.NewReader(conn))
			conn.Close()
		}
	}()
	t.Cleanup(func() {
		ln.Close()
		<-done
		os.RemoveAll(dir)
	})
	return path
}

func dialOrFail(t *testing.T, path string) *Client {
	t.Helper()
	c, err := Dial(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// The requests on the wire: their names never change.
func TestRequests(t *testing.T) {
	var got []string
	path := runtime(t, func(conn net.Conn, r *bufio.Reader) {
		for {
			line, err := ReadLine(r)
			if err != nil {
				return
			}
			got = append(got, string(line))
			io.WriteString(conn, `{"status":{"pid":7,"phase":"idle","connections":{"idle":2,"active":1}}}`+"\n")
		}
	})
	ctx, c := t.Context(), dialOrFail(t, path)
	if p := c.Peer(); p.PID != os.Getpid() || int(p.UID) != os.Geteuid() {
		t.Errorf("peer %+v", p)
	}
	for _, call := range []func() (Status, error){
		func() (Status, error) { return c.Status(ctx) },
		func() (Status, error) {
			return c.Arm(ctx, Arm{TxID: "t", Exe: "/x", Hold: true, HoldFor: time.Second, ReadyTimeout: time.Minute})
		},
		func() (Status, error) { return c.Disarm(ctx, "t") },
		func() (Status, error) { return c.Commit(ctx, "t") },
		func() (Status, error) { return c.Abort(ctx, "t", "no") },
		func() (Status, error) { return c.Reclaim(ctx) },
	} {
		st, err := call()
		if err != nil || st.PID != 7 || st.Phase != Idle || st.Connections.Open() != 3 {
			t.Errorf("%+v, %v", st, err)
		}
	}
	want := []string{
		`{"op":"status"}`,
		`{"op":"arm","txid":"t","arm":{"txid":"t","exe":"/x","hold":true,"hold_for":1000000000,"ready_timeout":60000000000}}`,
		`{"op":"disarm","txid":"t"}`, `{"op":"commit","txid":"t"}`, `{"op":"abort","txid":"t","reason":"no"}`, `{"op":"reclaim"}`,
	}
	if g, w := strings.Join(got, "\n"), strings.Join(want, "\n"); g != w {
		t.Errorf("requests\n%s\nwant\n%s", g, w)
	}
}

func TestAnswers(t *testing.T) {
	for _, tt := range []struct {
		name, answer string
		check        func(st Status, err error) bool
	}{
		{"refused", `{"code":"busy","error":"a handoff is in progress","status":{"pid":7}}` + "\n", func(st Status, err error) bool {
			var refused *Error
			return errors.As(err, &refused) && refused.Code == CodeBusy && refused.Op == OpCommit && err.Error() == "commit: a handoff is in progress" && st.PID == 7
		}},
		{"fields of a newer runtime", `{"status":{"pid":7,"more":{}},"more":1}` + "\n", func(st Status, err error) bool { return err == nil && st.PID == 7 }},
		{"no JSON", "hello\n", func(_ Status, err error) bool { return err != nil && strings.Contains(err.Error(), "runtime's answer") }},
		{"nothing", "", func(_ Status, err error) bool { return errors.Is(err, io.EOF) }},
		{"half a line", `{"status":`, func(_ Status, err error) bool { return errors.Is(err, io.EOF) }},
		{"long texts", `{"code":"busy","error":"` + strings.Repeat("e", 3*maxText) + `","status":{"last":{"reason":"` + strings.Repeat("r", 3*maxText) + `"}}}` + "\n", func(st Status, err error) bool {
			return err != nil && len(err.Error()) < 2*maxText && len(st.Last.Reason) < 2*maxText
		}},
		{"too long", strings.Repeat("x", maxLine+1) + "\n", func(_ Status, err error) bool {
			return err != nil && strings.Contains(err.Error(), "more than 1 MiB")
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			path := runtime(t, func(conn net.Conn, r *bufio.Reader) {
				ReadLine(r)
				io.WriteString(conn, tt.answer)
			})
			if st, err := dialOrFail(t, path).Commit(t.Context(), "t"); !tt.check(st, err) {
				t.Errorf("%+v, %v", st, err)
			}
		})
	}
}

// A runtime that denies answers without having listened and hangs up.
func TestDeniedBeforeAsked(t *testing.T) {
	hungUp := make(chan struct{}, 1)
	path := runtime(t, func(conn net.Conn, r *bufio.Reader) {
		io.WriteString(conn, `{"code":"denied","error":"no"}`+"\n")
		conn.Close()
		hungUp <- struct{}{}
	})
	c := dialOrFail(t, path)
	<-hungUp
	var refused *Error
	if _, err := c.Status(t.Context()); !errors.As(err, &refused) || refused.Code != CodeDenied {
		t.Errorf("%v, want code %q", err, CodeDenied)
	}
}

func TestContextEnds(t *testing.T) {
	path := runtime(t, func(conn net.Conn, r *bufio.Reader) { io.Copy(io.Discard, r) })
	c := dialOrFail(t, path)
	cause := errors.New("the operator pressed Ctrl-C")
	ctx, cancel := context.WithCancelCause(t.Context())
	time.AfterFunc(20*time.Millisecond, func() { cancel(cause) })
	if _, err := c.Status(ctx); !errors.Is(err, cause) {
		t.Errorf("call: %v", err)
	}
	ctx, cancelWatch := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancelWatch()
	for _, err := range c.Watch(ctx) {
		if !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("watch: %v", err)
		}
	}
}

func TestWatchEndsWithTheRuntime(t *testing.T) {
	path := runtime(t, func(conn net.Conn, r *bufio.Reader) {
		ReadLine(r)
		for _, p := range []Phase{Idle, Draining, Exited, Idle} {
			json.NewEncoder(conn).Encode(Response{Status: &Status{Phase: p}})
		}
	})
	var got []Phase
	for st, err := range dialOrFail(t, path).Watch(t.Context()) {
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, st.Phase)
	}
	if len(got) != 3 || got[2] != Exited {
		t.Errorf("phases %v", got)
	}
	for range dialOrFail(t, path).Watch(t.Context()) {
		break // leaving the loop is fine
	}
}

func TestDialErrors(t *testing.T) {
	dir, err := os.MkdirTemp("", "zdt")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	path := func(name string) string { return filepath.Join(dir, name) }
	stale, err := net.ListenUnix("unix", &net.UnixAddr{Name: path("stale"), Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	stale.SetUnlinkOnClose(false)
	stale.Close()
	if err := os.WriteFile(path("file"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	live := runtime(t, func(net.Conn, *bufio.Reader) { t.Error("connected through a symlink") })
	if err := os.Symlink(live, path("link")); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(filepath.Dir(live), path("dir")); err != nil {
		t.Fatal(err)
	}
	if _, err := Dial(t.Context(), path("none")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("no socket: %v", err)
	}
	if _, err := Dial(t.Context(), path("stale")); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("nobody listens: %v", err)
	}
	for _, name := range []string{"file", "link", "dir/c", "file/c", ""} {
		if c, err := Dial(t.Context(), path(name)); err == nil {
			c.Close()
			t.Errorf("connected to %q", name)
		}
	}
}

func FuzzReadLine(f *testing.F) {
	f.Add([]byte("{\"op\":\"status\"}\n{}\n"), 16)
	f.Add([]byte("no newline"), 1)
	f.Add(bytes.Repeat([]byte("x"), 9000), 4096)
	f.Fuzz(func(t *testing.T, data []byte, size int) {
		r := bufio.NewReaderSize(bytes.NewReader(data), size%8192)
		var back []byte
		for {
			line, err := ReadLine(r)
			if err != nil {
				break
			}
			if bytes.IndexByte(line, '\n') >= 0 {
				t.Errorf("a newline in %q", line)
			}
			back = append(append(back, line...), '\n')
		}
		if want := data[:bytes.LastIndexByte(data, '\n')+1]; !bytes.Equal(back, want) {
			t.Errorf("read %q of %q", back, data)
		}
	})
}

// Whatever a service user sends, the client neither panics nor takes it for
// an answer without a status and without an error.
func FuzzResponse(f *testing.F) {
	f.Add([]byte(`{"status":{"pid":1,"last":{"exit":{}},"armed":{"txid":"x"}}}`))
	f.Add([]byte(`{"code":"busy"}`))
	f.Add([]byte(`null`))
	f.Fuzz(func(t *testing.T, line []byte) {
		if bytes.IndexByte(line, '\n') >= 0 {
			return
		}
		c := &Client{r: bufio.NewReader(bytes.NewReader(append(line, '\n')))}
		st, err := c.receive(OpStatus)
		if err != nil {
			var refused *Error
			if errors.As(err, &refused) && refused.Code == "" {
				t.Error("a refusal without a code")
			}
			return
		}
		if _, err := json.Marshal(st); err != nil {
			t.Errorf("a status that cannot be told on: %v", err)
		}
	})
}
