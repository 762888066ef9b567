package helper

import (
	"bytes"
	"errors"
	"fmt"
	"strings"
)

// variable is one assignment of a notice.
type variable struct{ Key, Value string }

func (v variable) String() string { return v.Key + "=" + v.Value }

// notice is one datagram of the app's sd_notify(3), with what the kernel says
// about its sender.
type notice struct {
	PID  int        // of the sender, as seen from here
	UID  uint32     // likewise
	Vars []variable // in the order of the datagram; repeated and unknown ones too
	FDs  []int      // open, close-on-exec; they belong to whoever received the notice
}

// noticeLimit is the longest datagram, in bytes. It is systemd's limit
// (PIPE_BUF): what is longer would not be heard there either.
const noticeLimit = 4096

var (
	errNoticeLong  = fmt.Errorf("longer than %d bytes", noticeLimit)
	errNoticeNUL   = errors.New("has a NUL byte in it")
	errNoticeEmpty = errors.New("has no assignment in it")
)

// parseNotice takes a datagram apart as systemd does: lines end with \n or \r, one
// NUL may end the datagram, values are bytes and nothing is quoted. A line that is no
// assignment is passed over, as an empty one is. The error says why nothing of the
// datagram counts.
func parseNotice(b []byte) ([]variable, error) {
	if len(b) > noticeLimit {
		return nil, errNoticeLong
	}
	b = bytes.TrimSuffix(b, []byte{0})
	if bytes.IndexByte(b, 0) >= 0 {
		return nil, errNoticeNUL
	}
	var vars []variable
	for line := range strings.FieldsFuncSeq(string(b), func(r rune) bool { return r == '\n' || r == '\r' }) {
		key, value, found := strings.Cut(line, "=")
		if !found || key == "" {
			continue
		}
		vars = append(vars, variable{key, value})
	}
	if len(vars) == 0 {
		return nil, errNoticeEmpty
	}
	return vars, nil
}

// first is the value of the first assignment to key. systemd too takes the
// first where a key comes twice.
func (n notice) first(key string) (value string, found bool) {
	for _, v := range n.Vars {
		if v.Key == key {
			return v.Value, true
		}
	}
	return "", false
}

// says reports whether the assignment is in the notice, exactly so: READY=yes is
// not READY=1.
func (n notice) says(key, value string) bool {
	for _, v := range n.Vars {
		if v.Key == key && v.Value == value {
			return true
		}
	}
	return false
}
