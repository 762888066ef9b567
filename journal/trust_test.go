package journal

import (
	"reflect"
	"slices"
	"testing"
)

// entry makes one from NAME, value pairs.
func entry(pairs ...string) Entry {
	var e Entry
	for i := 0; i < len(pairs); i += 2 {
		e.Fields = append(e.Fields, Field{pairs[i], pairs[i+1]})
	}
	return e
}

// with returns e with a field replaced, or with "" removed.
func (e Entry) with(name, value string) Entry {
	e.Fields = slices.DeleteFunc(slices.Clone(e.Fields), func(f Field) bool { return f.Name == name })
	if value != "" {
		e.Fields = append(e.Fields, Field{name, value})
	}
	return e
}

// twice returns e with another value for a field beside the first.
func (e Entry) twice(name, value string) Entry {
	e.Fields = append(slices.Clone(e.Fields), Field{name, value})
	return e
}

func event(k Kind, pairs ...string) Entry {
	e := entry("_TRANSPORT", "journal", "_PID", "10", "_UID", "990", "_SYSTEMD_UNIT", "web.service",
		"MESSAGE", "text", "PRIORITY", "6", "MESSAGE_ID", k.ID(), "SYSLOG_IDENTIFIER", "zdt", FieldEvent, string(k),
		FieldService, "web", FieldPID, "10", FieldPeerPID, "11")
	for i := 0; i < len(pairs); i += 2 {
		e = e.with(pairs[i], pairs[i+1])
	}
	return e
}

func TestTrusted(t *testing.T) {
	web := Source{Unit: "web.service"}
	user := Source{Unit: "web.service", User: true, UID: 1000}
	userEvent := func(k Kind, pairs ...string) Entry {
		return event(k, append([]string{"_UID", "1000", "_SYSTEMD_UNIT", "user@1000.service", "_SYSTEMD_USER_UNIT", "web.service"}, pairs...)...)
	}
	operator := func(pairs ...string) Entry {
		return event(UpgradeEnd, append([]string{"_SYSTEMD_UNIT", "session-1.scope", "_UID", "0"}, pairs...)...)
	}
	for _, tt := range []struct {
		name   string
		entry  Entry
		source Source
		want   bool
	}{
		{"fork by the incumbent", event(Fork), web, true},
		{"fork by the helper", event(Fork, "_PID", "9"), Source{Unit: "web.service", Helper: 9}, true},
		{"fork by another than the helper", event(Fork, "_PID", "8"), Source{Unit: "web.service", Helper: 9}, false},
		{"fork by the helper of another unit", event(Fork, "_PID", "9", "_SYSTEMD_UNIT", "evil.service"), Source{Unit: "web.service", Helper: 9}, false},
		{"exit told by the helper", event(Exit, "_PID", "9"), Source{Unit: "web.service", Helper: 9}, true},
		{"an operator's event by the helper", event(UpgradeEnd, "_PID", "9", "_UID", "0"), Source{Unit: "web.service", Helper: 9}, false},
		{"fork without unit", event(Fork, "_SYSTEMD_UNIT", ""), web, false},
		{"fork from another unit", event(Fork, "_SYSTEMD_UNIT", "evil.service"), web, false},
		{"fork with two units", event(Fork).twice("_SYSTEMD_UNIT", "evil.service"), web, false},
		{"fork as another pid", event(Fork, FieldPID, "12"), web, false},
		{"fork by the candidate", event(Fork, "_PID", "11"), web, false},
		{"fork with two pids", event(Fork).twice(FieldPID, "12"), web, false},
		{"fork with two txids", event(Fork, FieldTxID, "a").twice(FieldTxID, "b"), web, false},
		{"fork without pid", event(Fork, FieldPID, ""), web, false},
		{"fork without sender", event(Fork, "_PID", "", FieldPID, ""), web, false},
		{"fork with the ID of exit", event(Fork, "MESSAGE_ID", Exit.ID()), web, false},
		{"fork with two IDs", event(Fork).twice("MESSAGE_ID", Exit.ID()), web, false},
		{"fork without ID", event(Fork, "MESSAGE_ID", ""), web, false},
		{"fork with an unknown ID", event(Fork, "MESSAGE_ID", "98e322203f7a4ed290d09fe03c09fe15"), web, false},
		{"fork's ID without event", event(Fork, FieldEvent, ""), web, false},
		{"fork by syslog", event(Fork, "_TRANSPORT", "syslog"), web, false},
		{"a claim of the unit", event(Fork, "_SYSTEMD_UNIT", "").twice("SYSTEMD_UNIT", "web.service").twice("UNIT", "web.service"), web, false},
		{"drain by another", event(Drain, "_PID", "11"), web, false},
		{"abort by another", event(Abort, "_PID", "11"), web, false},
		{"listen by the candidate", event(Listen), web, true},
		{"listen by the incumbent", event(Listen, "_PID", "11"), web, true},
		{"listen by a third", event(Listen, "_PID", "12"), web, false},
		{"exit by itself", event(Exit), web, true},
		{"exit by its peer", event(Exit, "_PID", "11"), web, true},
		{"exit by a third", event(Exit, "_PID", "12"), web, false},
		{"no unit asked for", event(Fork, "_SYSTEMD_UNIT", ""), Source{}, false},

		{"operator", operator(), web, true},
		{"operator without unit", operator("_SYSTEMD_UNIT", ""), web, true},
		{"operator, not root", operator("_UID", "1000"), web, false},
		{"operator from within the unit", operator("_SYSTEMD_UNIT", "web.service"), web, false},
		{"operator about another service", operator(FieldService, "db"), web, false},
		{"operator as another pid", operator("_PID", "12"), web, false},

		{"line of the unit", entry("_SYSTEMD_UNIT", "web.service", "MESSAGE", "x"), web, true},
		{"line of another", entry("_SYSTEMD_UNIT", "db.service", "MESSAGE", "x"), web, false},
		{"systemd about the unit", entry("_PID", "1", "_SYSTEMD_UNIT", "init.scope", "UNIT", "web.service"), web, true},
		{"somebody about the unit", entry("_PID", "2", "_SYSTEMD_UNIT", "x.service", "UNIT", "web.service"), web, false},
		{"line with another program's ID", entry("_SYSTEMD_UNIT", "web.service", "MESSAGE_ID", "00000000000000000000000000000001"), web, true},

		{"user: fork", userEvent(Fork), user, true},
		{"user: fork by another user's unit", userEvent(Fork, "_UID", "1001"), user, false},
		{"user: a system unit of that name", event(Fork), user, false},
		{"user: operator", userEvent(UpgradeEnd, "_SYSTEMD_USER_UNIT", "app.scope"), user, true},
		{"user: operator from within the unit", userEvent(UpgradeEnd), user, false},
		{"user: another user as operator", userEvent(UpgradeEnd, "_SYSTEMD_USER_UNIT", "app.scope", "_UID", "1001"), user, false},
		{"user: its manager about the unit", entry("_UID", "1000", "_SYSTEMD_USER_UNIT", "init.scope", "USER_UNIT", "web.service"), user, true},
		{"user: somebody about the unit", entry("_UID", "1000", "_SYSTEMD_USER_UNIT", "x.service", "USER_UNIT", "web.service"), user, false},
		{"system: a user unit of that name", userEvent(Fork), web, false},
	} {
		if got := Trusted(tt.entry, tt.source); got != tt.want {
			t.Errorf("%s: %v, want %v", tt.name, got, tt.want)
		}
	}
}

func TestDecode(t *testing.T) {
	web := Source{Unit: "web.service"}
	e := event(Exit, FieldGeneration, "3", FieldTxID, "tx\x1b[2J", FieldExitCode, "exited", "MESSAGE", "a\x1b]0;x\ab")
	got, ok := Decode(e, web)
	want := Event{Kind: Exit, Message: `a\x1b]0;x\x07b`, Priority: PriInfo, TxID: `tx\x1b[2J`, Service: "web", Generation: 3, PID: 10, PeerPID: 11,
		Fields: []Field{{FieldExitCode, "exited"}}}
	if !ok || !reflect.DeepEqual(got, want) {
		t.Errorf("got  %+v, %v\nwant %+v", got, ok, want)
	}
	// The unit counts, not what the service calls itself.
	if got, ok := Decode(event(Fork, FieldService, "db"), web); !ok || got.Service != "web" {
		t.Errorf("service %q, %v", got.Service, ok)
	}
	if _, ok := Decode(entry("_SYSTEMD_UNIT", "web.service", "MESSAGE", "fork"), web); ok {
		t.Error("a log line was decoded")
	}
	if _, ok := Decode(event(Fork, "_SYSTEMD_UNIT", "evil.service"), web); ok {
		t.Error("a forged event was decoded")
	}
}

// What is written comes back, given journald's own fields.
func TestEncodeDecode(t *testing.T) {
	for _, k := range Kinds() {
		want := Event{Kind: k, Message: "m", Priority: PriErr, TxID: "tx", Service: "web", Generation: 9, PID: 10, PeerPID: 11}
		for _, name := range k.Fields() {
			want.Fields = append(want.Fields, Str(name, "v of "+name))
		}
		data, err := want.encode(0)
		if err != nil {
			t.Fatal(err)
		}
		e := decodeNative(t, data).with("_TRANSPORT", "journal").with("_PID", "10").with("_UID", "0")
		if !k.Operator() {
			e = e.with("_SYSTEMD_UNIT", "web.service")
		}
		if got, ok := Decode(e, Source{Unit: "web.service"}); !ok || !reflect.DeepEqual(got, want) {
			t.Errorf("got  %+v, %v\nwant %+v", got, ok, want)
		}
	}
}
