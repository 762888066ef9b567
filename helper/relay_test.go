package helper

import (
	"math"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
)

// shown writes a decision as one line: what goes on now (now:), what later (later:), what the
// helper itself takes from it. Nothing: "-".
func (d decision) shown() string {
	var words []string
	for _, m := range []struct {
		name string
		message
	}{{"now", d.Now}, {"later", d.Later}} {
		if !m.empty() {
			words = append(words, m.name+":"+strings.Join(m.Assignments, ","))
		}
		if len(m.FDs) > 0 {
			words = append(words, m.name+"-fds:"+strconv.Itoa(len(m.FDs)))
		}
	}
	if d.Ready {
		words = append(words, "ready")
	}
	if d.HasStatus {
		words = append(words, "status:"+d.Status)
	}
	if d.Trouble != "" {
		words = append(words, "trouble:"+d.Trouble)
	}
	if d.Broken {
		words = append(words, "broken")
	}
	if d.Extend != 0 {
		words = append(words, "extend:"+d.Extend.String())
	}
	if d.Barrier >= 0 {
		words = append(words, "barrier")
	}
	if len(d.Close) > 0 {
		words = append(words, "closed:"+strconv.Itoa(len(d.Close)))
	}
	if len(words) == 0 {
		return "-"
	}
	return strings.Join(words, " ")
}

// One row per assignment, one column per role; then the same while the unit stops, where
// that makes a difference.
func TestRelay(t *testing.T) {
	const same = "same"
	var standings []standing
	for _, stopping := range []bool{false, true} {
		for r := roleStarting; r <= roleDraining; r++ {
			standings = append(standings, standing{r, stopping})
		}
	}
	for _, tt := range []struct {
		says                                   string // FDS is the descriptors with it
		starting, candidate, serving, draining string
		stopping                               [4]string // empty: the same
	}{
		{says: "READY=1", starting: "ready", candidate: "ready", serving: "-", draining: "-"},
		{says: "READY=0", starting: "-", candidate: same, serving: same, draining: same},
		{says: "READY=yes", starting: "-", candidate: same, serving: same, draining: same},
		{says: "STATUS=half way", starting: "status:half way", candidate: same, serving: same, draining: same},
		{says: "STATUS=", starting: "status:", candidate: same, serving: same, draining: same},
		{says: "STOPPING=1", starting: "-", candidate: same, serving: same, draining: same},
		{says: "RELOADING=1\nMONOTONIC_USEC=17", starting: "-", candidate: same, serving: same, draining: same},
		{says: "MAINPID=17", starting: "-", candidate: same, serving: same, draining: same},
		{says: "MAINPID=17\nMAINPIDFDID=18", starting: "-", candidate: same, serving: same, draining: same},
		{says: "MAINPIDFD=1\nFDS=1", starting: "closed:1", candidate: same, serving: same, draining: same},
		{says: "NOTIFYACCESS=all", starting: "-", candidate: same, serving: same, draining: same},
		{says: "EXIT_STATUS=3", starting: "-", candidate: same, serving: same, draining: same},
		{says: "X_ANYTHING=3\nINVENTED=1", starting: "-", candidate: same, serving: same, draining: same},
		{says: "ERRNO=2", starting: "now:ERRNO=2 trouble:ERRNO=2", candidate: "trouble:ERRNO=2", serving: "now:ERRNO=2 trouble:ERRNO=2", draining: "trouble:ERRNO=2"},
		{says: "BUSERROR=org.x", starting: "now:BUSERROR=org.x trouble:BUSERROR=org.x", candidate: "trouble:BUSERROR=org.x", serving: "now:BUSERROR=org.x trouble:BUSERROR=org.x", draining: "trouble:BUSERROR=org.x"},
		{says: "VARLINKERROR=x.y", starting: "now:VARLINKERROR=x.y trouble:VARLINKERROR=x.y", candidate: "trouble:VARLINKERROR=x.y", serving: "now:VARLINKERROR=x.y trouble:VARLINKERROR=x.y", draining: "trouble:VARLINKERROR=x.y"},
		{says: "WATCHDOG=1", starting: "-", candidate: "-", serving: "now:WATCHDOG=1", draining: "-"},
		{says: "WATCHDOG=trigger", starting: "now:WATCHDOG=trigger", candidate: "broken", serving: "now:WATCHDOG=trigger", draining: "broken"},
		{says: "WATCHDOG=maybe", starting: "-", candidate: same, serving: same, draining: same},
		{says: "WATCHDOG_USEC=20000000", starting: "now:WATCHDOG_USEC=20000000", candidate: "later:WATCHDOG_USEC=20000000", serving: "now:WATCHDOG_USEC=20000000", draining: "-"},
		{says: "WATCHDOG_USEC=-1", starting: "-", candidate: same, serving: same, draining: same},
		{says: "RESTART_RESET=1", starting: "now:RESTART_RESET=1", candidate: "later:RESTART_RESET=1", serving: "now:RESTART_RESET=1", draining: "-"},
		{
			says:     "EXTEND_TIMEOUT_USEC=5000000",
			starting: "now:EXTEND_TIMEOUT_USEC=5000000 extend:5s", candidate: "extend:5s", serving: "now:EXTEND_TIMEOUT_USEC=5000000", draining: "extend:5s",
			stopping: [4]string{"now:EXTEND_TIMEOUT_USEC=5000000 extend:5s", "now:EXTEND_TIMEOUT_USEC=5000000 extend:5s", "now:EXTEND_TIMEOUT_USEC=5000000 extend:5s", "now:EXTEND_TIMEOUT_USEC=5000000 extend:5s"},
		},
		{says: "EXTEND_TIMEOUT_USEC=soon", starting: "-", candidate: same, serving: same, draining: same},
		{says: "EXTEND_TIMEOUT_USEC=-5", starting: "-", candidate: same, serving: same, draining: same},
		{says: "FDSTORE=1\nFDNAME=db\nFDPOLL=0\nFDS=2", starting: "now:FDSTORE=1,FDPOLL=0,FDNAME=db now-fds:2", candidate: "later:FDSTORE=1,FDPOLL=0,FDNAME=db later-fds:2", serving: "now:FDSTORE=1,FDPOLL=0,FDNAME=db now-fds:2", draining: "closed:2"},
		{says: "FDSTORE=1\nFDS=1", starting: "now:FDSTORE=1 now-fds:1", candidate: "later:FDSTORE=1 later-fds:1", serving: "now:FDSTORE=1 now-fds:1", draining: "closed:1"},
		{says: "FDSTORE=1\nFDNAME=db", starting: "-", candidate: same, serving: same, draining: same},
		{says: "FDSTOREREMOVE=1\nFDNAME=db", starting: "now:FDSTOREREMOVE=1,FDNAME=db", candidate: "later:FDSTOREREMOVE=1,FDNAME=db", serving: "now:FDSTOREREMOVE=1,FDNAME=db", draining: "-"},
		{says: "FDSTOREREMOVE=1", starting: "-", candidate: same, serving: same, draining: same},
		{says: "FDNAME=db\nFDPOLL=0\nFDS=1", starting: "closed:1", candidate: same, serving: same, draining: same},
		{says: "BARRIER=1\nFDS=1", starting: "barrier", candidate: same, serving: same, draining: same},
		{says: "BARRIER=1", starting: "-", candidate: same, serving: same, draining: same},
		{says: "BARRIER=1\nFDS=2", starting: "closed:2", candidate: same, serving: same, draining: same},
		{says: "BARRIER=1\nREADY=1\nFDSTORE=1\nFDS=1", starting: "closed:1", candidate: same, serving: same, draining: same},
		{says: "READY=1\nFDS=3", starting: "ready closed:3", candidate: "ready closed:3", serving: "closed:3", draining: "closed:3"},
		{
			says:     "READY=1\nMAINPID=17\nSTATUS=Ready.\nFDSTORE=1\nFDS=1",
			starting: "now:FDSTORE=1 now-fds:1 ready status:Ready.", candidate: "later:FDSTORE=1 later-fds:1 ready status:Ready.", serving: "now:FDSTORE=1 now-fds:1 status:Ready.", draining: "status:Ready. closed:1",
		},
		{says: "STOPPING=1\nSTATUS=bye", starting: "status:bye", candidate: same, serving: same, draining: same},
		{says: "STATUS=a\nSTATUS=b\nWATCHDOG_USEC=1\nWATCHDOG_USEC=2", starting: "now:WATCHDOG_USEC=1 status:a", candidate: "later:WATCHDOG_USEC=1 status:a", serving: "now:WATCHDOG_USEC=1 status:a", draining: "status:a"},
	} {
		want := [4]string{tt.starting, tt.candidate, tt.serving, tt.draining}
		for i := range want {
			if want[i] == same {
				want[i] = want[i-1]
			}
		}
		for i, s := range standings {
			expected := want[i%4]
			if s.Stopping && tt.stopping[i%4] != "" {
				expected = tt.stopping[i%4]
			}
			n := noticeOf(t, tt.says)
			d := relay(n, s)
			if got := d.shown(); got != expected {
				t.Errorf("%q as %+v: %s; want %s", tt.says, s, got, expected)
			}
			checkDecision(t, n, d)
		}
	}
}

// noticeOf makes a notice of a datagram in which FDS=n stands for n descriptors.
func noticeOf(t *testing.T, says string) notice {
	t.Helper()
	vars, err := parseNotice([]byte(says))
	if err != nil {
		t.Fatal(err)
	}
	n := notice{PID: 17, Vars: vars}
	if text, found := n.first("FDS"); found {
		count, _ := strconv.Atoi(text)
		for fd := range count {
			n.FDs = append(n.FDs, 100+fd)
		}
		n.Vars = slices.DeleteFunc(n.Vars, func(v variable) bool { return v.Key == "FDS" })
	}
	return n
}

// checkDecision checks what holds for every decision.
func checkDecision(t *testing.T, n notice, d decision) {
	t.Helper()
	fds := slices.Concat(d.Now.FDs, d.Later.FDs, d.Close)
	if d.Barrier >= 0 {
		fds = append(fds, d.Barrier)
	}
	if slices.Sort(fds); !slices.Equal(fds, n.FDs) {
		t.Errorf("%q: descriptors %v end up as %v", n.Vars, n.FDs, fds)
	}
	allowed := []string{"ERRNO", "BUSERROR", "VARLINKERROR", "WATCHDOG", "WATCHDOG_USEC", "RESTART_RESET", "EXTEND_TIMEOUT_USEC", "FDSTORE", "FDSTOREREMOVE", "FDNAME", "FDPOLL"}
	for _, a := range slices.Concat(d.Now.Assignments, d.Later.Assignments) {
		key, value, _ := strings.Cut(a, "=")
		if !slices.Contains(allowed, key) || !slices.Contains(n.Vars, variable{key, value}) || strings.ContainsAny(a, "\n\r") {
			t.Errorf("%q: %q goes to systemd", n.Vars, a)
		}
	}
	if len(d.Ignored) > ignoredLimit {
		t.Errorf("%d ignored keys", len(d.Ignored))
	}
	if d.Extend < 0 || d.Extend > extendLimit {
		t.Errorf("%q: extends by %v", n.Vars, d.Extend)
	}
}

func TestExtensionIsBounded(t *testing.T) {
	for usec, want := range map[string]time.Duration{
		"0": 0, "1": time.Microsecond, "90000000": 90 * time.Second,
		"3600000001":                           time.Hour,
		strconv.FormatUint(math.MaxInt64, 10):  time.Hour,
		strconv.FormatUint(math.MaxUint64, 10): time.Hour,
	} {
		if got := relay(noticeOf(t, "EXTEND_TIMEOUT_USEC="+usec), standing{Role: roleCandidate}).Extend; got != want {
			t.Errorf("%s: %v, want %v", usec, got, want)
		}
	}
}

func TestIgnoredIsTold(t *testing.T) {
	d := relay(noticeOf(t, "READY=1\nSTOPPING=1\nSTOPPING=1\nFOO\x1b[31m=1\nWATCHDOG=1"), standing{Role: roleCandidate})
	if want := []string{"STOPPING", "FOO[31m", "WATCHDOG"}; !slices.Equal(d.Ignored, want) {
		t.Errorf("ignored %q, want %q", d.Ignored, want)
	}
	if d := relay(noticeOf(t, strings.Repeat("A=\n", 500)+strings.Repeat("B=\n", 500)), standing{Role: roleServing}); len(d.Ignored) != 2 {
		t.Errorf("ignored %q", d.Ignored)
	}
}

func TestCleanText(t *testing.T) {
	for in, want := range map[string]string{
		"":                          "",
		"plain":                     "plain",
		"  many \t\v spaces \n ":    "many spaces",
		"\x1b[31mred\x1b[0m\x07":    "[31mred[0m",
		"\u202eright to left\u200f": "right to left",
		"bad \xff\xfe bytes":        "bad � bytes",
		"C1 \u009b31m":              "C1 31m",
		"größer ✓":                  "größer ✓",
		strings.Repeat("x", 20):     strings.Repeat("x", 13) + "…",
		strings.Repeat("ü", 9):      strings.Repeat("ü", 6) + "…",
		strings.Repeat("\x00", 99):  "",
		"exactly 16 bytes":          "exactly 16 bytes",
	} {
		if got := cleanText(in, 16); got != want {
			t.Errorf("%q becomes %q, want %q", in, got, want)
		}
	}
}
