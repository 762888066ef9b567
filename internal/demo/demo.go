package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"time"

	"github.com/zdt-dev/zdt/internal/guest"
	"github.com/zdt-dev/zdt/internal/load"
)

// demo is one run.
type demo struct {
	out      io.Writer
	image    guest.Image
	terminal bool // show commands as a terminal shows them
	columns  int
	color    bool
	soaking  int // upgrades in a row, in place of the story

	guest    *guest.Guest
	load     *load.Load
	upgrades []command // the good one and the bad one
	broken   []string  // promises that were not kept
}

// settled is how long the clients are watched before and after something happens.
const settled = 700 * time.Millisecond

func (d *demo) run(ctx context.Context) (err error) {
	if os.Geteuid() != 0 {
		return errRoot
	}
	d.say("Booting %s as PID 1 of fresh namespaces: a host of its own, gone when the demo ends.", d.image)
	d.guest, err = guest.Start(ctx, guest.Config{Image: d.image, Store: guest.Store{Logf: func(format string, args ...any) {
		fmt.Fprintf(d.out, format+"\n", args...)
	}}})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, d.guest.Close()) }()
	d.say("Building zdt and three releases of examples/hello; v3 cannot read its configuration.")
	if err := install(ctx, d.guest); err != nil {
		return err
	}
	acts := []func(context.Context) error{d.initialise, d.startLoad, d.upgrade, d.refuse, d.rollBack, d.stopLoad, d.timeline}
	if d.soaking > 0 {
		acts = []func(context.Context) error{d.initialise, d.startLoad, d.soak, d.stopLoad}
	}
	for _, act := range acts {
		if err := act(ctx); err != nil {
			return err
		}
	}
	if len(d.broken) > 0 {
		return errors.New("not as promised:\n  " + strings.Join(d.broken, "\n  "))
	}
	verdict := "one upgrade, one refusal, one rollback, and no client noticed any."
	if d.soaking > 0 {
		verdict = fmt.Sprintf("%d upgrades, and no client noticed any.", d.soaking)
	}
	fmt.Fprintf(d.out, "\n%s\n", d.style("1;32", "As promised: "+verdict))
	return nil
}

func (d *demo) initialise(ctx context.Context) error {
	d.say("Once per service: units, a release store, and v1 as the first release.")
	c, err := d.operate(ctx, "zdt init hello --exec ./hello-v1 --listen :8080=http --dynamic-user --start")
	if err == nil && c.code != 0 {
		return fmt.Errorf("zdt init ended with exit status %d", c.code)
	}
	return err
}

func (d *demo) startLoad(ctx context.Context) error {
	d.say("Clients: 32 keep their connection, 4 open one per request; GET and POST; none of them ever retries.")
	d.load = load.Start(load.Config{Bucket: 100 * time.Millisecond, Dial: func(ctx context.Context) (net.Conn, error) {
		return d.guest.Dial(ctx, "tcp", "127.0.0.1:8080")
	}})
	return d.watch(ctx)
}

func (d *demo) upgrade(ctx context.Context) error {
	d.say("The upgrade: the running program passes its sockets to v2, and then its connections.")
	c, err := d.operate(ctx, "zdt upgrade hello --binary ./hello-v2")
	if err != nil {
		return err
	}
	d.upgrades = append(d.upgrades, c)
	d.promise(c.code == 0, "zdt upgrade to v2 exits 0, not %d", c.code)
	return d.watch(ctx)
}

func (d *demo) refuse(ctx context.Context) error {
	d.say("The bad release: v3 ends before it is ready. Its rehearsal beside v2 finds that out before anything is changed (10).")
	c, err := d.operate(ctx, "zdt upgrade hello --binary ./hello-v3")
	if err != nil {
		return err
	}
	fmt.Fprintf(d.out, "%s\n%d\n", d.style("1", "# echo $?"), c.code)
	d.promise(c.code == 10, "the rehearsal of v3 has zdt upgrade exit with 10, not %d", c.code)
	d.promise(strings.Contains(c.output, "read configuration"), "the candidate's last log line is shown")
	return d.watch(ctx)
}

func (d *demo) rollBack(ctx context.Context) error {
	d.say("The same without a rehearsal: v2 never stops serving, and the exit status says so (11).")
	c, err := d.operate(ctx, "zdt upgrade hello --binary ./hello-v3 --no-rehearse")
	if err != nil {
		return err
	}
	fmt.Fprintf(d.out, "%s\n%d\n", d.style("1", "# echo $?"), c.code)
	d.upgrades = append(d.upgrades, c)
	d.promise(c.code == 11, "zdt upgrade to v3 exits 11, not %d", c.code)
	d.promise(strings.Contains(c.output, "read configuration"), "the candidate's last log line is shown")
	return d.watch(ctx)
}

// watch gives the clients time to see how the service does now.
func (d *demo) watch(ctx context.Context) error {
	select {
	case <-time.After(settled):
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (d *demo) stopLoad(context.Context) error {
	r := d.load.Stop()
	d.say("What the clients saw:")
	fmt.Fprintln(d.out)
	d.showClients(r)
	d.promise(r.Failed == 0, "no request fails, not %d", r.Failed)
	d.promise(r.Refused == 0, "no connection is refused, not %d", r.Refused)
	d.promise(r.Reconnects == 0, "no client has to reconnect, not %d times", r.Reconnects)
	d.promise(r.Versions["v1"] > 0 && r.Versions["v2"] > 0, "v1 and v2 answer")
	d.promise(r.Versions["v3"] == 0, "v3 never answers")
	return nil
}

// say explains what comes next.
func (d *demo) say(format string, args ...any) {
	fmt.Fprintf(d.out, "\n%s %s\n", d.style("36", "──"), d.style("36", fmt.Sprintf(format, args...)))
}

// promise notes what was not kept.
func (d *demo) promise(kept bool, format string, args ...any) {
	if !kept {
		d.broken = append(d.broken, fmt.Sprintf(format, args...))
	}
}

func (d *demo) style(attributes, text string) string {
	if !d.color {
		return text
	}
	return "\x1b[" + attributes + "m" + text + "\x1b[0m"
}
