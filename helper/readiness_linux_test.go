package helper

import (
	"context"
	"errors"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"
)

func TestParseReadiness(t *testing.T) {
	for _, tt := range []struct {
		text string
		want Readiness // without text
		err  string
	}{
		{text: "", want: Readiness{}},
		{text: "notify", want: Readiness{}},
		{text: "http://127.0.0.1:8080/health?a=b#c", want: Readiness{kind: "http", network: "tcp", address: "127.0.0.1:8080", host: "127.0.0.1:8080", uri: "/health?a=b"}},
		{text: "http://localhost", want: Readiness{kind: "http", network: "tcp", address: "localhost:80", host: "localhost", uri: "/"}},
		{text: "https://[::1]/x", want: Readiness{kind: "https", network: "tcp", address: "[::1]:443", host: "[::1]", uri: "/x"}},
		{text: "http://:8080/", want: Readiness{kind: "http", network: "tcp", address: ":8080", host: ":8080", uri: "/"}},
		{text: "http+unix:/run/a:b.sock:/health", want: Readiness{kind: "http+unix", network: "unix", address: "/run/a:b.sock", host: "localhost", uri: "/health"}},
		{text: "http+unix:/run/admin-{generation}.sock", want: Readiness{kind: "http+unix", network: "unix", address: "/run/admin-{generation}.sock", host: "localhost", uri: "/"}},
		{text: "http+unix:@name:/", want: Readiness{kind: "http+unix", network: "unix", address: "@name", host: "localhost", uri: "/"}},
		{text: "tcp:127.0.0.1:5432", want: Readiness{kind: "tcp", network: "tcp", address: "127.0.0.1:5432"}},
		{text: "tcp::5432", want: Readiness{kind: "tcp", network: "tcp", address: ":5432"}},
		{text: "unix:/run/x.sock", want: Readiness{kind: "unix", network: "unix", address: "/run/x.sock"}},
		{text: "exec:/bin/check  --name 'a b' \"c'd\" ''", want: Readiness{kind: "exec", argv: []string{"/bin/check", "--name", "a b", "c'd", ""}}},
		{text: "alive:1m30s", want: Readiness{kind: "alive", alive: 90 * time.Second}},
		{text: "notify:now", err: "no argument"},
		{text: ":notify", err: "no argument"},
		{text: "http:8080", err: "no host"},
		{text: "http:///health", err: "no host"},
		{text: "http://host:0/", err: "not a number from 1"},
		{text: "http://host:99999/", err: "99999"},
		{text: "http://me:secret@host/", err: "a password there"},
		{text: "http://ho st/", err: "invalid character"},
		{text: "http+unix:run/x.sock:/", err: "begins with /"},
		{text: "http+unix:", err: "begins with /"},
		{text: "http+unix:/run/x.sock:/%zz", err: "invalid URL escape"},
		{text: "tcp:8080", err: "missing port"},
		{text: "tcp:host:http", err: "not a number"},
		{text: "unix:x", err: "begins with /"},
		{text: "unix:/", err: "begins with /"},
		{text: "exec:", err: errNoCommand.Error()},
		{text: "exec:   ", err: errNoCommand.Error()},
		{text: "exec:a 'b", err: "not closed"},
		{text: "alive:", err: "duration"},
		{text: "alive:0s", err: "a time that passes"},
		{text: "alive:-1s", err: "a time that passes"},
		{text: "alive:2", err: "missing unit"},
		{text: "HTTP://x/", err: "it is notify, or begins with"},
		{text: "ready", err: "it is notify, or begins with"},
	} {
		got, err := ParseReadiness(tt.text)
		if tt.err != "" {
			if err == nil || !strings.Contains(err.Error(), tt.err) || !strings.HasPrefix(err.Error(), "read readiness ") || !reflect.DeepEqual(got, Readiness{}) {
				t.Errorf("%q: %+v, %v; want an error with %q", tt.text, got, err, tt.err)
			}
			continue
		}
		if want := cmpText(tt.text); got.String() != want {
			t.Errorf("%q is written %q", tt.text, got)
		}
		got.text = ""
		if err != nil || !reflect.DeepEqual(got, tt.want) {
			t.Errorf("%q: %+v, %v; want %+v", tt.text, got, err, tt.want)
		}
	}
}

func cmpText(text string) string {
	if text == "" {
		return "notify"
	}
	return text
}

func FuzzParseReadiness(f *testing.F) {
	for _, seed := range []string{"notify", "http://a:1/b", "https://[::1]", "http+unix:/a:/b", "tcp:a:1", "unix:@a", "exec:a 'b' \"c\"", "alive:1s"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		r, err := ParseReadiness(text)
		if err != nil {
			return
		}
		r = r.of(17, 3)
		if r.kind == "exec" && len(r.argv) == 0 || r.kind == "alive" && r.alive <= 0 {
			t.Errorf("%q: %+v", text, r)
		}
		if strings.Contains(strings.Join(r.argv, "")+r.address+r.uri, "{pid}") {
			t.Errorf("%q: %+v", text, r)
		}
	})
}

func TestReadinessOfOneGeneration(t *testing.T) {
	r := readiness(t, "exec:check {pid} a-{generation}-{pid}{x}").of(17, 3)
	if want := []string{"check", "17", "a-3-17{x}"}; !slices.Equal(r.argv, want) {
		t.Errorf("%q, want %q", r.argv, want)
	}
	r = readiness(t, "http+unix:/run/{generation}.sock:/of/{pid}").of(17, 3)
	if r.address != "/run/3.sock" || r.uri != "/of/17" {
		t.Errorf("%+v", r)
	}
}

func TestReadinessByNotice(t *testing.T) {
	said, ended := make(chan struct{}), make(chan struct{})
	w := witness{Ready: said, Ended: ended}
	var r Readiness
	ctx, cancel := context.WithCancelCause(context.Background())
	cancel(errors.New("the deadline passed"))
	err := r.wait(ctx, w)
	if err == nil || err.Error() != "wait until the program is ready (notify): the deadline passed; last: it has not said READY=1" {
		t.Error(err)
	}
	w.Dropped = func() string { return "a message of process 17 is not of this generation" }
	if err := r.wait(ctx, w); err == nil || !strings.Contains(err.Error(), "process 17") || !strings.Contains(err.Error(), "--notify-access") {
		t.Error(err)
	}
	close(said)
	if err := r.wait(context.Background(), w); err != nil {
		t.Error(err)
	}
	w.Ready = nil
	close(ended)
	if err := r.wait(context.Background(), w); !errors.Is(err, errEnded) {
		t.Error(err)
	}
}

func TestReadinessByLife(t *testing.T) {
	r := readiness(t, "alive:30ms")
	began := time.Now()
	if err := r.wait(context.Background(), witness{}); err != nil || time.Since(began) < 30*time.Millisecond {
		t.Error(err, time.Since(began))
	}
	ended := make(chan struct{})
	close(ended)
	if err := readiness(t, "alive:1h").wait(context.Background(), witness{Ended: ended}); !errors.Is(err, errEnded) {
		t.Error(err)
	}
}

func TestReadinessByCommand(t *testing.T) {
	var calls int
	var gotArgv, gotEnv []string
	exits := []Exit{{cldExited, 7}, {cldKilled, 15}, {cldExited, 0}}
	w := witness{
		Generation: 3,
		Band:       band{Leader: 17},
		Env:        []string{"A=b"},
		Run: func(_ context.Context, argv, env []string) (Exit, []byte, error) {
			gotArgv, gotEnv = argv, env
			calls++
			return exits[calls-1], []byte("not yet\x1b[0m\n"), nil
		},
	}
	r := readiness(t, "exec:check --pid {pid}")
	if err := r.wait(within(t, patience), w); err != nil || calls != 3 {
		t.Errorf("%d calls, %v", calls, err)
	}
	if want := []string{"check", "--pid", "17"}; !slices.Equal(gotArgv, want) {
		t.Errorf("%q, want %q", gotArgv, want)
	}
	if want := []string{"A=b", "ZDT_APP_PID=17", "ZDT_GENERATION=3"}; !slices.Equal(gotEnv, want) || len(w.Env) != 1 {
		t.Errorf("%q, want %q", gotEnv, want)
	}
	calls, exits = 0, slices.Repeat([]Exit{{cldExited, 7}}, 100)
	err := r.wait(within(t, 50*time.Millisecond), w)
	if !errors.Is(err, context.DeadlineExceeded) || !strings.HasSuffix(err.Error(), `last: check exited 7: "not yet[0m"`) {
		t.Error(err)
	}
	w.Run = func(ctx context.Context, _, _ []string) (Exit, []byte, error) {
		<-ctx.Done()
		return Exit{}, nil, context.Cause(ctx)
	}
	if err := r.wait(within(t, 50*time.Millisecond), w); !errors.Is(err, context.DeadlineExceeded) {
		t.Error(err)
	}
}

// With a real process, under a real reaper.
func TestReadinessByRealCommand(t *testing.T) {
	if !alone(t) {
		return
	}
	r, err := startReaper()
	if err != nil {
		t.Fatal(err)
	}
	defer r.stop()
	file := t.TempDir() + "/calls"
	w := witness{Generation: 2, Run: r.run, Env: []string{"PATH=/usr/bin:/bin", "FILE=" + file}}
	check := readiness(t, `exec:/bin/sh -c 'echo call $ZDT_GENERATION; echo >>$FILE; test $(wc -l <$FILE) -ge 3'`)
	if err := check.wait(within(t, patience), w); err != nil {
		t.Error(err)
	}
	err = readiness(t, "exec:/bin/sh -c 'echo of {generation}; exit 9'").wait(within(t, 300*time.Millisecond), w)
	if err == nil || !strings.Contains(err.Error(), `/bin/sh exited 9: "of 2"`) {
		t.Error(err)
	}
}
