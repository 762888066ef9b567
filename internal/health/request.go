package health

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"

	"github.com/zdt-dev/zdt/journal"
)

const (
	// answerLimit bounds what is read of an answer in bytes, bodyShown what is shown of it.
	answerLimit = 256 << 10
	bodyShown   = 200
)

// request is a GET that is on its way.
//
// It is written by hand and not by an http.Client, which would follow redirects, ask the proxy that the environment
// names and keep the connection for the next request: each of which answers another question than the gate's.
type request struct {
	http *http.Request
	head bytes.Buffer // what is not written yet
}

func (g Gate) request(ctx context.Context) (request, error) {
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+g.host+g.uri, nil)
	if err != nil {
		return request{}, err
	}
	r.Header.Set("User-Agent", "zdt-gate")
	r.Close = true
	req := request{http: r}
	return req, r.Write(&req.head)
}

// begin writes all but the empty line behind the header: no request yet.
func (r *request) begin(to io.Writer) error {
	_, err := to.Write(r.head.Next(r.head.Len() - 2))
	return err
}

// finish writes the rest and reads the answer, of which it says what it was; the error is why it is no success. Who
// answers may be hostile: what is read is bounded, and its time by the connection's deadline.
func (r *request) finish(conn io.ReadWriter, g Gate) (string, error) {
	if _, err := conn.Write(r.head.Bytes()); err != nil {
		return "", fmt.Errorf("ask: %w", err)
	}
	in := bufio.NewReader(io.LimitReader(conn, answerLimit))
	var resp *http.Response
	for resp == nil || resp.StatusCode < 200 { // 100 Continue, 103 Early Hints
		var err error
		if resp, err = http.ReadResponse(in, r.http); err != nil {
			return "", fmt.Errorf("read the answer: %w", err)
		}
	}
	status := shown(resp.Status)
	if !g.status.has(resp.StatusCode) {
		if to := resp.Header.Get("Location"); to != "" {
			status += " to " + shown(to)
		}
		body, _ := io.ReadAll(io.LimitReader(resp.Body, 4*bodyShown))
		return "", fmt.Errorf("it answered %s%s", status, quoted(body))
	}
	if g.body == nil {
		return "it answered " + status, nil
	}
	body, err := io.ReadAll(resp.Body)
	if g.body.Match(body) {
		return "it answered " + status + ", and the text is there", nil
	}
	if err != nil && !errors.Is(err, io.ErrUnexpectedEOF) {
		return "", fmt.Errorf("read the answer: %w", err)
	}
	return "", fmt.Errorf("it answered %s, and no text like %q%s", status, g.body, quoted(body))
}

// shown makes a text of others safe and short.
func shown(s string) string {
	if len(s) > bodyShown {
		s = s[:bodyShown] + "..."
	}
	return journal.Printable(s)
}

func quoted(body []byte) string {
	text := strings.TrimSpace(string(body))
	if text == "" {
		return ""
	}
	return ": " + `"` + shown(text) + `"`
}
