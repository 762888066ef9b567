package upgrade

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"net/http"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/zdt-dev/zdt/handoff/control"
)

func (w *world) status() control.Status {
	w.t.Helper()
	c, err := control.Dial(w.t.Context(), filepath.Join(w.dir, "control.sock"))
	if err != nil {
		w.t.Fatal(err)
	}
	defer c.Close()
	s, err := c.Status(w.t.Context())
	if err != nil {
		w.t.Fatal(err)
	}
	return s
}

func (w *world) url(path string) string { return "http://" + w.status().Sockets[0].Address + path }

func (w *world) ask(path string) (string, error) {
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: 10 * time.Second}
	resp, err := client.Get(w.url(path))
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	return string(body), err
}

// block opens a request that goes on until end is called.
func (w *world) block() (end func()) {
	w.t.Helper()
	ctx, cancel := context.WithCancel(w.t.Context())
	req, err := http.NewRequestWithContext(ctx, "GET", w.url("/block"), nil)
	if err != nil {
		w.t.Fatal(err)
	}
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	resp, err := client.Do(req)
	if err != nil {
		w.t.Fatal(err)
	}
	var once sync.Once
	end = func() { once.Do(func() { cancel(); resp.Body.Close() }) }
	w.t.Cleanup(end)
	return end
}

func asJSON(v any) string {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetIndent("", "  ")
	enc.Encode(v)
	return b.String()
}

func wantText(t *testing.T, what, got string, parts ...string) {
	t.Helper()
	for _, p := range parts {
		if !strings.Contains(got, p) {
			t.Errorf("%s is %q; want %q in it", what, got, p)
		}
	}
}
