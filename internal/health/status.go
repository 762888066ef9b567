package health

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// statusSet are the status codes that are a success: ranges, in order, that do not touch each other.
type statusSet [][2]int

// parseStatus reads 200, 2xx, 200-204, or several with commas between.
func parseStatus(text string) (statusSet, error) {
	var set statusSet
	for one := range strings.SplitSeq(text, ",") {
		r, err := parseRange(one)
		if err != nil {
			return nil, err
		}
		set = append(set, r)
	}
	slices.SortFunc(set, func(a, b [2]int) int { return a[0] - b[0] })
	merged := set[:1]
	for _, r := range set[1:] {
		if last := &merged[len(merged)-1]; r[0] <= last[1]+1 {
			last[1] = max(last[1], r[1])
		} else {
			merged = append(merged, r)
		}
	}
	return merged, nil
}

func parseRange(text string) ([2]int, error) {
	from, to, isRange := strings.Cut(text, "-")
	if class, found := strings.CutSuffix(text, "xx"); found && len(class) == 1 {
		from, to, isRange = class+"00", class+"99", true
	}
	if !isRange {
		to = from
	}
	first, err := parseCode(from)
	last, lastErr := parseCode(to)
	if err != nil || lastErr != nil || first > last {
		return [2]int{}, fmt.Errorf("%q is no status: write 200, 2xx, 200-204, or several with commas between", text)
	}
	return [2]int{first, last}, nil
}

func parseCode(text string) (int, error) {
	n, err := strconv.Atoi(text)
	if err != nil || len(text) != 3 || n < 200 || n > 599 {
		return 0, strconv.ErrRange
	}
	return n, nil
}

func (s statusSet) has(code int) bool {
	return slices.ContainsFunc(s, func(r [2]int) bool { return r[0] <= code && code <= r[1] })
}

func (s statusSet) String() string {
	var parts []string
	for _, r := range s {
		switch {
		case r[0] == r[1]:
			parts = append(parts, strconv.Itoa(r[0]))
		case r[0]%100 == 0 && r[1] == r[0]+99:
			parts = append(parts, strconv.Itoa(r[0]/100)+"xx")
		default:
			parts = append(parts, fmt.Sprintf("%d-%d", r[0], r[1]))
		}
	}
	return strings.Join(parts, ",")
}
