package load

import (
	"fmt"
	"strings"
	"time"
)

// lineTalk is what a client of lines knows of its connection. The server numbers the lines it gets on a connection and
// sends each back behind its number: a line that was lost or doubled on the way there moves all numbers, one that was on
// the way back leaves a gap or comes again.
type lineTalk struct {
	said   uint64 // lines sent, on all connections
	before uint64 // of them, on earlier connections
	shift  int64  // between the server's numbers and the client's, by what was noticed already
	seq    sequence
}

func (t *lineTalk) open(*client) error {
	*t = lineTalk{said: t.said, before: t.said, seq: sequence{begun: true, next: t.said}}
	return nil
}

// talk sends a few lines, in pieces that end anywhere, and reads as many.
func (t *lineTalk) talk(c *client, began time.Time) error {
	sender := c.l.room + uint32(c.id)
	var text strings.Builder
	first, n := t.said, 1+c.rand.IntN(4)
	for range n {
		text.WriteString(composeMessage(sender, t.said) + "\n")
		t.said++
	}
	rested, err := c.writePieces([]byte(text.String()), 1+c.rand.IntN(3))
	if err != nil {
		return t.gone(c, first, fmt.Errorf("write lines: %w", err))
	}
	for t.seq.next < t.said {
		line, err := readLine(c.r, maxHead)
		if err != nil {
			return t.gone(c, t.seq.next, fmt.Errorf("read lines: %w", err))
		}
		if !t.judge(c, sender, line) {
			return nil
		}
	}
	c.l.rec.answered(c, answer{}, began, rested)
	return nil
}

// judge takes a line that came back. Nothing more can be said of the connection when it returns false.
func (t *lineTalk) judge(c *client, sender uint32, line string) bool {
	number, text, ok := numbered(line)
	who, n, intact, mine := parseMessage(text)
	if !ok || !mine || !intact || who != sender || n >= t.said {
		c.l.rec.wrong(c, fmt.Sprintf("line %.300q", line))
		c.close()
		return false
	}
	expected := t.seq.next
	c.l.rec.message(c, &t.seq, n)
	if n != expected {
		return true // said already
	}
	if shift := int64(number) - int64(n-t.before+1); shift != t.shift {
		// It is in order, but the server has counted something else before it.
		if shift > t.shift {
			c.l.rec.doubled(c, int(shift-t.shift), fmt.Sprintf("the server counts a line as %d: %.100q", number, line))
		} else {
			c.l.rec.lost(c, int(t.shift-shift), fmt.Sprintf("the server counts a line as %d: %.100q", number, line))
		}
		t.shift = shift
	}
	return true
}

// gone counts the lines that will not come back as lost.
func (t *lineTalk) gone(c *client, from uint64, err error) error {
	if isEnd(err) && t.said > from {
		c.l.rec.lost(c, int(t.said-from), fmt.Sprintf("%d lines sent and not answered", t.said-from))
	}
	return err
}
