package main

import (
	"crypto/sha1"
	"encoding/base64"
	"net/http"
	"net/url"
	"strings"
)

// upgradeKey checks that r asks for a WebSocket, RFC 6455 §4.2.1, and returns
// the answer to its key. A request that does not gets status, and why.
func upgradeKey(r *http.Request) (accept string, status int, why string) {
	key := r.Header.Get("Sec-WebSocket-Key")
	raw, err := base64.StdEncoding.DecodeString(key)
	switch {
	case !hasToken(r.Header, "Connection", "upgrade") || !hasToken(r.Header, "Upgrade", "websocket"):
		return "", http.StatusUpgradeRequired, "this is a WebSocket"
	case r.Header.Get("Sec-WebSocket-Version") != "13":
		return "", http.StatusUpgradeRequired, "only version 13 is spoken"
	case err != nil || len(raw) != 16:
		return "", http.StatusBadRequest, "Sec-WebSocket-Key is not 16 bytes in base64"
	case !sameOrigin(r):
		return "", http.StatusForbidden, "a page of another origin"
	}
	// SHA-1 proves nothing here: it only shows that the server knows WebSocket.
	sum := sha1.Sum([]byte(key + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"))
	return base64.StdEncoding.EncodeToString(sum[:]), 0, ""
}

// hasToken reports whether the comma-separated header holds token.
func hasToken(h http.Header, name, token string) bool {
	for _, value := range h.Values(name) {
		for part := range strings.SplitSeq(value, ",") {
			if strings.EqualFold(strings.TrimSpace(part), token) {
				return true
			}
		}
	}
	return false
}

// sameOrigin refuses pages of other sites: a browser lets any page open a
// WebSocket anywhere, with the user's cookies. Who is no browser sends no Origin.
func sameOrigin(r *http.Request) bool {
	origin := r.Header.Get("Origin")
	if origin == "" {
		return true
	}
	u, err := url.Parse(origin)
	return err == nil && strings.EqualFold(u.Host, r.Host)
}
