package health

import (
	"context"
	"fmt"
	"net"
	"strconv"
	"strings"

	"github.com/zdt-dev/zdt/internal/script"
	"github.com/zdt-dev/zdt/internal/sockowner"
	"github.com/zdt-dev/zdt/internal/trustpath"
)

// Candidate is the process that has to pass.
type Candidate struct {
	Service, TxID string
	PID           int    // the process itself, under a helper the first one of its group
	Helper        int    // pid of the helper that started it; 0: it is its own runtime
	Release       string // its ID
	Exe           string
	// Since is the journal's end before it was started; "" when the journal cannot be read.
	Since string
}

// Prober asks. The zero value asks the host, and cannot read the journal.
type Prober struct {
	// Dial opens a connection; nil: a net.Dialer.
	Dial func(ctx context.Context, network, address string) (net.Conn, error)
	// Whose says who accepted a connection, see sockowner.Set.Await; nil: that, of the family of the pid.
	Whose func(ctx context.Context, conn net.Conn, pid int, nudge func() error) (sockowner.Owner, error)
	// Command runs a program; nil: script.Run.
	Command func(ctx context.Context, c script.Command) script.Result
	// Trust says whether a program may be run; nil: trustpath.Program.
	Trust func(path string) error
	// Lines follows the journal from a cursor on, see Journal; nil: it cannot be read.
	Lines func(ctx context.Context, since string) Lines
	// Belongs reports whether a process belongs to the candidate with the pid; nil: sockowner.Belongs.
	Belongs func(pid, candidate int) bool
}

// Check says what can be known before anything is changed: whether the gates can be asked at all.
func (p Prober) Check(gates []Gate) error {
	for _, g := range gates {
		switch g.kind {
		case kindExec:
			if err := p.trust(g.argv[0]); err != nil {
				return fmt.Errorf("gate %s: %w", g, err)
			}
		case kindJournal, kindSilence:
			if p.Lines == nil {
				return fmt.Errorf("gate %s: %w", g, errNoJournal)
			}
		}
	}
	return nil
}

func (p Prober) trust(path string) error {
	if p.Trust != nil {
		return p.Trust(path)
	}
	return trustpath.Program(path)
}

// outputKept is how many lines of a command's output are in a result.
const outputKept = 3

// execute runs the command once.
func (p Prober) execute(ctx context.Context, g Gate, c Candidate) answer {
	// Each time: it may have been exchanged, and it is root who executes it.
	if err := p.trust(g.argv[0]); err != nil {
		return answer{text: err.Error()}
	}
	run := p.Command
	if run == nil {
		run = script.Run
	}
	env := []string{"ZDT_SERVICE=" + c.Service, "ZDT_TXID=" + c.TxID, "ZDT_CANDIDATE_PID=" + strconv.Itoa(c.PID), "ZDT_RELEASE=" + c.Release, "ZDT_EXE=" + c.Exe}
	if c.Helper != 0 {
		env = append(env, "ZDT_HELPER_PID="+strconv.Itoa(c.Helper))
	}
	res := run(ctx, script.Command{Path: g.argv[0], Args: g.argv[1:], Env: script.Environ(env...), Keep: outputKept})
	a := answer{ok: res.Err == nil, text: "it exited with 0"}
	if res.Err != nil {
		a.text = res.Err.Error()
	}
	if ctx.Err() == nil { // or it says so itself
		a.text += " after " + round(res.Took).String()
	}
	if len(res.Tail) > 0 {
		a.text += fmt.Sprintf(": %q", strings.Join(res.Tail, "\n"))
	}
	return a
}
