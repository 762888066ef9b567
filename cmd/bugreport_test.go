package cmd

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"encoding/json"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/zdt-dev/zdt/internal/redact"
	"github.com/zdt-dev/zdt/release"
)

// What an operator reads when a report is written, and the MANIFEST in it.
func TestBugreportText(t *testing.T) {
	d := bugreportDoc{
		File: "/root/zdt-bugreport-db1-20261101T101112Z.tar.gz", SHA256: strings.Repeat("0123456789abcdef", 4), Size: 23456, Services: []string{"api", "web"},
		Files: []filed{
			{Path: "host.json", Size: 812},
			{Path: "services/web/units.txt", Size: 2310, Redacted: map[redact.Kind]int{redact.Environment: 3, redact.URL: 1}},
			{Path: "services/web/journal.txt", Size: 104857, Redacted: map[redact.Kind]int{redact.Learned: 2}, Cut: []string{"the end: 1204 messages in between"}},
		},
		Missing: []string{"/home/web/web.env: /home/web belongs to uid 1000: not trusted (it must belong to root and be writable for nobody else)"},
	}
	golden(t, "bugreport/text", bugreportText(newStyle(nil, false, true), d))
	golden(t, "bugreport/manifest", manifestText(d, "zdt-bugreport-db1-20261101T101112Z", day))
}

// A report comes about without systemd, without a journal and with a store that is broken, and the same state gives the same bytes.
func TestBugreport(t *testing.T) {
	f, out, _ := testFactory(t, false)
	h := newHost(t, f)
	f.journalctl = []string{"/bin/false"}
	t.Chdir(t.TempDir())
	r := h.deploy(t, "web")
	s, err := release.Open(h.paths.StateDir("web"), release.Options{})
	if err != nil {
		t.Fatal(err)
	}
	txid := "20261101T101112123Z-00ff00ff"
	if err := s.WriteReport(txid, []byte(`{"schema":"zdt.upgrade/1","log":["password=hunter22","-----BEGIN PRIVATE KEY-----","abc","-----END PRIVATE KEY-----"],"n":1}`)); err != nil {
		t.Fatal(err)
	}
	s.Close()
	if err := os.WriteFile(filepath.Join(h.paths.StateDir("web"), "txn.json"), []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	f.dialSystemd = newFactory(f.Streams).dialSystemd // in a directory of the test there is none
	f.getenv = func(name string) string {
		return map[string]string{"HOME": filepath.Dir(h.paths.Units), "XDG_STATE_HOME": filepath.Dir(h.paths.State), "XDG_RUNTIME_DIR": filepath.Dir(h.paths.Runtime)}[name]
	}
	t.Setenv("XDG_RUNTIME_DIR", t.TempDir())
	t.Setenv("DBUS_SESSION_BUS_ADDRESS", "unix:path="+filepath.Join(t.TempDir(), "bus"))
	f.globals.output = outputJSON
	if err := runBugreport(t.Context(), f, []string{"web"}, "a.tar.gz"); err != nil {
		t.Fatal(err)
	}
	var doc bugreportDoc
	if err := json.Unmarshal(out.Bytes(), &doc); err != nil {
		t.Fatal(err)
	}
	missing := strings.Join(doc.Missing, "\n")
	for _, want := range []string{"systemd: ", "open upgrade", "web: the journal"} {
		if !strings.Contains(missing, want) {
			t.Errorf("%q is not said to be missing:\n%s", want, missing)
		}
	}
	data, err := os.ReadFile("a.tar.gz")
	if err != nil || checksum(data) != doc.SHA256 || len(data) != doc.Size {
		t.Fatalf("%v: %d bytes, %+v", err, len(data), doc)
	}
	text := archiveText(t, data)
	if strings.Contains(text, "hunter22") || strings.Contains(text, `"abc"`) {
		t.Errorf("a secret is left:\n%s", text)
	}
	for _, want := range []string{"MANIFEST", r.SHA256, txid, `"password=«redacted 8 bytes»"`, `"n": 1`} {
		if !strings.Contains(text, want) {
			t.Errorf("%q is not in it:\n%s", want, text)
		}
	}
	if err := runBugreport(t.Context(), f, []string{"web"}, "a.tar.gz"); codeOf(err) != ExitRefused {
		t.Errorf("it overwrites a file: %v", err)
	}
	if err := runBugreport(t.Context(), f, []string{"web"}, "b.tar.gz"); err != nil {
		t.Fatal(err)
	}
	if again, err := os.ReadFile("b.tar.gz"); err != nil || !bytes.Equal(again, data) {
		t.Errorf("the same state gives another archive: %v", err)
	}
	if err := runBugreport(t.Context(), f, []string{"nosuch"}, ""); codeOf(err) != ExitUnavailable {
		t.Errorf("of a service that nobody knows: %v", err)
	}
}

func archiveText(t *testing.T, data []byte) string {
	t.Helper()
	z, err := gzip.NewReader(bytes.NewReader(data))
	if err != nil {
		t.Fatal(err)
	}
	var b strings.Builder
	for r := tar.NewReader(z); ; {
		head, err := r.Next()
		if err == io.EOF {
			return b.String()
		}
		if err != nil {
			t.Fatal(err)
		}
		b.WriteString(head.Name + "\n")
		if _, err := io.Copy(&b, r); err != nil {
			t.Fatal(err)
		}
	}
}
