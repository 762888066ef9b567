package sockview

import (
	"encoding/json"
	"math/rand/v2"
	"slices"
	"testing"
)

// aView is a look at a connection in the middle of its life.
func aView() View {
	return View{
		Socket: "tcp", Inode: 7001, Cookie: 41, Local: "127.0.0.1:80", Remote: "127.0.0.1:40000", ReuseAddr: true,
		Unread: 10, Unsent: 20, State: tcpEstablished, Counted: true, BytesReceived: 100, BytesAcked: 200, SegsIn: 30, SegsOut: 40,
		Repair: true, RcvSeq: 5000, SndSeq: 6000,
	}
}

func with(v View, changes ...func(*View)) View {
	for _, change := range changes {
		change(&v)
	}
	return v
}

// What the peer can do between two looks.

func sent(n int) func(*View) {
	return func(v *View) {
		v.Unread += int64(n)
		v.BytesReceived += uint64(n)
		v.RcvSeq += uint32(n)
		v.SegsIn++
		v.SegsOut++
	}
}

func acknowledged(n int) func(*View) {
	return func(v *View) { v.Unsent -= int64(n); v.BytesAcked += uint64(n); v.SegsIn++ }
}

func ended(v *View) { // a segment with the end of the stream alone
	v.State = map[tcpState]tcpState{tcpEstablished: tcpCloseWait, tcpFinWait1: tcpClosing, tcpFinWait2: tcpClose}[v.State]
	v.BytesReceived++
	v.RcvSeq++
	v.SegsIn++
}

func wasReset(v *View) { v.State, v.Remote, v.SegsIn = tcpClose, "", v.SegsIn+1 }
func timedOut(v *View) { v.State, v.Remote = tcpClose, "" }
func in(s tcpState) func(*View) {
	return func(v *View) { v.State = s }
}
func withoutRepair(v *View) { v.Repair, v.RcvSeq, v.SndSeq = false, 0, 0 }
func uncounted(v *View) {
	v.Counted, v.BytesReceived, v.BytesAcked, v.SegsIn, v.SegsOut = false, 0, 0, 0, 0
}
func unsteady(v *View) { v.Unsteady = true }
func urgent(v *View)   { v.Urgent = true }

func ofUnix(v *View) {
	*v = View{Socket: "unix", Inode: v.Inode, Cookie: v.Cookie, Unread: v.Unread, Unsent: v.Unsent}
}

func TestCompareViews(t *testing.T) {
	v := aView()
	nearWrap := with(v, func(v *View) { v.RcvSeq, v.SegsIn = 1<<32-3, 1<<32-1 })
	fin1, fin2, closeWait := with(v, in(tcpFinWait1)), with(v, in(tcpFinWait2)), with(v, in(tcpCloseWait))
	for _, tt := range []struct {
		name          string
		before, after View
		want          []string
	}{
		// Nothing wrong.
		{"nothing happened", v, v, nil},
		{"the peer sent", v, with(v, sent(5), sent(6)), nil},
		{"the peer sent over the end of the sequence numbers", nearWrap, with(nearWrap, sent(10)), nil},
		{"the peer acknowledged", v, with(v, acknowledged(20)), nil},
		{"the peer ended its stream", v, with(v, ended), nil},
		{"the peer sent and ended", v, with(v, sent(4), ended), nil},
		{"the peer reset", v, with(v, wasReset), nil},
		{"the peer sent, ended and reset", v, with(v, sent(4), ended, wasReset), nil},
		{"the peer sent and reset", v, with(v, sent(4), wasReset), nil},
		{"it timed out", v, with(v, timedOut), nil},
		{"we had ended, the peer acknowledges", fin1, with(fin1, acknowledged(20), in(tcpFinWait2)), nil},
		{"we had ended, the peer ends", fin2, with(fin2, sent(3), ended), nil},
		{"both end", fin1, with(fin1, ended), nil},
		{"the peer had ended and resets", closeWait, with(closeWait, wasReset), nil},
		{"no sequence numbers before", with(v, withoutRepair), with(v, sent(5)), nil},
		{"no sequence numbers after", v, with(v, sent(5), withoutRepair), nil},
		{"an old kernel", with(v, uncounted, withoutRepair), with(v, sent(9), acknowledged(2), uncounted, withoutRepair), nil},
		{"looked at while bytes came", with(v, unsteady), with(v, sent(9), func(v *View) { v.Unread-- }), nil},
		{"urgent data hides what follows", v, with(v, sent(9), urgent, func(v *View) { v.Unread -= 4 }), nil},
		{"accepted before the handshake ended", with(v, in(tcpSynRecv)), with(v, sent(9), func(v *View) { v.Unsent = 99 }), nil},
		{"unix", with(v, ofUnix), with(v, ofUnix, sent(3), func(v *View) { *v = with(*v, ofUnix); v.Unsent = 0 }), nil},

		// Another connection.
		{"inode", v, with(v, func(v *View) { v.Inode++; v.Unread = 0 }), []string{"another socket: inode 7001 before, 7002 after"}},
		{"cookie", v, with(v, func(v *View) { v.Cookie++ }), []string{"another socket: cookie 41 before, 42 after"}},
		{"kind", v, with(v, ofUnix), []string{`another socket: "tcp" before, "unix" after`}},
		{"never looked", View{}, v, []string{`another socket: "" before, "tcp" after`}},
		{"addresses", v, with(v, func(v *View) { v.Local, v.Remote = "[::1]:80", "" }), []string{
			`local address: "127.0.0.1:80" before, "[::1]:80" after`, `remote address: "127.0.0.1:40000" before, "" after`}},
		{"SO_REUSEADDR", v, with(v, func(v *View) { v.ReuseAddr = false }), []string{"SO_REUSEADDR: true before, false after"}},

		// Bytes.
		{"somebody read", v, with(v, func(v *View) { v.Unread -= 4 }), []string{"4 unread bytes vanished: 10 before, 6 after"}},
		{"somebody read while the peer sent", v, with(v, sent(5), func(v *View) { v.Unread -= 4 }),
			[]string{"4 unread bytes vanished: 10 before, 5 received since, 11 after"}},
		{"somebody read one byte and the stream goes on", v, with(v, sent(5), func(v *View) { v.Unread-- }),
			[]string{"1 unread bytes vanished: 10 before, 5 received since, 14 after"}},
		{"somebody read one byte after the end", closeWait, with(closeWait, wasReset, func(v *View) { v.Unread-- }),
			[]string{"1 unread bytes vanished: 10 before, 9 after"}},
		{"more to read than came", v, with(v, sent(5), func(v *View) { v.Unread++ }),
			[]string{"1 unread bytes appeared: 10 before, 5 received since, 16 after"}},
		{"the end of the stream counts as a byte", v, with(v, ended, func(v *View) { v.Unread++ }),
			[]string{"1 unread bytes appeared: 10 before, 0 received since, 11 after"}},
		{"more after the end", closeWait, with(closeWait, sent(2)), []string{"2 bytes received after the peer's end of the stream"}},
		{"received by nothing", v, with(v, sent(5), func(v *View) { v.SegsIn-- }),
			[]string{"5 bytes received and 0 acknowledged without a segment from the peer"}},
		{"received bytes fell", v, with(v, func(v *View) { v.BytesReceived = 0 }), []string{"bytes received: 100 before, 0 after"}},
		{"somebody wrote", v, with(v, func(v *View) { v.Unsent += 7; v.SndSeq += 7; v.SegsOut++ }),
			[]string{"send sequence number: 6000 before, 6007 after", "7 unsent bytes appeared: 20 before, 27 after"}},
		{"somebody wrote while the peer acknowledged", with(v, withoutRepair), with(v, withoutRepair, acknowledged(20), func(v *View) { v.Unsent += 7 }),
			[]string{"7 unsent bytes appeared: 20 before, 20 acknowledged since, 7 after"}},
		{"unsent bytes vanished", v, with(v, acknowledged(5), func(v *View) { v.Unsent -= 2 }),
			[]string{"2 unsent bytes vanished: 20 before, 5 acknowledged since, 13 after"}},
		{"acknowledged bytes fell", v, with(v, func(v *View) { v.BytesAcked-- }), []string{"bytes acknowledged: 200 before, 199 after"}},
		{"unsent grew, on an old kernel", with(v, uncounted), with(v, uncounted, func(v *View) { v.Unsent++ }),
			[]string{"1 unsent bytes appeared: 20 before, 21 after"}},
		{"unread vanished while bytes came", with(v, unsteady), with(v, func(v *View) { v.Unread-- }), []string{"1 unread bytes vanished: 10 before, 9 after"}},
		{"somebody read from a unix socket", with(v, ofUnix), with(v, ofUnix, func(v *View) { v.Unread = 0 }), []string{"10 unread bytes vanished: 10 before, 0 after"}},
		{"somebody wrote to a unix socket", with(v, ofUnix), with(v, ofUnix, func(v *View) { v.Unsent += 768 }), []string{"768 unsent bytes appeared: 20 before, 788 after"}},

		// Sequence numbers, segments, states.
		{"receive sequence fell", v, with(v, func(v *View) { v.RcvSeq-- }), []string{"receive sequence number: 5000 before, 4999 after"}},
		{"receive sequence disagrees", v, with(v, sent(5), func(v *View) { v.RcvSeq++ }),
			[]string{"receive sequence number: 5000 before, 5006 after, but 5 bytes received between them"}},
		{"segments fell", v, with(v, func(v *View) { v.SegsIn--; v.SegsOut-- }),
			[]string{"segments received: 30 before, 29 after", "segments sent: 40 before, 39 after"}},
		{"somebody shut it down", v, with(v, in(tcpFinWait1), func(v *View) { v.Unsent++; v.SndSeq++ }), []string{
			"state: ESTABLISHED before, FIN_WAIT1 after, which is not the peer's doing",
			"send sequence number: 6000 before, 6001 after", "1 unsent bytes appeared: 20 before, 21 after"}},
		{"back from the dead", with(v, in(tcpClose)), v, []string{"state: CLOSE before, ESTABLISHED after, which is not the peer's doing"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if got := tt.before.Compare(tt.after); !slices.Equal(got, tt.want) {
				t.Errorf("differences:\n%q, want\n%q", got, tt.want)
			}
		})
	}
}

// TestCompareModel lets a peer do anything it can, in any order, and then one
// thing on this side that it cannot have done.
func TestCompareModel(t *testing.T) {
	r := rand.New(rand.NewPCG(3, 5))
	wrongs := []func(*View, int){
		func(v *View, n int) { v.Unread -= int64(n) },
		func(v *View, n int) { v.Unread += int64(n) },
		func(v *View, n int) { v.Unsent += int64(n) },
		func(v *View, n int) { v.Unsent -= int64(n) },
		func(v *View, n int) { v.BytesReceived += uint64(n) },
		func(v *View, n int) { v.BytesAcked += uint64(n) },
		func(v *View, n int) { v.RcvSeq += uint32(n) },
		func(v *View, n int) { v.SndSeq += uint32(n) },
		func(v *View, n int) { v.Cookie += uint64(n) },
	}
	for range 20000 {
		before := with(aView(), in([]tcpState{tcpEstablished, tcpFinWait1, tcpFinWait2, tcpCloseWait}[r.IntN(4)]), func(v *View) {
			v.RcvSeq, v.SndSeq = r.Uint32()|1, r.Uint32()|1 // 0 is no number
			v.Unread, v.Unsent = r.Int64N(1000), r.Int64N(1000)
		})
		after := before
		for range r.IntN(6) {
			switch act := r.IntN(4); {
			case act == 0 && !after.State.ended() && after.State != tcpClose:
				sent(1 + r.IntN(1000))(&after)
			case act == 1 && after.Unsent > 0 && after.State != tcpClose:
				acknowledged(1 + r.IntN(int(after.Unsent)))(&after)
			case act == 2 && !after.State.ended() && after.State != tcpClose:
				ended(&after)
			case act == 3 && r.IntN(4) == 0:
				wasReset(&after)
			}
		}
		if after.RcvSeq == 0 {
			continue
		}
		if d := before.Compare(after); d != nil {
			t.Fatalf("the peer's doing makes differences:\n%+v\n%+v\n%q", before, after, d)
		}
		// Two bytes at least: of a connection that was reset one may have been the end of the stream.
		which := r.IntN(len(wrongs))
		wrong := after
		wrongs[which](&wrong, 2+r.IntN(1000))
		if d := before.Compare(wrong); d == nil && wrong.RcvSeq != 0 && wrong.SndSeq != 0 {
			t.Fatalf("wrong %d makes no difference:\n%+v\n%+v", which, before, wrong)
		}
	}
}

func TestViewAsJSON(t *testing.T) {
	for _, v := range []View{aView(), with(aView(), ofUnix), with(aView(), urgent, unsteady, withoutRepair), {}} {
		text, err := json.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		var back View
		if err := json.Unmarshal(text, &back); err != nil || back != v {
			t.Errorf("%s is %+v, want %+v (%v)", text, back, v, err)
		}
		if len(text) > 400 {
			t.Errorf("a view takes %d bytes: %s", len(text), text)
		}
	}
}
