package helper

import "time"

const (
	// lossLimit losses within lossWindow, or of workers in a row that never were READY, are the end of
	// the service: what is wrong then is not one worker.
	lossLimit  = 5
	lossWindow = time.Minute

	lossPause    = 100 * time.Millisecond // before the first of them is started again; doubles
	lossPauseMax = 10 * time.Second
)

// losses are the recent ends of workers that had not served for lossWindow. One that has is an
// accident, and its place is filled at once.
type losses struct {
	at       []time.Time // the last lossLimit of them
	inVain   int         // how many in a row were never READY
	accident bool        // the last one was none of these
}

// add counts a worker that was READY at readyAt (zero: never) and has ended now. It reports
// whether that is one too many.
func (l *losses) add(readyAt, now time.Time) (tooMany bool) {
	l.accident = !readyAt.IsZero() && now.Sub(readyAt) >= lossWindow
	if l.accident {
		l.inVain = 0
		return false
	}
	l.inVain++
	if !readyAt.IsZero() {
		l.inVain = 0
	}
	recent := l.at[:0]
	for _, t := range append(l.at, now) {
		if now.Sub(t) < lossWindow {
			recent = append(recent, t)
		}
	}
	l.at = recent
	return len(l.at) >= lossLimit || l.inVain >= lossLimit
}

// pause is how long to wait before a worker is started again.
func (l *losses) pause() time.Duration {
	n := max(len(l.at), l.inVain)
	if n == 0 || l.accident {
		return 0
	}
	return min(lossPause<<min(n-1, 20), lossPauseMax)
}
