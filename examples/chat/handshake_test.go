package main

import (
	"net/http"
	"testing"
)

func TestUpgradeKey(t *testing.T) {
	good := map[string]string{
		"Connection": "keep-alive, Upgrade", "Upgrade": "websocket", "Sec-Websocket-Version": "13",
		"Sec-Websocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
	}
	for _, test := range []struct {
		name, header, value string
		status              int
	}{
		{"the example of RFC 6455", "", "", 0},
		{"from its own page", "Origin", "http://chat.example:8080", 0},
		{"no upgrade", "Connection", "keep-alive", http.StatusUpgradeRequired},
		{"to something else", "Upgrade", "h2c", http.StatusUpgradeRequired},
		{"an old version", "Sec-Websocket-Version", "8", http.StatusUpgradeRequired},
		{"no key", "Sec-Websocket-Key", "", http.StatusBadRequest},
		{"a short key", "Sec-Websocket-Key", "dGhl", http.StatusBadRequest},
		{"another site's page", "Origin", "http://evil.example", http.StatusForbidden},
		{"a page without a site", "Origin", "null", http.StatusForbidden},
	} {
		t.Run(test.name, func(t *testing.T) {
			r := &http.Request{Host: "chat.example:8080", Header: http.Header{}}
			for name, value := range good {
				r.Header.Set(name, value)
			}
			if test.header != "" {
				r.Header.Set(test.header, test.value)
			}
			accept, status, why := upgradeKey(r)
			if status != test.status || (why != "") != (status != 0) {
				t.Errorf("status %d %q, want %d", status, why, test.status)
			}
			if status == 0 && accept != "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=" {
				t.Errorf("accept %q", accept)
			}
		})
	}
}
