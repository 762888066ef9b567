package load

import (
	"math/rand/v2"
	"strconv"
	"strings"
)

// A message of a chat, and a line, is "C<sender> <n> <payload>": whoever reads it knows every byte that it must have.

// maxPayload is the length of the longest payload.
const maxPayload = 200

// compose is message n of a sender.
func composeMessage(sender uint32, n uint64) string {
	b := append(strconv.AppendUint([]byte("C"), uint64(sender), 10), ' ')
	b = append(strconv.AppendUint(b, n, 10), ' ')
	r := rand.New(rand.NewPCG(uint64(sender), n))
	for range 1 + r.IntN(maxPayload) {
		b = append(b, '!'+byte(r.IntN('~'-'!'+1)))
	}
	return string(b)
}

// parseMessage tells whose message a text is, if it is one of a load's clients. intact says that it has all its bytes.
func parseMessage(text string) (sender uint32, n uint64, intact, ok bool) {
	rest, ok := strings.CutPrefix(text, "C")
	id, rest, ok1 := strings.Cut(rest, " ")
	number, _, ok2 := strings.Cut(rest, " ")
	s, err1 := strconv.ParseUint(id, 10, 32)
	n, err2 := strconv.ParseUint(number, 10, 64)
	if !ok || !ok1 || !ok2 || err1 != nil || err2 != nil {
		return 0, 0, false, false
	}
	return uint32(s), n, composeMessage(uint32(s), n) == text, true
}

// numbered splits "<number> <text>".
func numbered(line string) (n uint64, text string, ok bool) {
	number, text, _ := strings.Cut(line, " ")
	n, err := strconv.ParseUint(number, 10, 64)
	return n, text, err == nil
}
