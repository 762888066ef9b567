package handoff

// record keeps what a connection's reader was given and has not made a whole
// request or message of: the bytes that have to travel along when the
// connection moves. The goroutine that reads the connection owns it.
//
// For HTTP/1 the boundaries come from net/http's states. After a response it
// sets the deadline for idle connections and waits until it holds four bytes of
// the next request. If it reads for that, it offers the free part of its buffer, so
// the length of the slice tells how many bytes it holds already: up to three, and they
// are the last ones it was given. If it holds four or more (a client that does
// not wait for its responses) it sets the next deadline and goes on to parse,
// and what it holds cannot be told from the first slice it offers then.
// TestServerReads and probeServer check all that against the net/http in use.
type record struct {
	kept    bool // bytes are being kept
	lost    bool // what the reader holds cannot be told: no move before the next boundary
	again   bool // lost, and what came since the last boundary is kept for the next
	fresh   bool // the next slice offered tells what the reader holds
	http2   bool // the client speaks HTTP/2 with prior knowledge: no move at all
	pending []byte
	tail    [maxHeld]byte // the last bytes given, while they are not kept
	tailLen int
}

const (
	// serverBuffer is the size of net/http's buffer for reading. Should a
	// version of Go change it, no slice fits any more and connections are
	// closed politely instead of moved; a test tells.
	serverBuffer = 4096
	// maxHeld is what net/http may hold of the next request while it waits: its Peek(4) did not return.
	maxHeld = 3
	// maxPending bounds what is kept of one request head or message. Larger ones stay until they are complete.
	maxPending = 1 << 20
	// smallPending is the buffer a connection keeps between two requests.
	smallPending = 4 << 10
)

// begin starts a record whose reader holds nothing.
func (r *record) begin() { *r = record{kept: true, pending: r.pending[:0]} }

// boundary: the reader has processed everything but the last held bytes.
func (r *record) boundary(held int) {
	if held < 0 || held > len(r.pending) {
		// From here on all is kept again: the boundary after the next tells.
		r.lost, r.again, r.pending = true, true, r.pending[:0]
		return
	}
	r.lost, r.again = false, false
	n := copy(r.pending, r.pending[len(r.pending)-held:])
	r.pending = r.pending[:n]
	r.shrink()
}

// request: net/http has read a whole request head, perhaps without asking for
// more than it held. What follows until its response is out is not kept, but for
// the last bytes. Or it has read the preface of HTTP/2, and looks for more from
// another goroutine from now on.
func (r *record) request() {
	if r.prefaced() {
		return
	}
	r.fresh = false
	if r.kept && !r.lost {
		r.tailLen = 0
		r.note(r.pending)
	}
	r.kept = false
	r.pending = r.pending[:0]
	r.shrink()
}

// response: net/http has answered and waits for the next request.
func (r *record) response() {
	if !r.http2 {
		r.fresh = true
	}
}

func (r *record) shrink() {
	if cap(r.pending) > smallPending && len(r.pending) == 0 {
		r.pending = nil
	}
}

// offered: the reader asks for up to n bytes. waiting tells that it has set one
// deadline since the response, that for idle connections.
func (r *record) offered(n int, waiting bool) {
	r.fresh = false
	held := serverBuffer - n
	r.kept = true
	r.pending = r.pending[:0]
	if r.lost = !waiting || held < 0 || held > r.tailLen; !r.lost {
		r.pending = append(r.pending, r.tail[r.tailLen-held:r.tailLen]...)
	}
}

// gave: the reader was given b.
func (r *record) gave(b []byte) {
	switch {
	case !r.kept, r.lost && !r.again:
		r.note(b)
	case r.http2:
	case len(r.pending)+len(b) > maxPending:
		r.note(r.pending)
		r.note(b)
		r.lost, r.again, r.pending = true, false, nil
	default:
		r.pending = append(r.pending, b...)
	}
}

// note keeps the last bytes of b and of what came before it.
func (r *record) note(b []byte) {
	if len(b) >= maxHeld {
		r.tailLen = copy(r.tail[:], b[len(b)-maxHeld:])
		return
	}
	keep := min(r.tailLen, maxHeld-len(b))
	copy(r.tail[:], r.tail[r.tailLen-keep:r.tailLen])
	r.tailLen = keep + copy(r.tail[keep:], b)
}

// prefaced looks for the preface of an HTTP/2 client (RFC 9113, section 3.4),
// which net/http takes without telling when the server allows it. No HTTP/1
// method is called PRI.
func (r *record) prefaced() bool {
	if !r.http2 && r.kept && len(r.pending) >= 3 && string(r.pending[:3]) == "PRI" {
		r.http2, r.pending = true, nil
	}
	return r.http2
}

// known reports whether pending is all that the reader holds.
func (r *record) known() bool { return r.kept && !r.lost && !r.fresh && !r.prefaced() }
