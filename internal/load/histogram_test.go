package load

import (
	"math"
	"math/rand/v2"
	"slices"
	"testing"
	"time"
)

func TestSlots(t *testing.T) {
	for _, d := range []time.Duration{0, 1, 31, 32, 33, 63, 64, 65, 1000, time.Millisecond, time.Second, time.Hour, math.MaxInt64} {
		i := slot(d)
		if i > 0 && upper(i-1) >= d {
			t.Errorf("%d is in slot %d, but slot %d ends at %d", d, i, i-1, upper(i-1))
		}
		if u := upper(i); u < d || float64(u-d) > float64(d)/steps {
			t.Errorf("%d is in slot %d, which ends at %d", d, i, u)
		}
	}
}

func TestQuantiles(t *testing.T) {
	rnd := rand.New(rand.NewPCG(1, 2))
	var h histogram
	if h.quantile(0.5) != 0 {
		t.Error("an empty histogram has a median")
	}
	var all []time.Duration
	for range 10_000 {
		d := time.Duration(math.Exp(rnd.Float64()*20)) * time.Nanosecond
		h.add(d)
		all = append(all, d)
	}
	slices.Sort(all)
	for _, q := range []float64{0, 0.5, 0.99, 0.999} {
		want := all[int(q*float64(len(all)))]
		if got := h.quantile(q); got < want || float64(got-want) > float64(want)/steps {
			t.Errorf("quantile %v is %v, want %v", q, got, want)
		}
	}
	if got, want := h.quantile(1), all[len(all)-1]; got != want {
		t.Errorf("maximum is %v, want %v", got, want)
	}
}
