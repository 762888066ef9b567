package dbusctl

import (
	"errors"
	"io"
	"os"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/zdt-dev/zdt/internal/guest"
)

func TestSystemTransient(t *testing.T) {
	guest.Each(t, func(t *testing.T, g *guest.Guest) {
		install(t, g)
		m := dialGuest(t, g)
		ctx := testContext(t)
		must(t, m.DaemonReload(ctx))
		read := func(path string) string { return g.MustRun(t, "cat", path) }

		// Arguments and environment arrive literally, and how it ended is known although it was short.
		must(t, m.StartTransient(ctx, TransientUnit{Name: "one-1.service", Description: "a test", Keep: true, Properties: []Property{
			List("Environment", "A=b c", "P=%n"), Span("TimeoutStopUSec", Infinity), Text("CollectMode", "inactive-or-failed"),
			Command("ExecStart", "/bin/sh", "sh", "-c", `printf '%s|' "$A" "$P" "$@" >/run/one; exit 7`, "sh", "$HOME", "%n", `two "words"`),
		}}))
		u, err := m.End(ctx, "one-1.service")
		must(t, err)
		if status, signalled, ok := u.Exited(); status != 7 || signalled || !ok || u.Result != "exit-code" || u.Description != "a test" || u.TimeoutStop != Infinity {
			t.Errorf("one: %d %v %v %+v", status, signalled, ok, u)
		}
		if got, want := read("/run/one"), `b c|%n|$HOME|%n|two "words"|`; got != want {
			t.Errorf("arguments: %q, want %q", got, want)
		}
		// While it is remembered its name is taken; forgotten, it is free.
		if err := m.StartTransient(ctx, TransientUnit{Name: "one-1.service", Properties: []Property{Command("ExecStart", "/bin/true", "true")}}); !errors.Is(err, ErrUnitExists) {
			t.Errorf("same name: %v, want ErrUnitExists", err)
		}
		must(t, m.Forget(ctx, "one-1.service"))
		eventually(t, "the unit is forgotten", func() bool { _, err := m.Unit(ctx, "one-1.service"); return errors.Is(err, ErrNoUnit) })
		must(t, m.Forget(ctx, "t.service"))
		if _, err := m.End(ctx, "one-1.service"); !errors.Is(err, ErrNoUnit) {
			t.Errorf("End of a forgotten unit: %v", err)
		}

		// A job that fails: there is no such program.
		var j *JobError
		err = m.StartTransient(ctx, TransientUnit{Name: "bad.service", Properties: []Property{Text("Type", "exec"), Command("ExecStart", "/nonexistent", "x")}})
		if !errors.As(err, &j) || j.Result != "failed" {
			t.Errorf("no program: %v", err)
		}
		must(t, m.ResetFailed(ctx, "bad.service"))
		// A setting that does not exist makes no unit.
		err = m.StartTransient(ctx, TransientUnit{Name: "odd.service", Properties: []Property{Text("NoSuchSetting", "x"), Command("ExecStart", "/bin/true", "true")}})
		if err == nil || errors.As(err, &j) || !strings.Contains(err.Error(), "NoSuchSetting") {
			t.Errorf("unknown setting: %v", err)
		}

		// A stop is a SIGTERM, and its end is seen.
		must(t, m.StartTransient(ctx, TransientUnit{Name: "long.service", Keep: true, Properties: []Property{Text("Type", "exec"), Command("ExecStart", "/bin/sleep", "sleep", "600")}}))
		must(t, m.Stop(ctx, "long.service"))
		u, err = m.End(ctx, "long.service")
		must(t, err)
		if status, signalled, ok := u.Exited(); status != int(syscall.SIGTERM) || !signalled || !ok {
			t.Errorf("stopped: %d %v %v %+v", status, signalled, ok, u)
		}

		// Type=notify waits for READY, with the program of a service and its sandbox.
		must(t, g.WriteFile("/etc/systemd/system/box.service", []byte(`
[Service]
ExecStart=/bin/true
DynamicUser=yes
ProtectSystem=strict
SystemCallFilter=@system-service
SystemCallErrorNumber=EPERM
RestrictAddressFamilies=AF_UNIX AF_INET
CapabilityBoundingSet=CAP_NET_BIND_SERVICE
BindReadOnlyPaths=/usr/share:/mnt
TemporaryFileSystem=/srv
LimitNOFILE=1000:2000
UMask=0027
Nice=3
PrivateTmp=yes
EnvironmentFile=-/etc/nothing
`), 0o644))
		must(t, m.DaemonReload(ctx))
		names := []string{"DynamicUser", "ProtectSystem", "SystemCallFilter", "SystemCallErrorNumber", "RestrictAddressFamilies", "CapabilityBoundingSet",
			"BindReadOnlyPaths", "TemporaryFileSystem", "LimitNOFILE", "LimitNOFILESoft", "UMask", "Nice", "PrivateTmp", "EnvironmentFiles", "NoSuchThing"}
		box, err := m.CopyProperties(ctx, "box.service", names...)
		must(t, err)
		if len(box) != len(names)-1 {
			t.Errorf("CopyProperties: %v", box)
		}
		must(t, m.StartTransient(ctx, TransientUnit{Name: "boxed.service", Keep: true, Properties: append(box,
			Text("Type", "notify"), Text("NotifyAccess", "main"), List("Environment", helperEnv+"=service", "GORACE=atexit_sleep_ms=0"), List("RuntimeDirectory", "boxed"),
			Command("ExecStart", helperPath, helperPath))}))
		b, err := m.Unit(ctx, "boxed.service")
		must(t, err)
		if b.StatusText != "up" || !b.DynamicUser || b.UID == 0 {
			t.Errorf("boxed: %+v", b)
		}
		again, err := m.CopyProperties(ctx, "boxed.service", names...)
		must(t, err)
		for i := range again {
			if again[i].value.String() != box[i].value.String() {
				t.Errorf("%s: %v, want %v", again[i].name, again[i].value, box[i].value)
			}
		}
		must(t, m.Stop(ctx, "boxed.service"))
		if _, err := m.CopyProperties(ctx, "nope.service", "User"); !errors.Is(err, ErrNoUnit) {
			t.Errorf("CopyProperties of no unit: %v", err)
		}

		// Descriptors: the standard streams on every version, sockets and their like from 254 on.
		var ends [2]int
		must(t, unix.Pipe2(ends[:], unix.O_CLOEXEC))
		in, inW := os.NewFile(uintptr(ends[0]), "in"), os.NewFile(uintptr(ends[1]), "inW")
		outR, out, err := os.Pipe()
		must(t, err)
		defer in.Close()
		defer outR.Close()
		must(t, m.StartTransient(ctx, TransientUnit{Name: "streams.service", Properties: []Property{
			Text("Type", "exec"), File("StandardInputFileDescriptor", in), File("StandardOutputFileDescriptor", out), File("StandardErrorFileDescriptor", out),
			Command("ExecStart", "/bin/sh", "sh", "-c", "cat; echo err >&2"),
		}}))
		must(t, out.Close())
		_, err = inW.WriteString("hello\n")
		must(t, err)
		must(t, inW.Close())
		if got, err := io.ReadAll(outR); err != nil || string(got) != "hello\nerr\n" {
			t.Errorf("streams: %q, %v", got, err)
		}

		extraR, extra, err := os.Pipe()
		must(t, err)
		defer extraR.Close()
		err = m.StartTransient(ctx, TransientUnit{Name: "extra.service", Properties: []Property{
			Text("Type", "exec"), ExtraFiles(NamedFile{"web", extra}, NamedFile{"admin", extra}),
			Command("ExecStart", "/bin/sh", "sh", "-c", `echo $LISTEN_FDS $LISTEN_FDNAMES $((LISTEN_PID == $$)) >&4`),
		}})
		must(t, extra.Close())
		if g.Image().Systemd() < 254 {
			if err == nil || !strings.Contains(err.Error(), "ExtraFileDescriptors") {
				t.Errorf("ExtraFileDescriptors before 254: %v", err)
			}
			return
		}
		must(t, err)
		if got, err := io.ReadAll(extraR); err != nil || string(got) != "2 web:admin 1\n" {
			t.Errorf("extra: %q, %v", got, err)
		}
	})
}
