package handoff

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/zdt-dev/zdt/internal/memfile"
	"github.com/zdt-dev/zdt/internal/netfd"
	"github.com/zdt-dev/zdt/internal/wire"
)

// What becomes of connections whose other generation, or whose client, leaves
// them alone at the wrong moment.

// never is a wire to a peer that takes everything and answers nothing.
func never(uint64, []*parked) error { return nil }

// ship of a connection.
func (f *fleet) of(c *conn) *ship {
	for _, s := range f.ships {
		if s.c == c {
			return s
		}
	}
	f.t.Fatal("no such connection")
	return nil
}

func (f *fleet) drain(timeout, grace time.Duration) *drainer {
	return startDrain(context.Background(), f.tracker, Options{DrainTimeout: timeout, StreamTimeout: timeout}, grace, nil, func(context.Context) {})
}

// A connection that had a request before its turn to be woken is sent like the
// others. While the peer says nothing of it the drain leaves it alone like the
// others, and if the peer dies it is served on.
func TestDrainLeavesWhatIsOnItsWay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFleet(t, 400, never)
		f.m.look()
		last := f.of(f.m.sleepers[0])
		if err := last.ask("before it is woken"); err != nil {
			t.Fatal(err)
		}
		synctest.Wait() // it is parked, and the first to offer itself
		f.running.Go(f.m.run)
		d := f.drain(time.Hour, 5*time.Second)
		time.Sleep(6 * time.Second)
		d.keep.Store(true) // as takeOver does first
		f.m.peerDied()
		if err := last.ask("after the death"); err != nil {
			t.Error(err)
		}
		f.end()
		<-d.done
	})
}

// A list of what the peer takes that comes while it does not keep up changes
// nothing: idle connections are closed politely after their grace, and not cut
// at the end of the drain.
func TestLateListToAStalledPeer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFleet(t, 400, never)
		f.start()
		time.Sleep(2 * parkedMax)
		f.m.accept([]wire.Take{{Protocol: "line/1"}, {Protocol: "chat/1"}})
		d := f.drain(30*time.Second, 5*time.Second)
		time.Sleep(29 * time.Second)
		if c := d.counts.Load(); c.Closed != 400-2*usualBatch {
			t.Errorf("%+v, want all closed but the two batches on their way", *c)
		}
		f.end()
		<-d.done
	})
}

// What cannot move does not keep waiting what can.
func TestManyThatStay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var f *fleet
		f = newFleet(t, 4000, func(batch uint64, load []*parked) error {
			n := len(load)
			f.running.Go(func() { f.m.acknowledged(takeAll(batch, n)) })
			return nil
		})
		f.m.accept([]wire.Take{{Protocol: "chat/1"}})
		last := f.ships[0]
		last.c.protocol = "chat/1"
		began := time.Now()
		f.start()
		<-last.ended
		last.ended <- ErrMoved
		if took := time.Since(began); took > 5*moverTick {
			t.Errorf("the one that can move waited for %v", took)
		}
		f.end()
	})
}

// A client may reset its connection while that rests. The kernel has then
// forgotten who it was; a program asks all the same.
func TestResetWhileAtRest(t *testing.T) {
	t.Parallel()
	a, p := newNode(t, "a"), newAdopter(t)
	var mu sync.Mutex
	seen := map[string]bool{}
	p.hook = func(c net.Conn, _ http.ConnState) {
		mu.Lock()
		defer mu.Unlock()
		seen[c.RemoteAddr().String()] = true
	}
	p.h.gate.Open()
	p.serve("http", "127.0.0.1:0", "p")
	asked, silent := a.idlers(1)[0], a.idlers(1)[0]
	moveAll(t, a, &p.node, 2)
	fmt.Fprint(asked, "GET / HTTP/1.1\r\nHost: test\r\n\r\n")
	for _, c := range []*httpConn{asked, silent} {
		c.Conn.(*net.TCPConn).SetLinger(0)
		c.Close()
	}
	for _, c := range []*httpConn{asked, silent} {
		eventually(t, "the program has seen it", func() bool {
			mu.Lock()
			defer mu.Unlock()
			return seen[c.LocalAddr().String()]
		})
	}
}

// A batch may hold a connection that was reset on its way. It stays with the
// sender, who knows the client's address, and counts as no fault of the receiver.
func TestResetOnItsWay(t *testing.T) {
	t.Parallel()
	client, server := tcpPair(t)
	client.SetLinger(0)
	client.Close()
	fd, err := netfd.Dup(server)
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, "the reset has arrived", func() bool {
		_, err := peerAddress(fd, "tcp")
		return err != nil
	})
	b := newNode(t, "b")
	manifest, err := json.Marshal(manifest{Connections: []cargo{{Protocol: protocolHTTP1, Socket: "http"}}})
	if err != nil {
		t.Fatal(err)
	}
	file, err := memfile.Write("zdt-manifest", manifest)
	if err != nil {
		t.Fatal(err)
	}
	msg := wire.Message{Type: wire.Move, Batch: 1, Count: 1, Files: []int{file, fd}}
	defer msg.CloseFiles()
	if taken, answer, resets := b.h.build(&msg); len(taken) != 0 || len(answer.Refused) != 1 || resets != 1 {
		t.Errorf("%d taken, answer %+v", len(taken), answer)
	}
}
