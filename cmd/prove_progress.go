package cmd

import (
	"fmt"
	"sync"
	"time"

	"github.com/zdt-dev/zdt/internal/load"
)

// proveProgress shows on a terminal, in one line that goes away, how zdt prove gets on; in a pipe each stage is a line. A
// goroutine of its own draws, which close ends and joins.
type proveProgress struct {
	f       *factory
	service string
	load    *load.Load

	mu    sync.Mutex
	text  string
	stop  chan struct{}
	ended chan struct{}
	once  sync.Once
}

func (f *factory) startProveProgress(service string, l *load.Load) *proveProgress {
	p := &proveProgress{f: f, service: service, load: l, stop: make(chan struct{}), ended: make(chan struct{})}
	if f.live() && !f.globals.quiet {
		go p.draw()
	} else {
		close(p.ended)
	}
	return p
}

// stage says what comes now.
func (p *proveProgress) stage(format string, args ...any) {
	text := fmt.Sprintf(format, args...)
	p.mu.Lock()
	p.text = text
	p.mu.Unlock()
	if !p.f.live() {
		p.f.say("%s: %s", p.service, text)
	}
}

func (p *proveProgress) close() {
	p.once.Do(func() { close(p.stop) })
	<-p.ended
}

func (p *proveProgress) draw() {
	defer close(p.ended)
	tick := time.NewTicker(frame)
	defer tick.Stop()
	for {
		select {
		case now := <-tick.C:
			fmt.Fprintf(p.f.Err, "\r%s\x1b[K", p.line(now))
		case <-p.stop:
			fmt.Fprint(p.f.Err, "\r\x1b[K")
			return
		}
	}
}

func (p *proveProgress) line(now time.Time) string {
	st, r := p.f.errStyle(), p.load.Report()
	p.mu.Lock()
	text := p.text
	p.mu.Unlock()
	lost := "nothing lost"
	if n := r.Losses(); n > 0 {
		lost = st.bad.Render(fmt.Sprintf("%d lost", n))
	}
	return st.clip(fmt.Sprintf("%s %s  %s  %s", st.note.Render(st.spin(now)), st.bold.Render("proving "+p.service),
		st.dim.Render(fmt.Sprintf("%d requests, %s", r.Requests, lost)), text), p.f.Width())
}
