package main

import (
	"context"
	"errors"
	"log"
	"slices"
	"sync"
	"time"
)

// room is the one room of this chat, as far as this process knows it: the
// newest messages of the log, and whom to wake when there are more.
//
// No client has a queue of its own. Each knows the number of the next message it
// gets and takes it from here when it can, so one that reads slowly costs the
// others nothing.
type room struct {
	mu    sync.Mutex
	log   *roomLog
	texts []string // of the messages first, first+1, …
	first int64
	size  int64 // of texts, each with perMessage
	wakes map[*func()]struct{}
	ended bool
}

// How often the log is looked at for messages of the other process. inotify(7)
// would tell at once, but its instances are few (128 per user is a common limit)
// and network and overlay file systems may not tell at all, so a poll would have to
// stand behind it anyway. A process does not wait for its own messages, those of
// another come only during an upgrade, and to look at an idle room costs two calls
// of stat(2).
const (
	pollBusy = 2 * time.Millisecond
	pollIdle = 50 * time.Millisecond
)

// perMessage is about what a message costs besides its text, in bytes. Without
// it, empty ones would be free and as many as anybody likes.
const perMessage = 32

// errBehind: the client has not taken its messages before they were trimmed.
var errBehind = &closeError{closePolicy, "too far behind the room"}

// errStopping ends all clients when the service stops.
var errStopping = &closeError{closeGoingAway, "the service stops"}

// openRoom reads the room's log at path, which keeps its newest keep bytes.
func openRoom(path string, keep int64) (*room, error) {
	l, err := openLog(path, keep)
	if err != nil {
		return nil, err
	}
	r := &room{log: l, first: 1, wakes: make(map[*func()]struct{})}
	if _, err := r.look(); err != nil {
		return nil, errors.Join(err, l.close())
	}
	return r, nil
}

func (r *room) close() error { return r.log.close() }

// follow looks for messages of the other process until ctx ends.
func (r *room) follow(ctx context.Context) {
	poll := time.NewTimer(pollIdle)
	defer poll.Stop()
	pause, complaint := pollIdle, ""
	for {
		select {
		case <-ctx.Done():
			return
		case <-poll.C:
		}
		n, err := r.look()
		if err != nil && err.Error() != complaint {
			complaint = err.Error()
			log.Print(complaint)
		}
		pause = min(2*pause, pollIdle)
		if n > 0 {
			pause = pollBusy
		}
		poll.Reset(pause)
	}
}

func (r *room) look() (n int, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	fresh, err := r.log.next()
	r.heard(fresh)
	return len(fresh), err
}

// say appends a message to the room.
func (r *room) say(text string) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	fresh, err := r.log.append(text)
	r.heard(fresh)
	return err
}

// heard keeps messages and wakes everybody. The caller holds mu.
func (r *room) heard(fresh []message) {
	if len(fresh) == 0 {
		return
	}
	for _, m := range fresh {
		if m.Seq != r.first+int64(len(r.texts)) {
			// This process starts, or slept while the log was trimmed: what is
			// in between it does not have.
			r.texts, r.first, r.size = nil, m.Seq, 0
		}
		r.texts = append(r.texts, m.Text)
		r.size += int64(len(m.Text)) + perMessage
	}
	if r.size > 2*r.log.keep {
		drop := 0
		for ; r.size > r.log.keep; drop++ {
			r.size -= int64(len(r.texts[drop])) + perMessage
		}
		r.texts, r.first = slices.Clone(r.texts[drop:]), r.first+int64(drop)
	}
	for wake := range r.wakes {
		(*wake)()
	}
}

// join has wake called whenever there may be something new. wake must not
// wait, and may be called still while leave runs.
func (r *room) join(wake func()) (leave func()) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.wakes[&wake] = struct{}{}
	return func() {
		r.mu.Lock()
		defer r.mu.Unlock()
		delete(r.wakes, &wake)
	}
}

// now is the number of the next message that will be said.
func (r *room) now() int64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.first + int64(len(r.texts))
}

// from returns the messages from next on, none when there is none yet. next may
// lie ahead: a client comes with its number from the other process, which may have
// read further in the log.
func (r *room) from(next int64) ([]string, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	switch i := next - r.first; {
	case r.ended:
		return nil, errStopping
	case i < 0:
		return nil, errBehind
	case i >= int64(len(r.texts)):
		return nil, nil
	default:
		return r.texts[i:], nil // heard only appends, or makes a new slice
	}
}

// end sends all clients away, those to come as well.
func (r *room) end() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.ended = true
	for wake := range r.wakes {
		(*wake)()
	}
}
