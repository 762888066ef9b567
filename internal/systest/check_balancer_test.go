package systest

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/zdt-dev/zdt/internal/guest"
	"github.com/zdt-dev/zdt/upgrade"
)

// A request that takes longer than the old program may is found by what the unit says of it, and is cut indeed; with the drop-in it is
// answered. A connection that cannot move is closed while a load balancer would still use it; with the drop-in what it sends last is
// answered.
func TestCheckLoadBalancer(t *testing.T) {
	t.Parallel()
	g := guest.Boot(t, guest.Trixie)
	file := func(n int) string { return releaseOf(t, "secure", "./testdata/secure", n) }
	s := startService(t, g, "https", file(1))
	n := 1
	files := []string{s.putFile(file(1), 1), s.putFile(file(2), 2)}
	next := func() string { n++; return files[(n-1)%2] }
	const dir = "/etc/systemd/system/hello.service.d/"
	find := func(want string) {
		t.Helper()
		s.run("systemctl", "daemon-reload")
		s.run("systemctl", "restart", s.unit)
		found := s.check(0)
		if len(found) != 1 || found[0].ID != want {
			t.Fatalf("got %+v, want %s", found, want)
		}
		t.Log(found[0].Seen)
		s.writeUnit(dir+"b-mended.conf", found[0].DropIn)
	}
	mended := func() {
		t.Helper()
		s.run("systemctl", "daemon-reload")
		s.run("systemctl", "restart", s.unit)
		if left := s.check(0); len(left) > 0 {
			t.Errorf("the drop-in leaves %+v", left)
		}
	}

	s.writeUnit(dir+"a-defect.conf", "[X-Zdt]\nLongestRequest=2s\nDrainTimeout=1s\n[Service]\nEnvironment=ZDT_DRAIN_TIMEOUT=1s\nEnvironment=ZDT_IDLE_GRACE=500ms\n")
	find("ZDT070")
	slow := s.client()
	slow.send("/slow?for=2s")
	s.upgradeFile(next()).mustBe(upgrade.Upgraded, 0)
	if err := slow.answered(); err == nil {
		t.Error("a request of 2s was finished in 1s")
	}
	mended()
	slow = s.client()
	slow.send("/slow?for=2s")
	s.upgradeFile(next()).mustBe(upgrade.Upgraded, 0)
	if err := slow.answered(); err != nil {
		t.Errorf("a request of 2s: %v", err)
	}
	s.run("rm", dir+"a-defect.conf", dir+"b-mended.conf")

	// An idle connection: the load balancer would use it for 2s.
	s.writeUnit(dir+"a-defect.conf", "[X-Zdt]\nIdleTimeout=2s\n[Service]\nEnvironment=ZDT_IDLE_GRACE=1s\n")
	s.run("systemctl", "daemon-reload")
	s.run("systemctl", "restart", s.unit)
	idle := s.client()
	idle.ask("/")
	r := s.upgradeFile(next())
	r.mustBe(upgrade.Upgraded, 0)
	if r.Connections == nil || r.Connections.Closed != 1 {
		t.Errorf("of the connections: %+v", r.Connections)
	}
	idle.send("/")
	if err := idle.answered(); err == nil {
		t.Error("the connection lives")
	}
	found := s.check(0)
	if len(found) != 1 || found[0].ID != "ZDT071" {
		t.Fatalf("got %+v, want ZDT071", found)
	}
	t.Log(found[0].Seen)
	s.writeUnit(dir+"b-mended.conf", found[0].DropIn)
	mended()
	idle = s.client()
	idle.ask("/")
	u := s.startUpgrade(next())
	s.await("the old program drains", func() bool {
		r := s.status().Runtime
		return r != nil && r.Predecessor != nil
	})
	idle.awaitIdle(2 * time.Second)
	idle.send("/")
	if err := idle.answered(); err != nil {
		t.Errorf("the last request: %v", err)
	}
	u.wait().mustBe(upgrade.Upgraded, 0)
}

// client is one connection over TLS, as a load balancer keeps it.
type client struct {
	t    *testing.T
	conn net.Conn
	in   *bufio.Reader
}

func (s *service) client() *client {
	s.t.Helper()
	conn, err := s.dialTLS(s.t.Context(), "http/1.1")
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { conn.Close() })
	conn.SetDeadline(time.Now().Add(patience))
	return &client{s.t, conn, bufio.NewReader(conn)}
}

// send sends a request. That nobody is there any more shows when the answer is read.
func (c *client) send(path string) {
	fmt.Fprintf(c.conn, "GET %s HTTP/1.1\r\nHost: hello\r\n\r\n", path)
}

// answered reads a whole answer.
func (c *client) answered() error {
	resp, err := http.ReadResponse(c.in, nil)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if _, err := io.Copy(io.Discard, resp.Body); err != nil {
		return err
	}
	if resp.StatusCode != http.StatusOK {
		return errors.New(resp.Status)
	}
	return nil
}

func (c *client) ask(path string) {
	c.t.Helper()
	c.send(path)
	if err := c.answered(); err != nil {
		c.t.Fatal(strings.TrimSpace(err.Error()))
	}
}

// awaitIdle waits for so long for the other side to end the connection, which must not happen.
func (c *client) awaitIdle(d time.Duration) {
	c.t.Helper()
	c.conn.SetReadDeadline(time.Now().Add(d))
	var timeout net.Error
	if _, err := c.in.Peek(1); !errors.As(err, &timeout) || !timeout.Timeout() {
		c.t.Errorf("an idle connection: %v", err)
	}
	c.conn.SetReadDeadline(time.Now().Add(patience))
	c.in.Reset(c.conn) // it remembers the error
}
