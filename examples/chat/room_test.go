package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

func open(t *testing.T, path string, keep int64) *room {
	t.Helper()
	r, err := openRoom(path, keep)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.close() })
	return r
}

// Two processes of an upgrade, here as two rooms of one file: what both say gets one order, which both see, although the
// file is trimmed all the time.
func TestOneOrder(t *testing.T) {
	const speakers, messages, ahead = 3, 200, 100
	path := filepath.Join(t.TempDir(), "room.log")
	// Small enough to be trimmed, and large enough for listeners that are not far behind: the speakers wait for them.
	rooms := []*room{open(t, path, 16<<10), open(t, path, 16<<10)}
	ctx, cancel := context.WithCancel(t.Context())
	var followers, others sync.WaitGroup
	defer followers.Wait()
	defer cancel()
	heard := make([][]string, len(rooms))
	var progress [2]atomic.Int64
	for i, r := range rooms {
		followers.Go(func() { r.follow(ctx) })
		woken := make(chan struct{}, 1)
		defer r.join(func() {
			select {
			case woken <- struct{}{}:
			default:
			}
		})()
		for s := range speakers {
			others.Go(func() {
				for m := range messages {
					if err := r.say(fmt.Sprintf("%d %d %d", i, s, m)); err != nil {
						t.Error(err)
						return
					}
					for r.now()-min(progress[0].Load(), progress[1].Load()) > ahead && !t.Failed() {
						time.Sleep(100 * time.Microsecond)
					}
				}
			})
		}
		others.Go(func() {
			next := int64(1)
			for len(heard[i]) < 2*speakers*messages {
				due, err := r.from(next)
				if err != nil {
					t.Errorf("room %d: %v", i, err)
					return
				}
				heard[i] = append(heard[i], due...)
				next += int64(len(due))
				progress[i].Store(next)
				if len(due) > 0 {
					continue
				}
				select {
				case <-woken:
				case <-time.After(20 * time.Second):
					t.Errorf("room %d: nothing after message %d", i, next-1)
					return
				}
			}
		})
	}
	others.Wait()
	if strings.Join(heard[0], "\n") != strings.Join(heard[1], "\n") {
		t.Error("the two have heard different things")
	}
	count := map[string]int{} // what each speaker said is in its own order
	for _, text := range heard[0] {
		var i, s, m int
		fmt.Sscan(text, &i, &s, &m)
		key := fmt.Sprint(i, s)
		if m != count[key] {
			t.Fatalf("%q after message %d", text, count[key]-1)
		}
		count[key]++
	}
	if st, err := os.Stat(path); err != nil || st.Size() > 32<<10 {
		t.Errorf("the log has %d bytes, %v", st.Size(), err)
	}
}

func say(t *testing.T, r *room, texts ...string) {
	t.Helper()
	for _, text := range texts {
		if err := r.say(text); err != nil {
			t.Fatal(err)
		}
	}
}

func hear(t *testing.T, r *room, next int64, want ...string) {
	t.Helper()
	if _, err := r.look(); err != nil {
		t.Fatal(err)
	}
	got, err := r.from(next)
	if err != nil || strings.Join(got, "|") != strings.Join(want, "|") {
		t.Errorf("from %d: %q, %v, want %q", next, got, err, want)
	}
}

// A process that starts finds what was said, with its numbers.
func TestRoomIsKept(t *testing.T) {
	path := filepath.Join(t.TempDir(), "room.log")
	r := open(t, path, 1<<10)
	say(t, r, "one", "two\nlines", "\x00 ünïcode \u2028")
	again := open(t, path, 1<<10)
	hear(t, again, 1, "one", "two\nlines", "\x00 ünïcode \u2028")
	hear(t, again, 3, "\x00 ünïcode \u2028")
	hear(t, again, 4)
	hear(t, again, 40) // a client whose last process had read further
	if again.now() != 4 {
		t.Errorf("now %d", again.now())
	}
}

func TestRoomIsTrimmed(t *testing.T) {
	const keep = 1000
	path := filepath.Join(t.TempDir(), "room.log")
	r, slow := open(t, path, keep), open(t, path, keep)
	for i := range 300 {
		say(t, r, fmt.Sprintf("message %d", i+1))
		if n := len(r.texts); n > 2*keep/perMessage {
			t.Fatalf("%d messages are kept", n)
		}
		if st, err := os.Stat(path); err != nil || st.Size() > 2*keep {
			t.Fatalf("%d bytes, %v", st.Size(), err)
		}
	}
	if _, err := r.from(1); !errors.Is(err, errBehind) {
		t.Errorf("the first message: %v", err)
	}
	// Who has slept meanwhile has lost some, and knows it.
	if _, err := slow.look(); err != nil {
		t.Fatal(err)
	}
	if _, err := slow.from(1); !errors.Is(err, errBehind) {
		t.Errorf("the first message: %v", err)
	}
	for _, r := range []*room{r, slow, open(t, path, keep)} {
		hear(t, r, 299, "message 299", "message 300")
	}
}

// Empty messages take room too.
func TestEmptyMessages(t *testing.T) {
	r := open(t, filepath.Join(t.TempDir(), "room.log"), 1000)
	say(t, r, make([]string, 200)...)
	if n := len(r.texts); n > 2*1000/perMessage {
		t.Errorf("%d messages are kept", n)
	}
	hear(t, r, 200, "")
}

// A process that is killed as it writes leaves a part of a line. Nobody reads it, and the next to write removes it.
func TestTornLine(t *testing.T) {
	path := filepath.Join(t.TempDir(), "room.log")
	r := open(t, path, 1<<10)
	say(t, r, "one")
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, append(whole, `{"seq":2,"te`...), 0o600); err != nil {
		t.Fatal(err)
	}
	other := open(t, path, 1<<10)
	hear(t, other, 1, "one")
	say(t, other, "two")
	hear(t, r, 1, "one", "two")
}

func TestRoomRefusesGarbage(t *testing.T) {
	path := filepath.Join(t.TempDir(), "room.log")
	if err := os.WriteFile(path, []byte("{\"seq\":1,\"text\":\"one\"}\nhello\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := openRoom(path, 1<<10); err == nil || !strings.Contains(err.Error(), path+" at byte 23") {
		t.Errorf("error %v", err)
	}
}

// A client that the service stops under hears so, also one that comes late.
func TestEnd(t *testing.T) {
	r := open(t, filepath.Join(t.TempDir(), "room.log"), 1<<10)
	woken := 0
	defer r.join(func() { woken++ })()
	r.end()
	if _, err := r.from(1); woken != 1 || !errors.Is(err, errStopping) {
		t.Errorf("woken %d times, %v", woken, err)
	}
}
