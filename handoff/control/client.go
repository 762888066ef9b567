package control

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"iter"
	"net"
	"strings"
	"time"
)

// maxLine bounds one message in either direction.
const maxLine = 1 << 20

// Client is one connection to a runtime. It is not safe for concurrent use.
type Client struct {
	conn net.Conn
	r    *bufio.Reader
	peer Cred
}

// Cred identifies the other end of a unix socket as the kernel saw it.
type Cred struct {
	PID int
	UID uint32
}

// Dial connects to the control socket at path. The path lies in a directory
// that the service's user can write: no symlink in it is followed, and what is
// connected to is the very inode that was looked at. The caller still has to
// hold Peer against the service's user. Errors match fs.ErrNotExist when there
// is no socket and syscall.ECONNREFUSED when nobody listens on it.
func Dial(ctx context.Context, path string) (*Client, error) {
	conn, cred, err := dial(ctx, path)
	if err != nil {
		return nil, fmt.Errorf("connect to control socket %s: %w", path, err)
	}
	return &Client{conn: conn, r: bufio.NewReaderSize(conn, 4096), peer: cred}, nil
}

// Peer is the process that listens on the socket, as of its listen(2).
func (c *Client) Peer() Cred { return c.peer }

// Close closes the connection.
func (c *Client) Close() error { return c.conn.Close() }

// Status asks for the status.
func (c *Client) Status(ctx context.Context) (Status, error) {
	return c.call(ctx, Request{Op: OpStatus})
}

// Arm prepares the next handoff.
func (c *Client) Arm(ctx context.Context, a Arm) (Status, error) {
	return c.call(ctx, Request{Op: OpArm, TxID: a.TxID, Arm: &a})
}

// Disarm takes the arming of txid back.
func (c *Client) Disarm(ctx context.Context, txid string) (Status, error) {
	return c.call(ctx, Request{Op: OpDisarm, TxID: txid})
}

// Commit decides the held handoff of txid. It returns when systemd has been
// told and the incumbent drains.
func (c *Client) Commit(ctx context.Context, txid string) (Status, error) {
	return c.call(ctx, Request{Op: OpCommit, TxID: txid})
}

// Abort undoes the handoff of txid. It returns when the incumbent serves
// again; the candidate may still be ending.
func (c *Client) Abort(ctx context.Context, txid, reason string) (Status, error) {
	return c.call(ctx, Request{Op: OpAbort, TxID: txid, Reason: reason})
}

// Extend puts the deadline of txid's held handoff off to d from now.
func (c *Client) Extend(ctx context.Context, txid string, d time.Duration) (Status, error) {
	return c.call(ctx, Request{Op: OpExtend, TxID: txid, For: d})
}

// Reclaim makes the runtime tell systemd that it is the main process.
func (c *Client) Reclaim(ctx context.Context) (Status, error) {
	return c.call(ctx, Request{Op: OpReclaim})
}

// Watch yields the status now and at every change until the runtime exits
// (its last status has phase "exited"), ctx ends, or the loop is left. The
// client can be used for nothing else afterwards but Close.
func (c *Client) Watch(ctx context.Context) iter.Seq2[Status, error] {
	return func(yield func(Status, error) bool) {
		stop := c.bind(ctx)
		defer stop()
		if err := c.send(Request{Op: OpWatch}); err != nil {
			yield(Status{}, contextError(ctx, "watch", err))
			return
		}
		for {
			st, err := c.receive(OpWatch)
			if err != nil {
				yield(Status{}, contextError(ctx, "watch", err))
				return
			}
			if !yield(st, nil) || st.Phase == Exited {
				return
			}
		}
	}
}

func (c *Client) call(ctx context.Context, req Request) (Status, error) {
	stop := c.bind(ctx)
	defer stop()
	sendErr := c.send(req)
	st, err := c.receive(req.Op)
	var refused *Error
	if sendErr != nil && !errors.As(err, &refused) {
		// A runtime that denies says so and hangs up without listening; any
		// other failure to send is the failure.
		err = sendErr
	}
	return st, contextError(ctx, req.Op, err)
}

// bind makes the end of ctx wake blocked reads and writes.
func (c *Client) bind(ctx context.Context) (stop func()) {
	c.conn.SetDeadline(time.Time{})
	done := context.AfterFunc(ctx, func() { c.conn.SetDeadline(time.Unix(1, 0)) })
	return func() { done() }
}

func (c *Client) send(req Request) error {
	line, err := json.Marshal(req)
	if err != nil {
		return err
	}
	_, err = c.conn.Write(append(line, '\n'))
	return err
}

func (c *Client) receive(op string) (Status, error) {
	line, err := ReadLine(c.r)
	if err != nil {
		return Status{}, err
	}
	var resp Response
	if err := json.Unmarshal(line, &resp); err != nil {
		return Status{}, fmt.Errorf("runtime's answer: %w", err)
	}
	var st Status
	if resp.Status != nil {
		st = *resp.Status
	}
	st.bound()
	if resp.Code != "" {
		bound(&resp.Error)
		return st, &Error{Op: op, Code: resp.Code, Text: resp.Error}
	}
	return st, nil
}

// maxText bounds each text that is passed on to people, to the journal and to
// the history, in bytes: the longest path has room.
const maxText = 4096

func (s *Status) bound() {
	bound(&s.Service, &s.Exe, &s.LastRefusal)
	if h := s.Handoff; h != nil {
		bound(&h.TxID, &h.Exe)
	}
	if l := s.Last; l != nil {
		bound(&l.TxID, &l.Exe, &l.Reason, &l.Detail)
		if l.Exit != nil {
			bound(&l.Exit.Code, &l.Exit.Status)
		}
	}
	for i := range s.Sockets {
		bound(&s.Sockets[i].Name, &s.Sockets[i].Network, &s.Sockets[i].Address)
	}
}

func bound(texts ...*string) {
	for _, t := range texts {
		if len(*t) > maxText {
			*t = strings.ToValidUTF8((*t)[:maxText], "") + "…"
		}
	}
}

// ReadLine reads one message of at most 1 MiB, without its newline.
func ReadLine(r *bufio.Reader) ([]byte, error) {
	var line []byte
	for {
		part, err := r.ReadSlice('\n')
		line = append(line, part...)
		if len(line) > maxLine {
			return nil, errors.New("message of more than 1 MiB")
		}
		if err == nil {
			return line[:len(line)-1], nil
		}
		if err != bufio.ErrBufferFull {
			return nil, err
		}
	}
}

// contextError prefers the reason why ctx ended to the deadline error it caused.
func contextError(ctx context.Context, op string, err error) error {
	if err == nil {
		return nil
	}
	if ctx.Err() != nil {
		return fmt.Errorf("control %s: %w", op, context.Cause(ctx))
	}
	var refused *Error
	if errors.As(err, &refused) {
		return err
	}
	return fmt.Errorf("control %s: %w", op, err)
}
