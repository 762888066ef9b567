package sockview

import (
	"bytes"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestLookLeavesNoTrace: the look sends nothing and changes nothing.
func TestLookLeavesNoTrace(t *testing.T) {
	needRepair(t)
	for _, reuse := range []int{0, 1} {
		p := newTCPPair(t)
		if err := unix.SetsockoptInt(p.fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, reuse); err != nil {
			t.Fatal(err)
		}
		first := mustView(t, p.fd, true)
		for range 100 {
			mustView(t, p.fd, true)
		}
		if last := mustView(t, p.fd, true); last != first {
			t.Errorf("SO_REUSEADDR %d:\n%+v\n%+v", reuse, first, last)
		}
		if first.RcvSeq == 0 || first.SndSeq == 0 || first.ReuseAddr != (reuse == 1) || repairMode(t, p.fd) {
			t.Errorf("view %+v", first)
		}
		talk(t, p)
	}
}

// TestLookKeepsPortFree: leaving TCP_REPAIR turns SO_REUSEADDR off, and one such
// connection keeps everybody from listening on its port anew.
func TestLookKeepsPortFree(t *testing.T) {
	needRepair(t)
	again := func(t *testing.T, spoil func(*aPair)) error {
		ln, err := net.Listen("tcp4", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		p := pairOn(t, ln)
		mustView(t, p.fd, true)
		spoil(p)
		ln.Close()
		ln, err = net.Listen("tcp4", ln.Addr().String())
		if err == nil {
			ln.Close()
		}
		return err
	}
	if err := again(t, func(*aPair) {}); err != nil {
		t.Errorf("listen again beside a connection that was looked at: %v", err)
	}
	off := func(p *aPair) {
		enterRepair(t, p.fd, tcpRecvQueue)
		if err := unix.SetsockoptInt(p.fd, unix.SOL_TCP, unix.TCP_REPAIR, unix.TCP_REPAIR_OFF_NO_WP); err != nil {
			t.Fatal(err)
		}
	}
	if err := again(t, off); !errors.Is(err, unix.EADDRINUSE) {
		t.Errorf("listen again beside a connection without SO_REUSEADDR: %v, want EADDRINUSE: the kernel has changed, look needs no restoring", err)
	}
	killedBetween := func(p *aPair) {
		before := mustView(t, p.fd, true)
		off(p)
		if err := before.Restore(p.fd); err != nil {
			t.Fatal(err)
		}
	}
	if err := again(t, killedBetween); err != nil {
		t.Errorf("listen again beside a restored connection: %v", err)
	}
	killedWithin := func(p *aPair) {
		enterRepair(t, p.fd, tcpSendQueue)
		if err := leaveRepair(p.fd); err != nil {
			t.Fatal(err)
		}
	}
	if err := again(t, killedWithin); err != nil {
		t.Errorf("listen again beside a connection taken out of TCP_REPAIR: %v", err)
	}
}

// TestRepairMode is what the kernel does with a socket in the mode.
func TestRepairMode(t *testing.T) {
	needRepair(t)
	t.Run("what arrives is kept", func(t *testing.T) {
		p := newTCPPair(t)
		enterRepair(t, p.fd, tcpRecvQueue)
		write(t, p.client, 10)
		viewWhen(t, p.fd, false, func(v View) bool { return v.Unread == 10 })
		if _, err := unix.Read(p.fd, make([]byte, 10)); !errors.Is(err, unix.EPERM) {
			t.Errorf("read: %v, want EPERM", err)
		}
		if !repairMode(t, p.fd) {
			t.Error("a look without sequence numbers changed the mode")
		}
		if err := leaveRepair(p.fd); err != nil {
			t.Fatal(err)
		}
		read(t, p.server, 10)
		talk(t, p)
	})
	t.Run("a look ends it", func(t *testing.T) {
		p := newTCPPair(t)
		enterRepair(t, p.fd, tcpSendQueue)
		if v := mustView(t, p.fd, true); !v.Repair || !v.ReuseAddr || repairMode(t, p.fd) {
			t.Errorf("view %+v", v)
		}
		talk(t, p)
	})
	t.Run("closed in it", func(t *testing.T) {
		p := newTCPPair(t)
		enterRepair(t, p.fd, tcpRecvQueue)
		p.server.Close()
		null, err := os.Open(os.DevNull)
		if err != nil {
			t.Fatal(err)
		}
		defer null.Close()
		if err := unix.Dup3(int(null.Fd()), p.fd, unix.O_CLOEXEC); err != nil { // closes it and keeps the number taken
			t.Fatal(err)
		}
		p.client.SetReadDeadline(time.Now().Add(50 * time.Millisecond))
		if _, err := p.client.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("the peer reads %v, want nothing: no end, no reset", err)
		}
		p.client.SetReadDeadline(time.Now().Add(verifyPatience))
		write(t, p.client, 1)
		if _, err := p.client.Read(make([]byte, 1)); !errors.Is(err, unix.ECONNRESET) {
			t.Errorf("the peer wrote and reads %v, want a reset", err)
		}
	})
}

// TestLookWithoutCapability: the thread alone gives it up, and is thrown away.
func TestLookWithoutCapability(t *testing.T) {
	needRepair(t)
	p, stuck := newTCPPair(t), newTCPPair(t)
	enterRepair(t, stuck.fd, tcpRecvQueue)
	var v View
	var errs [4]error
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread()
		header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
		var data [2]unix.CapUserData
		if errs[0] = unix.Capget(&header, &data[0]); errs[0] != nil {
			return
		}
		data[0].Effective &^= 1 << unix.CAP_NET_ADMIN
		if errs[0] = unix.Capset(&header, &data[0]); errs[0] != nil {
			return
		}
		v, errs[1] = Look(p.fd, true)
		errs[2] = leaveRepair(p.fd)
		errs[3] = leaveRepair(stuck.fd)
	}()
	<-done
	if err := errors.Join(errs[:3]...); err != nil {
		t.Fatal(err)
	}
	if v.Repair || v.RcvSeq != 0 || v.SndSeq != 0 || !v.Counted || !v.ReuseAddr {
		t.Errorf("view %+v", v)
	}
	if !errors.Is(errs[3], unix.EPERM) {
		t.Errorf("leave the mode: %v, want EPERM", errs[3])
	}
	if d := mustView(t, p.fd, true).Compare(v); d != nil {
		t.Errorf("differences %q from a look with the capability", d)
	}
	talk(t, p)
	if err := leaveRepair(stuck.fd); err != nil {
		t.Fatal(err)
	}
	talk(t, stuck)
}

// TestLookAtUnsent: with bytes waiting for the peer's window, acknowledgements
// that come while the socket is looked at must not make the kernel think it had
// sent them. It would send them again after its timeout: looks that read the send sequence
// number all the same were seen to cause 23 retransmissions a connection, none at all cause 1.
func TestLookAtUnsent(t *testing.T) {
	needRepair(t)
	const conns = 8
	looks, bytes, again := 0, 0, uint32(0)
	for range conns {
		p := newTCPPair(t)
		total := fill(t, p)
		before := mustView(t, p.fd, true)
		if !before.Repair || before.RcvSeq == 0 || before.SndSeq != 0 {
			t.Fatalf("view %+v with %d bytes under way", before, total)
		}
		readAll := make(chan error, 1)
		go func() {
			_, err := io.ReadFull(p.client, make([]byte, total))
			readAll <- err
		}()
		for v := before; v.Unsent != 0; looks++ {
			v = mustView(t, p.fd, true)
			if d := before.Compare(v); d != nil {
				t.Fatalf("look %d: %q\n%+v\n%+v", looks, d, before, v)
			}
		}
		if err := <-readAll; err != nil {
			t.Fatal(err)
		}
		var info tcpInfo
		if err := info.read(p.fd); err != nil {
			t.Fatal(err)
		}
		again += info.info.Total_retrans
		bytes += total
		talk(t, p)
	}
	t.Logf("%d looks while %d bytes left on %d connections; %d segments sent again", looks, bytes, conns, again)
	if again > 5*conns {
		t.Errorf("%d segments sent again on %d connections", again, conns)
	}
}

// TestLooksUnderTraffic compares looks while the peer sends and reads as fast as
// it can, until nothing moves any more because nobody reads here.
func TestLooksUnderTraffic(t *testing.T) {
	looks, moved, unsteady := 0, 0, 0
	// On a busy machine a round may be over before its traffic has begun.
	for round := 0; round < 20 || moved < 20 && round < 1000; round++ {
		p := newTCPPair(t)
		fill(t, p)
		before := mustView(t, p.fd, true)
		joined := make(chan struct{}, 2)
		go func() { io.Copy(io.Discard, p.client); joined <- struct{}{} }()
		go func() {
			for buf, err := make([]byte, 500), error(nil); err == nil; {
				_, err = p.client.Write(buf)
			}
			joined <- struct{}{}
		}()
		for last, still := before, 0; still < 100; looks++ {
			v := mustView(t, p.fd, round%2 == 0)
			if v.Unread == last.Unread && v.Unsent == last.Unsent {
				still++
			} else {
				moved, still = moved+1, 0
			}
			if v.Unsteady {
				unsteady++
			}
			for _, earlier := range []View{before, last} {
				if d := earlier.Compare(v); d != nil {
					t.Errorf("look %d: %q\n%+v\n%+v", looks, d, earlier, v)
					still = 100
				}
			}
			last = v
		}
		p.client.SetDeadline(time.Unix(1, 0))
		<-joined
		<-joined
		p.client.Close()
		p.server.Close()
	}
	t.Logf("%d looks, %d saw something new, %d were unsteady", looks, moved, unsteady)
	if moved < 20 {
		t.Errorf("%d of %d looks saw something new: there was no traffic", moved, looks)
	}
}

// envLook makes the test binary look at descriptor 3 until it is killed.
const envLook = "ZDT_TEST_LOOK"

// TestLooker is no test but the process that is killed in the next ones.
func TestLooker(t *testing.T) {
	mode := os.Getenv(envLook)
	if mode == "" {
		return
	}
	const fd, began = 3, 4
	if mode == "stay" {
		enterRepair(t, fd, tcpSendQueue)
	}
	mustView(t, fd, mode == "loop")
	unix.Close(began)
	if mode == "stay" {
		select {}
	}
	for {
		if _, err := Look(fd, true); err != nil {
			t.Fatal(err)
		}
	}
}

// startLooker starts a process with a copy of fd and waits until it looks.
func startLooker(t *testing.T, fd int, mode string) *exec.Cmd {
	t.Helper()
	// A blocking placeholder first: of a file over the socket itself os/exec
	// would clear O_NONBLOCK, which all its descriptors share.
	placeholder, err := unix.Eventfd(0, unix.EFD_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	socket := os.NewFile(uintptr(placeholder), "socket")
	defer socket.Close()
	if err := unix.Dup3(fd, placeholder, unix.O_CLOEXEC); err != nil {
		t.Fatal(err)
	}
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	cmd := exec.Command(os.Args[0], "-test.run=^TestLooker$")
	cmd.Env = append(os.Environ(), envLook+"="+mode)
	cmd.ExtraFiles = []*os.File{socket, w}
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	err = cmd.Start()
	w.Close()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() }) // in vain, but after a failure
	if n, err := r.Read(make([]byte, 1)); n != 0 || err != io.EOF {
		t.Fatalf("the looker writes %d bytes (%v)", n, err)
	}
	return cmd
}

func kill(t *testing.T, cmd *exec.Cmd) {
	t.Helper()
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	var exit *exec.ExitError
	if err := cmd.Wait(); !errors.As(err, &exit) || !exit.Sys().(syscall.WaitStatus).Signaled() {
		t.Fatalf("the looker: %v\n%s", err, cmd.Stdout)
	}
}

// TestKilledInRepair: a process that is killed in the mode leaves it on, for sure.
func TestKilledInRepair(t *testing.T) {
	needRepair(t)
	p := newTCPPair(t)
	write(t, p.client, 10)
	before := viewWhen(t, p.fd, true, func(v View) bool { return v.Unread == 10 })
	kill(t, startLooker(t, p.fd, "stay"))
	if !repairMode(t, p.fd) {
		t.Fatal("the mode was left without anybody doing it")
	}
	if err := before.Restore(p.fd); err != nil || repairMode(t, p.fd) {
		t.Fatalf("restored: %v", err)
	}
	if d := before.Compare(mustView(t, p.fd, true)); d != nil {
		t.Errorf("differences %q", d)
	}
	read(t, p.server, 10)
	talk(t, p)
}

// TestKilledWhileLooking kills processes at random moments of their looks while
// the peer sends and reads. The copy that is left here must be sound each time.
func TestKilledWhileLooking(t *testing.T) {
	needRepair(t)
	rounds := 120
	if testing.Short() {
		rounds = 20
	}
	r := rand.New(rand.NewPCG(8, 9))
	inMode, noReuse := 0, 0
	for range rounds {
		p := newTCPPair(t)
		up, down := make([]byte, 100+r.IntN(200<<10)), make([]byte, 100+r.IntN(200<<10))
		for i := range up {
			up[i] = byte(r.Uint32())
		}
		for i := range down {
			down[i] = byte(r.Uint32())
		}
		cut := r.IntN(len(down))
		if _, err := p.server.Write(down[:cut]); err != nil { // nobody writes during a look
			t.Fatal(err)
		}
		before := mustView(t, p.fd, true)
		cmd := startLooker(t, p.fd, "loop")
		type result struct {
			got []byte
			err error
		}
		wrote, got := make(chan error, 1), make(chan result, 1)
		go func() {
			for rest := up; ; {
				n := min(len(rest), 1+len(up)/50)
				if _, err := p.client.Write(rest[:n]); err != nil || n == len(rest) {
					wrote <- err
					return
				}
				rest = rest[n:]
			}
		}()
		go func() {
			buf := make([]byte, len(down))
			_, err := io.ReadFull(p.client, buf)
			got <- result{buf, err}
		}()
		<-time.After(time.Duration(r.IntN(3000)) * time.Microsecond) // the random moment
		kill(t, cmd)
		if repairMode(t, p.fd) {
			inMode++
		} else if on, err := unix.GetsockoptInt(p.fd, unix.SOL_SOCKET, unix.SO_REUSEADDR); err == nil && on == 0 {
			noReuse++
		}
		if err := before.Restore(p.fd); err != nil || repairMode(t, p.fd) {
			t.Fatalf("still in TCP_REPAIR (%v)", err)
		}
		if d := before.Compare(mustView(t, p.fd, true)); d != nil {
			t.Fatalf("differences %q", d)
		}
		if _, err := p.server.Write(down[cut:]); err != nil {
			t.Fatal(err)
		}
		buf := make([]byte, len(up))
		if _, err := io.ReadFull(p.server, buf); err != nil || !bytes.Equal(buf, up) {
			t.Fatalf("from the peer: %v, the bytes are the same: %t", err, bytes.Equal(buf, up))
		}
		if err := <-wrote; err != nil {
			t.Fatal(err)
		}
		if res := <-got; res.err != nil || !bytes.Equal(res.got, down) {
			t.Fatalf("to the peer: %v, the bytes are the same: %t", res.err, bytes.Equal(res.got, down))
		}
		talk(t, p)
		p.client.Close()
		p.server.Close()
	}
	t.Logf("%d of %d were killed in TCP_REPAIR, %d more before SO_REUSEADDR was back", inMode, rounds, noReuse)
	if inMode == 0 && !testing.Short() {
		t.Error("none was killed in TCP_REPAIR: the test shows nothing")
	}
}

func BenchmarkViewOf(b *testing.B) {
	for _, repair := range []bool{false, true} {
		b.Run(map[bool]string{false: "plain", true: "repair"}[repair], func(b *testing.B) {
			fd := newTCPPair(b).fd
			for b.Loop() {
				if v, err := Look(fd, repair); err != nil || v.Repair != repair {
					b.Fatal(v, err)
				}
			}
		})
	}
	b.Run("window", func(b *testing.B) { // TCP_REPAIR alone, with the signals' mask
		fd := newTCPPair(b).fd
		for b.Loop() {
			s := sequences{withSend: true}
			if err := s.read(fd); err != nil || !s.known {
				b.Fatal(err)
			}
		}
	})
	b.Run("unix", func(b *testing.B) {
		fd := newPair(b, "unix", filepath.Join(b.TempDir(), "s")).fd
		for b.Loop() {
			if _, err := Look(fd, false); err != nil {
				b.Fatal(err)
			}
		}
	})
}
