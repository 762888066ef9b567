package journal

import (
	"encoding/binary"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"
)

// Bounds of one encoded event. journald takes a larger message only as a
// sealed memfd; these bounds keep an event below the size that every AF_UNIX
// datagram socket takes (net.core.wmem_default is 208 KiB, and 64 KiB is safe
// with smaller settings too), so that the writer needs no second way.
const (
	maxEvent   = 60 << 10 // all of it
	maxMessage = 8 << 10  // MESSAGE
	maxValue   = 4 << 10  // any other value
	maxFields  = 256      // names in Event.Fields
	maxName    = 64       // journald ignores longer names
)

// encode renders e in journald's native protocol. lost, if not 0, is
// reported in ZDT_EVENTS_LOST.
func (e Event) encode(lost uint64) ([]byte, error) {
	if e.Kind.ID() == "" {
		return nil, fmt.Errorf("encode event: unknown kind %q", e.Kind)
	}
	if len(e.Fields) > maxFields {
		return nil, fmt.Errorf("encode event %s: %d fields, at most %d", e.Kind, len(e.Fields), maxFields)
	}
	pri := e.Priority
	if pri < PriErr || pri > PriDebug {
		pri = e.Kind.Priority()
	}
	var enc encoder
	enc.add("MESSAGE", e.Text(), maxMessage)
	enc.add("PRIORITY", strconv.Itoa(int(pri)), maxValue)
	enc.add("MESSAGE_ID", e.Kind.ID(), maxValue)
	enc.add("SYSLOG_IDENTIFIER", "zdt", maxValue)
	enc.add(FieldEvent, string(e.Kind), maxValue)
	enc.addNonEmpty(FieldTxID, e.TxID)
	enc.addNonEmpty(FieldService, e.Service)
	enc.addNonZero(FieldGeneration, e.Generation)
	enc.addNonZero(FieldPID, uint64(max(0, e.PID)))
	enc.addNonZero(FieldPeerPID, uint64(max(0, e.PeerPID)))
	enc.addNonZero(FieldEventsLost, lost)
	for _, f := range e.Fields {
		if err := checkName(f.Name); err != nil {
			return nil, fmt.Errorf("encode event %s: %w", e.Kind, err)
		}
		enc.add(f.Name, f.Value, maxValue)
	}
	if len(enc.cut) > 0 {
		enc.append(FieldCut, strings.Join(enc.cut, " "))
	}
	return enc.buf, nil
}

// checkName refuses what journald would drop without a word, and names that
// would contradict the members of Event.
func checkName(name string) error {
	if name == "" || len(name) > maxName || name[0] < 'A' || name[0] > 'Z' {
		return fmt.Errorf("field name %q: want 1 to %d of A-Z, 0-9, _, starting with a letter", name, maxName)
	}
	for i := 0; i < len(name); i++ {
		if c := name[i]; !(c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || c == '_') {
			return fmt.Errorf("field name %q: want 1 to %d of A-Z, 0-9, _, starting with a letter", name, maxName)
		}
	}
	if slices.Contains(reservedNames(), name) {
		return fmt.Errorf("field name %q: set by the event itself", name)
	}
	return nil
}

func reservedNames() []string {
	return []string{"MESSAGE", "PRIORITY", "MESSAGE_ID", "SYSLOG_IDENTIFIER", FieldEvent, FieldTxID, FieldService,
		FieldGeneration, FieldPID, FieldPeerPID, FieldEventsLost, FieldCut}
}

type encoder struct {
	buf []byte
	cut []string
}

// cutReserve keeps room for the ZDT_CUT field.
const cutReserve = 2 << 10

func (enc *encoder) add(name, value string, limit int) {
	const overhead = 16 // "=", or newline, length and newline
	room := maxEvent - cutReserve - len(enc.buf) - len(name) - overhead
	if limit = min(limit, room); len(value) > limit {
		if len(strings.Join(enc.cut, " "))+1+len(name) <= cutReserve-2*overhead {
			enc.cut = append(enc.cut, name)
		}
		if limit <= 0 {
			return
		}
		value = cutText(value, limit)
	}
	enc.append(name, value)
}

func (enc *encoder) addNonEmpty(name, value string) {
	if value != "" {
		enc.add(name, value, maxValue)
	}
}

func (enc *encoder) addNonZero(name string, n uint64) {
	if n != 0 {
		enc.add(name, strconv.FormatUint(n, 10), maxValue)
	}
}

// append writes one field: NAME=value in one line, or, when the value has a
// newline, the name, its length as 64 bit little endian, and the bytes.
// Everything else, NUL included, is legal in the one-line form.
func (enc *encoder) append(name, value string) {
	if strings.IndexByte(value, '\n') < 0 {
		enc.buf = append(enc.buf, name...)
		enc.buf = append(enc.buf, '=')
	} else {
		enc.buf = append(enc.buf, name...)
		enc.buf = append(enc.buf, '\n')
		enc.buf = binary.LittleEndian.AppendUint64(enc.buf, uint64(len(value)))
	}
	enc.buf = append(enc.buf, value...)
	enc.buf = append(enc.buf, '\n')
}

// cutText shortens s to at most n bytes without splitting a rune.
func cutText(s string, n int) string {
	if len(s) <= n {
		return s
	}
	for i := n; i > n-utf8.UTFMax && i > 0; i-- {
		if utf8.RuneStart(s[i]) {
			return s[:i]
		}
	}
	return s[:n]
}
