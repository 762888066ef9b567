package load

// sequence judges numbers that should come one after the other, without a gap and none twice. The first one it is given
// says where they begin, unless begun is set.
type sequence struct {
	begun   bool
	next    uint64
	missing map[uint64]struct{}
}

// maxMissing bounds what is remembered of a gap: of what is gone beyond it, what comes late counts as doubled.
const maxMissing = 1 << 16

// take returns what the number n adds to each count. A number that comes late takes back the loss it was counted as.
func (s *sequence) take(n uint64) (lost, doubled, reordered int) {
	switch {
	case !s.begun || n == s.next:
		s.begun, s.next = true, n+1
	case n > s.next:
		gap := min(n-s.next, maxMissing)
		for i := n - gap; i < n && len(s.missing) < maxMissing; i++ {
			if s.missing == nil {
				s.missing = make(map[uint64]struct{})
			}
			s.missing[i] = struct{}{}
		}
		s.next = n + 1
		return int(gap), 0, 0
	default:
		if _, late := s.missing[n]; late {
			delete(s.missing, n)
			return -1, 0, 1
		}
		return 0, 1, 0
	}
	return 0, 0, 0
}
