package journal

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"
)

// Of a long time the beginning and the end are kept, and what is missing in between is counted; of a long message the beginning.
func TestBetween(t *testing.T) {
	var all []string
	for i := range 20 {
		all = append(all, exported(fmt.Sprint("c", i), fmt.Sprint(i)))
	}
	long := exported("c", strings.Repeat("x", 3*mostValue))
	messages := func(x Excerpt) string {
		var got []string
		for _, e := range slices.Concat(x.Head, x.Tail) {
			got = append(got, e.Get("MESSAGE"))
		}
		return strings.Join(got, " ")
	}
	s := newScript(t, "", strings.Join(all, ""), "", strings.Join(all[:4], ""), "", long, "", thenFail("Permission denied"))
	from, to := time.Unix(100, 5000), time.Unix(200, 0)
	x, err := Between(t.Context(), s.Query, from, to, 2, 3)
	if err != nil || messages(x) != "0 1 17 18 19" || x.Left != 15 || x.More {
		t.Errorf("got %q, %d left out, %v", messages(x), x.Left, err)
	}
	if args := s.args(t, 2); !slices.Contains(args, "--since=@100.000005") || !slices.Contains(args, "--until=@200.000000") || !slices.Contains(args, "_SYSTEMD_UNIT=web.service") {
		t.Errorf("asked with %q", args)
	}
	x, err = Between(t.Context(), s.Query, time.Time{}, time.Time{}, 2, 3)
	if err != nil || messages(x) != "0 1 2 3" || x.Left != 0 {
		t.Errorf("got %q, %d left out, %v", messages(x), x.Left, err)
	}
	if args := s.args(t, 4); !slices.Contains(args, "--lines=5") {
		t.Errorf("asked with %q", args)
	}
	if x, err = Between(t.Context(), s.Query, from, to, 2, 3); err != nil || len(messages(x)) > mostValue || len(x.Head) != 1 || !x.Head[0].Cut {
		t.Errorf("of a long message %d bytes, %v", len(messages(x)), err)
	}
	if _, err = Between(t.Context(), s.Query, from, to, 2, 3); err == nil {
		t.Error("no error of journalctl")
	}
}
