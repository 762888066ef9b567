package helper

import (
	"errors"
	"slices"
	"strings"
	"testing"
	"unicode/utf8"
)

func TestParseNotice(t *testing.T) {
	long := "STATUS=" + strings.Repeat("x", noticeLimit-len("STATUS="))
	for _, tt := range []struct {
		what, data string
		want       []variable
		err        error
	}{
		{"one", "READY=1", []variable{{"READY", "1"}}, nil},
		{"several", "READY=1\nSTATUS=up\nMAINPID=7", []variable{{"READY", "1"}, {"STATUS", "up"}, {"MAINPID", "7"}}, nil},
		{"line ends of all kinds", "\nREADY=1\r\n\r\nSTATUS=up\n\n", []variable{{"READY", "1"}, {"STATUS", "up"}}, nil},
		{"a carriage return ends a line", "STATUS=5%\rREADY=1", []variable{{"STATUS", "5%"}, {"READY", "1"}}, nil},
		{"the value has the equals signs", "STATUS=a=b=c", []variable{{"STATUS", "a=b=c"}}, nil},
		{"empty value", "STATUS=", []variable{{"STATUS", ""}}, nil},
		{"twice", "STATUS=a\nSTATUS=b", []variable{{"STATUS", "a"}, {"STATUS", "b"}}, nil},
		{"unknown", "X_SYSTEMD_UNITS_ACTIVE=2\nFOO=", []variable{{"X_SYSTEMD_UNITS_ACTIVE", "2"}, {"FOO", ""}}, nil},
		{"space is not taken off", " READY = 1 ", []variable{{" READY ", " 1 "}}, nil},
		{"no assignment", "hello\n=1\nREADY=1", []variable{{"READY", "1"}}, nil},
		{"not UTF-8", "STATUS=\xff\xfe", []variable{{"STATUS", "\xff\xfe"}}, nil},
		{"NUL at the end", "READY=1\x00", []variable{{"READY", "1"}}, nil},
		{"NUL after the line end", "READY=1\n\x00", []variable{{"READY", "1"}}, nil},
		{"NUL inside", "READY=1\x00STATUS=up", nil, errNoticeNUL},
		{"two NULs", "READY=1\x00\x00", nil, errNoticeNUL},
		{"nothing", "", nil, errNoticeEmpty},
		{"only NUL", "\x00", nil, errNoticeEmpty},
		{"only noise", "hello\n\n=\n", nil, errNoticeEmpty},
		{"as long as can be", long, []variable{{"STATUS", long[len("STATUS="):]}}, nil},
		{"longer", long + "x", nil, errNoticeLong},
	} {
		got, err := parseNotice([]byte(tt.data))
		if !errors.Is(err, tt.err) || !slices.Equal(got, tt.want) {
			t.Errorf("%s: parseNotice(%q) = %q, %v; want %q, %v", tt.what, tt.data, got, err, tt.want, tt.err)
		}
	}
}

func TestNoticeLooksUp(t *testing.T) {
	n := notice{Vars: []variable{{"STATUS", "a"}, {"READY", "yes"}, {"STATUS", "b"}, {"READY", "1"}}}
	if v, found := n.first("STATUS"); v != "a" || !found {
		t.Errorf("first STATUS: %q, %v", v, found)
	}
	if _, found := n.first("STAT"); found {
		t.Error("found half a key")
	}
	if !n.says("READY", "1") || n.says("READY", "") || n.says("WATCHDOG", "1") {
		t.Error("says what it does not say, or the other way round")
	}
}

func FuzzParseNotice(f *testing.F) {
	for _, seed := range []string{"", "READY=1", "READY=1\nSTATUS=up\r\nX=\x00", "=\n==\nA==", "A=\xff\n\xff=A", strings.Repeat("A=\n", 2000)} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		vars, err := parseNotice(data)
		if (err == nil) != (len(vars) > 0) {
			t.Fatalf("%d variables and %v", len(vars), err)
		}
		var lines []string
		for _, v := range vars {
			if v.Key == "" || strings.Contains(v.Key, "=") || strings.ContainsAny(v.String(), "\n\r\x00") {
				t.Fatalf("not an assignment: %q", v)
			}
			if !strings.Contains(string(data), v.String()) {
				t.Fatalf("not in the datagram: %q", v)
			}
			lines = append(lines, v.String())
		}
		if err != nil {
			return
		}
		// What was read, written again, reads the same.
		again, err := parseNotice([]byte(strings.Join(lines, "\n")))
		if err != nil || !slices.Equal(vars, again) {
			t.Fatalf("%q reads as %q, %v", lines, again, err)
		}
		// And whatever it is, a decision about it keeps the rules.
		for r := roleStarting; r <= roleDraining; r++ {
			n := notice{Vars: vars, FDs: []int{3, 4}}
			d := relay(n, standing{Role: r, Stopping: len(data)%2 == 1})
			checkDecision(t, n, d)
			if !utf8.ValidString(d.Status) || len(d.Status) > statusLimit || len(d.Trouble) > statusLimit {
				t.Fatalf("text of the app: %q, %q", d.Status, d.Trouble)
			}
		}
	})
}
