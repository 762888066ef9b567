package release

import (
	"bytes"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"
)

func TestHistory(t *testing.T) {
	t.Parallel()
	s := newStore(t)
	if h, err := s.History(); err != nil || len(h.Entries)+len(h.Damage) != 0 {
		t.Errorf("history = %+v, %v", h, err)
	}
	login := uint32(1000)
	want := []Entry{
		{TxID: testTxID(1), Kind: KindInit, To: rid("1"), Committed: true, Outcome: "upgraded"},
		{
			TxID: testTxID(2), Kind: KindUpgrade, From: rid("1"), To: rid("2"), Outcome: "rolled-back", ExitCode: 11,
			Started: time.Date(2026, 1, 2, 3, 4, 5, 6, time.UTC), Ended: time.Date(2026, 1, 2, 3, 4, 6, 0, time.UTC),
			Who: Who{UID: 0, User: "root", LoginUID: &login, SudoUser: "ann"}, Why: "line one\nline two \u2028",
			Conns: &Conns{Moved: 3, Drained: 2, Cut: 1}, Reason: "candidate-died",
		},
	}
	for i := range want {
		mustAppend(t, s, want[i])
		want[i].Schema = historySchema
	}
	h, err := s.History()
	if err != nil || len(h.Damage) > 0 {
		t.Fatalf("history: %+v, %v", h.Damage, err)
	}
	if !reflect.DeepEqual(h.Entries, want) {
		t.Errorf("history = %+v\nwant %+v", h.Entries, want)
	}
	if err := s.AppendHistory(Entry{}); err == nil {
		t.Error("an entry without a txid was accepted")
	}
	if err := s.AppendHistory(Entry{TxID: testTxID(3), Why: strings.Repeat("x", maxRecord)}); err == nil {
		t.Error("an entry without end was accepted")
	}
}

func TestHistoryTorn(t *testing.T) {
	t.Parallel()
	whole := `{"schema":1,"txid":"` + testTxID(1) + `","committed":true}`
	for _, tc := range []struct {
		name, content string
		entries       int
		damage        []Damage // Err is not compared
	}{
		{"torn", whole + "\n" + whole[:20], 1, []Damage{{Line: 2, Torn: true}}},
		{"only torn", whole[:20], 0, []Damage{{Line: 1, Torn: true}}},
		{"only the newline is missing", whole + "\n" + whole, 2, nil},
		{"in the middle", whole + "\n" + whole[:20] + "\n" + whole + "\n", 2, []Damage{{Line: 2}}},
		{"zeros of a lost block", whole + "\n" + strings.Repeat("\x00", 512), 1, []Damage{{Line: 2, Torn: true}}},
		{"foreign", "[]\n{}\nnull\n\n" + whole + "\n", 1, []Damage{{Line: 1}, {Line: 2}, {Line: 3}}},
		{"newer", `{"schema":7,"txid":"x","news":[1]}` + "\n", 1, nil},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s := newStore(t)
			writeFile(t, filepath.Join(s.dir, historyFile), tc.content, 0o644)
			check := func(entries int, damage []Damage) {
				t.Helper()
				h, err := s.History()
				if err != nil {
					t.Fatal(err)
				}
				if len(h.Entries) != entries || len(h.Damage) != len(damage) {
					t.Fatalf("history = %+v", h)
				}
				for i, d := range h.Damage {
					if d.Line != damage[i].Line || d.Torn != damage[i].Torn || !errors.Is(d.Err, ErrDamaged) {
						t.Errorf("damage = %+v, want %+v", d, damage[i])
					}
				}
			}
			check(tc.entries, tc.damage)
			// The next entry does not go down with a torn one, nor does it hide it.
			mustAppend(t, s, Entry{TxID: testTxID(9)})
			for i := range tc.damage {
				tc.damage[i].Torn = false
			}
			check(tc.entries+1, tc.damage)
		})
	}
}

func FuzzParseHistory(f *testing.F) {
	e, _ := json.Marshal(Entry{Schema: 1, TxID: testTxID(1), Who: Who{UID: 1}})
	f.Add(append(e, '\n'))
	f.Add(append(append([]byte("\n\x00\n"), e...), e[:9]...))
	f.Add([]byte("{}\nnull\n[1]"))
	f.Fuzz(func(t *testing.T, data []byte) {
		h := parseHistory(data)
		// Nothing is dropped in silence.
		lines := 0
		for l := range bytes.SplitSeq(data, []byte{'\n'}) {
			if len(bytes.TrimSpace(l)) > 0 {
				lines++
			}
		}
		if lines != len(h.Entries)+len(h.Damage) {
			t.Errorf("%d lines, %d entries, %d damaged", lines, len(h.Entries), len(h.Damage))
		}
		// Whatever is in it, the line of releases can be followed.
		for _, id := range before(line(h.Entries), rid("1")) {
			if !ValidID(id) {
				t.Errorf("id %q", id)
			}
		}
		// What was torn off by a crash costs one line at most.
		with := append(bytes.Clone(data), '\n')
		with = append(append(with, e...), '\n')
		if got := parseHistory(with); len(got.Entries) < 1 || len(got.Entries) < len(h.Entries) {
			t.Errorf("%d entries after one more, %d before", len(got.Entries), len(h.Entries))
		}
	})
}

func TestTxn(t *testing.T) {
	t.Parallel()
	s := newStore(t)
	if _, err := s.ReadTxn(); !errors.Is(err, ErrNoTxn) {
		t.Errorf("read: %v", err)
	}
	do(t, s.ClearTxn())
	boot, err := BootID()
	do(t, err)
	self, err := ProcOf(os.Getpid())
	do(t, err)
	want := Txn{
		TxID: testTxID(1), Kind: KindUpgrade, Phase: PhaseBake, Runner: self, Incumbent: Proc{PID: 1, Start: 2},
		From: rid("1"), To: rid("2"), Started: time.Date(2026, 1, 2, 3, 4, 5, 6, time.UTC),
		Deadline: time.Date(2026, 1, 2, 3, 5, 0, 0, time.UTC), Who: Who{UID: 3}, Why: "because",
	}
	do(t, s.WriteTxn(want))
	want.Schema, want.BootID = txnSchema, boot
	got, err := s.ReadTxn()
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("read %+v, %v\nwant %+v", got, err, want)
	}
	if got.Rebooted(boot) || !got.Rebooted("other") {
		t.Error("rebooted")
	}
	do(t, os.WriteFile(filepath.Join(s.dir, ".txn.json.0011223344556677.tmp"), nil, 0o600))
	do(t, s.ClearTxn())
	if _, err := s.ReadTxn(); !errors.Is(err, ErrNoTxn) {
		t.Errorf("read: %v", err)
	}
	checkTidy(t, s)

	for name, bad := range map[string]Txn{
		"no txid":  {Phase: PhaseStage},
		"bad txid": {TxID: "../x", Phase: PhaseStage},
		"no phase": {TxID: testTxID(1)},
		"phase":    {TxID: testTxID(1), Phase: "nap"},
		"from":     {TxID: testTxID(1), Phase: PhaseStage, From: "x"},
		"to":       {TxID: testTxID(1), Phase: PhaseStage, To: "x"},
	} {
		if err := s.WriteTxn(bad); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

func TestReadTxnDamaged(t *testing.T) {
	t.Parallel()
	s := newStore(t)
	for _, content := range []string{"", "{", "null", "[]", "{}", `{"schema":0}`, `{"schema":1}`, `{"schema":1,"txid":"` + testTxID(1) + `","phase":"nap"}`, strings.Repeat(" ", maxRecord+1)} {
		writeFile(t, filepath.Join(s.dir, txnFile), content, 0o644)
		if _, err := s.ReadTxn(); !errors.Is(err, ErrDamaged) {
			t.Errorf("%.40q: %v", content, err)
		}
	}
	// A newer one may look different altogether; the schema is what is told.
	writeFile(t, filepath.Join(s.dir, txnFile), `{"schema":2,"txid":[1,2]}`, 0o644)
	var newer *SchemaError
	if _, err := s.ReadTxn(); !errors.As(err, &newer) || newer.Got != 2 || newer.Hint() == "" {
		t.Errorf("newer: %v", err)
	}
}

func TestPhases(t *testing.T) {
	t.Parallel()
	all := Phases()
	for i, p := range all {
		if !p.Valid() || p.Before(p) {
			t.Error(p)
		}
		if i > 0 && (!all[i-1].Before(p) || p.Before(all[i-1])) {
			t.Errorf("%s, %s", all[i-1], p)
		}
	}
	if Phase("").Valid() {
		t.Error("the empty phase is valid")
	}
}

func FuzzParseTxn(f *testing.F) {
	good, _ := json.Marshal(Txn{Schema: 1, TxID: testTxID(1), Phase: PhaseBake, From: rid("1")})
	f.Add(good)
	f.Add([]byte(`{"schema":2}`))
	f.Add([]byte(`{"schema":1,"started":"x"}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		txn, err := parseTxn(data)
		if err != nil {
			var newer *SchemaError
			if !errors.Is(err, ErrDamaged) && !errors.As(err, &newer) {
				t.Errorf("error = %v", err)
			}
			return
		}
		out, err := json.Marshal(txn)
		if err != nil {
			t.Fatal(err)
		}
		again, err := parseTxn(out)
		if err != nil || again.TxID != txn.TxID || again.Phase != txn.Phase || again.From != txn.From {
			t.Errorf("%+v became %+v, %v", txn, again, err)
		}
	})
}

func FuzzParseRelease(f *testing.F) {
	id := newID(time.Unix(0, 0), sumOf("x"))
	good, _ := json.Marshal(Release{Schema: 1, ID: id, Program: "web", SHA256: sumOf("x")})
	f.Add(good)
	f.Fuzz(func(t *testing.T, data []byte) {
		r, err := parseRelease(data, id)
		if err == nil && (r.ID != id || strings.ContainsAny(r.Program, "/\x00") || !idHasSum(id, r.SHA256)) {
			t.Errorf("accepted %+v", r)
		}
	})
}
