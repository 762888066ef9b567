package cmd

import (
	"bytes"
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/zdt-dev/zdt/upgrade"
)

// view shows the updates of a running upgrade. One goroutine calls it.
type view interface {
	update(u upgrade.Update)
	tick(now time.Time) // every frame; for what moves
	done()              // nothing follows
}

// progress takes updates without ever blocking the upgrade, and shows them on
// a goroutine of its own, which close ends and joins.
type progress struct {
	mu    sync.Mutex
	queue []upgrade.Update
	wake  chan struct{} // buffered by 1
	stop  chan struct{}
	ended chan struct{}

	f       *factory
	service string
	as      identity
	others  *broadcast // nil: nobody can watch from elsewhere
}

// frame is the time between two pictures of something that moves.
const frame = 80 * time.Millisecond

// startProgress begins to show a transaction, here and to whoever watches from elsewhere. fail or finish ends it.
func (f *factory) startProgress(service string, as identity) *progress {
	var others *broadcast
	if paths, err := f.paths(); err == nil {
		others = newBroadcast(paths, service, as.TxID)
	}
	p := f.showProgress(service, others)
	p.f, p.service, p.as, p.others = f, service, as, others
	return p
}

// finish ends the showing of a transaction that has a report, and keeps it for whoever asks later.
func (p *progress) finish(report upgrade.Report) {
	p.close()
	if p.as.detached() || lasting(report) {
		p.f.keepReport(p.service, report.TxID, report)
	}
	if p.others != nil {
		p.others.end(report)
	}
}

// fail ends the showing of a transaction that did not come about.
func (p *progress) fail(err error) {
	p.close()
	if p.others != nil {
		p.others.end(newErrorDoc(err))
	}
}

// showProgress begins to show a transaction. close ends it.
func (f *factory) showProgress(service string, others *broadcast) *progress {
	p := &progress{wake: make(chan struct{}, 1), stop: make(chan struct{}), ended: make(chan struct{})}
	v := f.newView(service)
	if others != nil {
		v = bothViews{others, v}
	}
	if f.events != nil {
		v = bothViews{&ndjsonView{out: f.events}, v}
	}
	go p.run(v, f.now)
	return p
}

// newView chooses how progress is told: with -o ndjson on stdout, else on
// stderr, as a picture on a terminal and as lines anywhere else.
func (f *factory) newView(service string) view {
	switch {
	case f.globals.output == outputNDJSON:
		return &ndjsonView{out: f.Out}
	case f.globals.quiet:
		return silentView{}
	case f.live():
		return &treeView{out: f.Err, style: f.errStyle(), width: f.Width, tree: newPhaseTree(service)}
	}
	return &lineView{out: f.Err, style: f.errStyle(), service: service}
}

// observe is upgrade.Engine.Observe.
func (p *progress) observe(u upgrade.Update) {
	p.mu.Lock()
	p.queue = append(p.queue, u)
	p.mu.Unlock()
	select {
	case p.wake <- struct{}{}:
	default:
	}
}

// close returns when everything observed before has been shown.
func (p *progress) close() {
	close(p.stop)
	<-p.ended
}

func (p *progress) run(v view, now func() time.Time) {
	defer close(p.ended)
	ticker := time.NewTicker(frame)
	defer ticker.Stop()
	for {
		select {
		case <-p.wake:
			p.drain(v)
			v.tick(now())
		case <-ticker.C:
			v.tick(now())
		case <-p.stop:
			p.drain(v)
			v.done()
			return
		}
	}
}

func (p *progress) drain(v view) {
	p.mu.Lock()
	queue := p.queue
	p.queue = nil
	p.mu.Unlock()
	for _, u := range queue {
		v.update(u)
	}
}

// silentView is for -q.
type silentView struct{}

func (silentView) update(upgrade.Update) {}
func (silentView) tick(time.Time)        {}
func (silentView) done()                 {}

// ndjsonView writes every update as a line.
type ndjsonView struct{ out io.Writer }

// updateDoc is one line of -o ndjson; the last line is the report.
type updateDoc struct {
	Schema string `json:"schema"` // zdt.update/1
	upgrade.Update
}

func (v *ndjsonView) update(u upgrade.Update) {
	printJSON(v.out, updateDoc{"zdt.update/1", u}, false) // a reader that went away does not stop an upgrade
}
func (v *ndjsonView) tick(time.Time) {}
func (v *ndjsonView) done()          {}

// lineView writes a line when a phase ends, for logs and CI; a phase that
// takes long also says that it is still alive.
type lineView struct {
	out     io.Writer
	style   style
	service string
	last    time.Time // of the last line
}

// lineEvery is the time between two lines of one phase.
const lineEvery = 10 * time.Second

func (v *lineView) update(u upgrade.Update) {
	if v.last.IsZero() {
		v.last = u.At
	}
	if d := u.At.Sub(v.last); u.State == upgrade.Running && d >= 0 && d < lineEvery {
		return
	}
	v.last = u.At
	text := ""
	if u.Text != "" {
		text = ": " + clean(u.Text)
	}
	fmt.Fprintf(v.out, "%s: %s %s (%s)%s\n", v.service, u.Phase, u.State, elapsed(u.Elapsed), text)
}
func (v *lineView) tick(time.Time) {}
func (v *lineView) done()          {}

// treeView draws the phases in place and takes them away at the end.
type treeView struct {
	out   io.Writer
	style style
	width func() int
	tree  *phaseTree
	lines int // drawn
}

func (v *treeView) update(u upgrade.Update) { v.tree.apply(u) }

func (v *treeView) tick(now time.Time) {
	if !v.tree.begun {
		return
	}
	lines := v.tree.render(v.style, now, v.width())
	var b bytes.Buffer // one write a frame, so that nothing flickers
	v.erase(&b)
	for _, l := range lines {
		b.WriteString(l + "\x1b[K\n")
	}
	v.lines = len(lines)
	v.out.Write(b.Bytes())
}

// erase moves to the first line of the picture.
func (v *treeView) erase(b *bytes.Buffer) {
	if v.lines > 0 {
		fmt.Fprintf(b, "\x1b[%dA\r", v.lines)
	}
}

func (v *treeView) done() {
	var b bytes.Buffer
	v.erase(&b)
	b.WriteString("\x1b[J")
	if v.lines > 0 {
		v.out.Write(b.Bytes())
	}
	v.lines = 0
}
