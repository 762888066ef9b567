package load

import (
	"math/bits"
	"time"
)

// steps is the number of equal steps into which each power of two is divided: 1/32 is 3 %.
const steps = 32

// histogram counts durations with a bounded relative error and a fixed size, however long the load runs.
type histogram struct {
	counts [64 * steps]int
	total  int
	max    time.Duration
}

func (h *histogram) add(d time.Duration) {
	h.counts[slot(d)]++
	h.total++
	h.max = max(h.max, d)
}

// quantile returns a duration that the share q of those counted do not exceed; 0 when there are none.
func (h *histogram) quantile(q float64) time.Duration {
	rank := int(q * float64(h.total))
	for i, n := range h.counts {
		if rank < n {
			return min(upper(i), h.max)
		}
		rank -= n
	}
	return h.max
}

// slot returns the index of the counter for d. Below steps nanoseconds each has its own.
func slot(d time.Duration) int {
	n := uint64(max(d, 0))
	if n < steps {
		return int(n)
	}
	exp := bits.Len64(n) - bits.Len64(steps) // how far n exceeds the first power of two that is divided
	return (exp+1)*steps + int(n>>exp) - steps
}

// upper returns the largest duration of a slot.
func upper(i int) time.Duration {
	if i < steps {
		return time.Duration(i)
	}
	exp := i/steps - 1
	return time.Duration((uint64(i%steps)+steps+1)<<exp - 1)
}
