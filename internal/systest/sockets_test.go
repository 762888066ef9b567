package systest

import (
	"context"
	"fmt"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/zdt-dev/zdt/internal/guest"
	"github.com/zdt-dev/zdt/internal/load"
)

// Nothing is lost on any kind of socket: HTTP on TCP and on a unix socket, datagrams on UDP and on a unix socket,
// through ten upgrades, two failed ones and a restart.
func TestEveryKindOfSocket(t *testing.T) {
	guest.Each(t, func(t *testing.T, g *guest.Guest) {
		s := &service{t: t, g: g, name: "hello", unit: "hello.service", addr: "127.0.0.1:8080"}
		s.installZdt()
		s.run("zdt", "init", s.name, "--exec", s.putParcel(1), "--dynamic-user", "--start",
			"--listen", s.addr+"=web", "--listen", "unix:/run/hello.sock=local", "--listen", "udp:127.0.0.1:9000=udp", "--listen", "unixgram:@hello=gram")
		s.mustUpgradeParcel(2)
		before := s.footprint()

		light := load.Config{KeepAlive: 4, Fresh: 1, Think: 5 * time.Millisecond}
		loads := []*load.Load{s.load(light)}
		light.Dial = func(ctx context.Context) (net.Conn, error) { return g.Dial(ctx, "unix", "/run/hello.sock") }
		local := load.Start(light)
		t.Cleanup(func() { local.Stop() })
		loads = append(loads, local)
		var post []*postman
		for i := range 3 {
			post = append(post, s.postman("udp", func() (net.Conn, error) { return net.Dial("udp", "127.0.0.1:9000") }))
			post = append(post, s.postman("unixgram", func() (net.Conn, error) {
				return net.DialUnix("unixgram", &net.UnixAddr{Name: fmt.Sprintf("@client%d", i), Net: "unixgram"}, &net.UnixAddr{Name: "@hello", Net: "unixgram"})
			}))
		}

		for n := 3; n < 13; n++ {
			s.mustUpgradeParcel(n)
		}
		for _, fault := range []string{crash, crashAfterReady} { // hello leaves all sockets but one unused, but cannot get that far
			if r := s.upgrade(bad(1, fault)); r.exec.Code != 11 {
				t.Errorf("%s", r.exec)
			}
		}
		s.run("systemctl", "restart", s.unit)
		s.mustUpgradeParcel(13)

		for _, p := range post {
			sent, versions := p.stop()
			if sent == 0 || p.lost != nil {
				t.Errorf("%s: %d datagrams sent; %v", p.network, sent, p.lost)
			}
			if versions < 12 {
				t.Errorf("%s: answers of %d versions, want of each of 12", p.network, versions)
			}
		}
		for _, l := range loads {
			mustFailNothing(t, l.Stop())
		}
		var names []string
		for _, socket := range s.settled().Runtime.Sockets {
			if !socket.InUse || socket.Origin != "predecessor" {
				t.Errorf("socket %+v", socket)
			}
			names = append(names, socket.Name+" "+socket.Network+" "+socket.Address)
		}
		if got := strings.Join(names, ", "); len(names) != 4 || !strings.Contains(got, "local unix /run/hello.sock") || !strings.Contains(got, "gram unixgram @hello") {
			t.Errorf("sockets %s", got)
		}
		s.mustLeaveNothing(before)
	})
}

// putParcel puts version n of testdata/parcel into the guest.
func (s *service) putParcel(n int) string {
	s.t.Helper()
	return s.putFile(releaseOf(s.t, "parcel", "./testdata/parcel", n), n)
}

func (s *service) mustUpgradeParcel(n int) {
	s.t.Helper()
	r := s.upgradeFile(s.putParcel(n))
	r.mustBe("upgraded", 0)
	if got := s.answers(); got != version(n) {
		s.t.Errorf("%s answers after the upgrade to %s", got, version(n))
	}
}

// postman sends datagrams, one at a time, and waits for each to come back.
type postman struct {
	network string
	done    chan struct{}
	once    sync.Once
	wg      sync.WaitGroup

	// Valid after stop.
	sent     int
	versions map[string]bool
	lost     error // the first one
}

// postman begins to send until stop; dial is called in the guest's network.
func (s *service) postman(network string, dial func() (net.Conn, error)) *postman {
	s.t.Helper()
	var conn net.Conn
	err := s.g.Do(func() (err error) {
		conn, err = dial()
		return err
	})
	if err != nil {
		s.t.Fatal(err)
	}
	p := &postman{network: network, done: make(chan struct{}), versions: make(map[string]bool)}
	p.wg.Go(func() {
		defer conn.Close()
		for p.lost == nil {
			select {
			case <-p.done:
				return
			case <-time.After(2 * time.Millisecond):
			}
			p.lost = p.send(conn)
		}
	})
	s.t.Cleanup(func() { p.stop() })
	return p
}

func (p *postman) send(conn net.Conn) error {
	p.sent++
	letter := fmt.Sprintf("letter %d", p.sent)
	conn.SetDeadline(time.Now().Add(10 * time.Second))
	if _, err := conn.Write([]byte(letter)); err != nil {
		return fmt.Errorf("%s: %w", letter, err)
	}
	buf := make([]byte, 100)
	n, err := conn.Read(buf)
	if err != nil {
		return fmt.Errorf("%s: %w", letter, err)
	}
	v, back, _ := strings.Cut(string(buf[:n]), " ")
	if back != letter {
		return fmt.Errorf("%s came back as %q", letter, back)
	}
	p.versions[v] = true
	return nil
}

func (p *postman) stop() (sent, versions int) {
	p.once.Do(func() { close(p.done) })
	p.wg.Wait()
	return p.sent, len(p.versions)
}
