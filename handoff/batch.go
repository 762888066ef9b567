package handoff

import (
	"encoding/json"
	"fmt"
	"time"

	"github.com/zdt-dev/zdt/handoff/internal/sockview"
	"github.com/zdt-dev/zdt/internal/wire"
)

// cargo is the record of one connection in a batch, beside its descriptor.
type cargo struct {
	// Protocol is what the receiver has to speak: "http/1", or a name given to Track.
	Protocol string `json:"protocol"`
	// Socket is the name of the listening socket it came in through.
	Socket string `json:"socket,omitempty"`
	// Pending are bytes the sender has read and not processed (base64). The
	// receiver reads them before what comes from the socket.
	Pending []byte `json:"pending,omitempty"`
	// IdleLeft is how long an idle connection may go on to be idle
	// (milliseconds); absent or 0: for ever.
	IdleLeft int64 `json:"idle_left_ms,omitempty"`
	// Session is what a Codec's Session returned.
	Session json.RawMessage `json:"session,omitempty"`
	// View is what the kernel said of the connection before the move (Options.VerifyMoves).
	View *sockview.View `json:"view,omitempty"`
}

func (c *cargo) setDeadline(t time.Time) {
	if !t.IsZero() {
		c.IdleLeft = max(1, time.Until(t).Milliseconds())
	}
}

func (c *cargo) deadline() time.Time {
	if c.IdleLeft <= 0 {
		return time.Time{}
	}
	return time.Now().Add(time.Duration(c.IdleLeft) * time.Millisecond)
}

// weight is about how many bytes of a manifest the record takes.
func (c *cargo) weight() int { return 512 + len(c.Pending)/3*4 + len(c.Session) + len(c.Socket) }

// rests reports whether nobody needs the connection before its client speaks again.
func (c *cargo) rests() bool { return c.Protocol == protocolHTTP1 && len(c.Pending) == 0 }

// manifest is the content of a batch's first descriptor.
type manifest struct {
	Connections []cargo `json:"connections"`
}

const (
	// maxBatch is what fits beside the manifest.
	maxBatch = wire.MaxFiles - 1
	// maxManifest bounds what a receiver reads. A sender keeps connections whose records do not fit.
	maxManifest = 16 << 20
	// fullManifest is where a sender begins the next batch: clients that have each sent
	// half a request head of a megabyte shall not make it encode them all at once.
	fullManifest = 2 << 20
)

// unfitError: something about one connection alone keeps it from travelling.
type unfitError struct{ reason error }

func (e *unfitError) Error() string { return e.reason.Error() }
func (e *unfitError) Unwrap() error { return e.reason }

// maxReasons bounds the reasons in an answer, so that it fits into a packet also when each
// byte takes six in JSON.
const maxReasons = 8 << 10

// shorten leaves out reasons that are too much for one answer: the sender
// has to hear what became of each connection, and hears why of the first.
func shorten(m *wire.Message) {
	size := 0
	for i := range m.Refused {
		r := &m.Refused[i]
		if left := maxReasons - size; len(r.Reason) > left {
			r.Reason = r.Reason[:left]
		}
		size += len(r.Reason)
	}
}

// decodeManifest parses the records of a batch of count connections.
func decodeManifest(data []byte, count int) ([]cargo, error) {
	var m manifest
	if err := json.Unmarshal(data, &m); err != nil {
		return nil, fmt.Errorf("%w: manifest: %w", wire.ErrPacket, err)
	}
	if len(m.Connections) != count {
		return nil, fmt.Errorf("%w: manifest of %d connections, %d announced", wire.ErrPacket, len(m.Connections), count)
	}
	for i, c := range m.Connections {
		if c.Protocol == "" {
			return nil, fmt.Errorf("%w: connection %d has no protocol", wire.ErrPacket, i)
		}
	}
	return m.Connections, nil
}
