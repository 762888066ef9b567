package systest

import (
	"context"
	"fmt"
	"net"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/zdt-dev/zdt/internal/guest"
	"github.com/zdt-dev/zdt/internal/load"
)

// containers are two guests that have nothing in common but a directory: two sets of namespaces, each with a systemd and
// cgroups of its own.
type containers struct {
	t      *testing.T
	guests [2]*guest.Guest
}

// The services of both containers: hello speaks HTTP, line a protocol of its own.
var (
	helloAddr = "127.0.0.1:8080"
	lineAddr  = "127.0.0.1:7000"
)

func newContainers(t *testing.T, g *guest.Guest) *containers {
	t.Helper()
	c := &containers{t, [2]*guest.Guest{g, guest.Boot(t, g.Image())}}
	dir := t.TempDir()
	if err := os.Chown(dir, guest.UserUID, guest.UserUID); err != nil {
		t.Fatal(err)
	}
	for _, g := range c.guests {
		if err := g.Share(dir, "/shared"); err != nil {
			t.Fatal(err)
		}
	}
	return c
}

// install writes the unit of a service: the sandbox is that of zdt init where it matters here, a seccomp filter first of
// all. There is no socket unit: it would start the old container's service again, for the next client.
func (c *containers) install(g *guest.Guest, name, file, addr string) {
	c.t.Helper()
	if err := g.Copy(file, "/srv/"+name, 0o755); err != nil {
		c.t.Fatal(err)
	}
	unit := fmt.Sprintf(`[Service]
Type=notify
NotifyAccess=main
User=%s
ExecStart=/srv/%s -listen %s
Environment=ZDT_TAKEOVER=/shared/%[2]s ZDT_SERVICE=%[2]s ZDT_DRAIN_TIMEOUT=20s
RuntimeDirectory=%[2]s
Restart=on-failure
ProtectSystem=strict
ReadWritePaths=/shared
PrivateTmp=yes
PrivateDevices=yes
NoNewPrivileges=yes
CapabilityBoundingSet=
RestrictNamespaces=yes
RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6
MemoryDenyWriteExecute=yes
SystemCallFilter=@system-service
SystemCallArchitectures=native
`, guest.User, name, addr)
	if err := g.WriteFile("/etc/systemd/system/"+name+".service", []byte(unit), 0o644); err != nil {
		c.t.Fatal(err)
	}
	g.MustRun(c.t, "systemctl", "daemon-reload")
}

// prove checks that a service of one container is isolated from that of the other, and by what.
func (c *containers) prove(name string) {
	c.t.Helper()
	var links [2]map[string]string
	for i, g := range c.guests {
		pid := g.MustRun(c.t, "systemctl", "show", "--value", "--property=MainPID", name)
		proc := g.Path("/proc/" + pid)
		links[i] = map[string]string{}
		for _, ns := range []string{"mnt", "pid", "net", "uts", "ipc", "cgroup"} {
			link, err := os.Readlink(proc + "/ns/" + ns)
			if err != nil {
				c.t.Fatal(err)
			}
			links[i][ns] = link
		}
		status, err := os.ReadFile(proc + "/status")
		if err != nil {
			c.t.Fatal(err)
		}
		cgroup, err := os.ReadFile(proc + "/cgroup")
		if err != nil {
			c.t.Fatal(err)
		}
		if !strings.Contains(string(status), "\nSeccomp:\t2\n") {
			c.t.Errorf("%s of guest %d runs without a seccomp filter:\n%s", name, i, status)
		}
		// Seen from outside; /proc of the guest's own would not tell from which root.
		if text := string(cgroup); !strings.Contains(text, "/system.slice/"+name+".service") {
			c.t.Errorf("%s of guest %d is in cgroups\n%s", name, i, cgroup)
		}
		links[i]["cgroup path"] = string(cgroup)
	}
	for what, link := range links[0] {
		if links[1][what] == link {
			c.t.Errorf("both processes of %s have the same %s: %s", name, what, link)
		}
	}
}

// installBad gives a container a release with a fault and starts it, once.
func (c *containers) installBad(g *guest.Guest, fault string) {
	c.t.Helper()
	c.install(g, "hello", bad(3, fault).file(c.t), helloAddr)
	g.MustRun(c.t, "sed", "-i", "/^Restart=/d", "/etc/systemd/system/hello.service")
	g.MustRun(c.t, "systemctl", "daemon-reload")
	if r, err := g.Run(c.t.Context(), "systemctl", "start", "hello"); err != nil || r.Code == 0 && fault == crash {
		c.t.Errorf("%v\n%s", err, r)
	}
	if err := g.WaitUnit(c.t.Context(), "hello.service", "failed"); err != nil {
		c.t.Error(err)
	}
}

// state is what the unit says of itself.
func (c *containers) state(i int, unit string) string {
	c.t.Helper()
	return strings.ReplaceAll(c.guests[i].MustRun(c.t, "systemctl", "show", "--value", "--property=ActiveState", "--property=Result", unit), "\n", " ")
}

// moveTo starts the services of one container, while they run in the other, and waits until they have come over.
func (c *containers) moveTo(i int) {
	c.t.Helper()
	for _, name := range []string{"hello", "line"} {
		// Returns when the unit is READY: when the takeover is committed.
		r, err := c.guests[i].Run(c.t.Context(), "systemctl", "start", name)
		if err != nil || r.Code != 0 {
			c.t.Fatalf("%v\n%s\n%s", err, r, c.guests[i].Journal(context.WithoutCancel(c.t.Context()), "-u", name, "-n", "30"))
		}
		if err := c.guests[1-i].WaitUnit(c.t.Context(), name+".service", "inactive"); err != nil {
			c.t.Fatal(err)
		}
		if got := c.state(1-i, name); got != "success inactive" && got != "inactive success" {
			c.t.Errorf("%s in guest %d: %s", name, 1-i, got)
		}
	}
}

// A service moves from container to container and back, and no client notices. The clients are, and stay, in the network
// namespace of the first container: a connection belongs to the namespace that it was made in, and so does a socket that
// listens. The other container's own network is another one.
func TestTakeoverBetweenContainers(t *testing.T) {
	guest.Each(t, func(t *testing.T, g *guest.Guest) {
		c := newContainers(t, g)
		lineFile := build(t, "line", func(out string) error { return goBuild(out, "../../examples/line", false, "") })
		first, second := c.guests[0], c.guests[1]
		for i, g := range c.guests {
			c.install(g, "hello", good(i+1).file(t), helloAddr)
			c.install(g, "line", lineFile, lineAddr)
		}
		first.MustRun(t, "systemctl", "start", "hello", "line")

		dial := func(addr string) func(context.Context) (net.Conn, error) {
			return func(ctx context.Context) (net.Conn, error) { return first.Dial(ctx, "tcp", addr) }
		}
		http := load.Start(load.Config{Dial: dial(helloAddr), KeepAlive: 6, Fresh: 2, Think: 5 * time.Millisecond,
			Idle: 8, IdleThink: 200 * time.Millisecond, Slow: 1, Uploads: 1, Pipelined: 1, HalfHeads: 1, Expect: 1})
		t.Cleanup(func() { http.Stop() })
		lines := load.Start(load.Config{Dial: dial(lineAddr), KeepAlive: -1, Fresh: -1, Lines: 4})
		t.Cleanup(func() { lines.Stop() })
		answeredBy := func(n int) {
			t.Helper()
			before := http.Report().Versions[version(n)]
			if err := http.Until(t.Context(), func(r load.Report) bool { return r.Versions[version(n)] > before+100 }); err != nil {
				t.Fatalf("waiting for answers of %s: %v", version(n), err)
			}
		}
		answeredBy(1)

		// Both at once can only be seen while one asks the other: a release that waits does.
		c.install(second, "hello", bad(2, "wait").file(t), helloAddr)
		second.MustRun(t, "systemctl", "start", "--no-block", "hello")
		s := &service{t: t, g: second, name: "hello", unit: "hello.service"}
		s.await("a process of the second container", func() bool {
			// Until it executes the program it is systemd's, called (hello), and not confined yet.
			comm, err := second.Run(t.Context(), "cat", fmt.Sprintf("/proc/%d/comm", s.mainPID()))
			return s.processes() == 1 && err == nil && comm.Stdout == "hello\n"
		})
		c.prove("hello")
		second.MustRun(t, "systemctl", "stop", "hello")
		c.install(second, "hello", good(2).file(t), helloAddr)

		// There, and back, and there. systemd has started nothing again.
		c.moveTo(1)
		answeredBy(2)
		c.moveTo(0)
		answeredBy(1)
		c.moveTo(1)
		answeredBy(2)

		// A bad release in the first container: the second one serves on.
		c.installBad(first, crash)
		answeredBy(2)
		for name, r := range map[string]load.Report{"http": http.Stop(), "lines": lines.Stop()} {
			t.Logf("%s: %s", name, r)
			if r.Losses() != 0 || r.Reconnects != 0 || r.Requests+r.Messages < 500 {
				t.Errorf("clients of %s noticed", name)
			}
		}

		// One that is the service already when it crashes: the second one, which drains, serves again. It drains for as
		// long as there is a connection that the other one does not take.
		conn, err := first.Dial(t.Context(), "tcp", helloAddr)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		const post = "POST / HTTP/1.1\r\nHost: hello\r\nContent-Length: 2\r\n\r\nab"
		if err := exchange(conn, post, "ab"); err != nil {
			t.Fatal(err)
		}
		c.installBad(first, crashAfterReady)
		if v, err := (&service{t: t, g: first, addr: helloAddr}).ask("/"); err != nil || v != version(2) {
			t.Errorf("%q answers, %v; want %s", v, err, version(2))
		}
		if got := c.state(1, "hello"); !strings.Contains(got, "active") || strings.Contains(got, "inactive") {
			t.Errorf("hello in the second guest: %s", got)
		}

		// The first container goes altogether. The connection that was made in its network lives on with the service.
		if err := first.Close(); err != nil {
			t.Error(err)
		}
		if err := exchange(conn, post, "ab"); err != nil {
			t.Errorf("after the end of the container in which the connection was made: %v", err)
		}
	})
}
