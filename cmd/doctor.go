package cmd

import (
	"context"
	"errors"
	"fmt"
	"runtime/debug"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/zdt-dev/zdt/dbusctl"
	"github.com/zdt-dev/zdt/handoffcheck"
	"github.com/zdt-dev/zdt/unitgen"
)

// doctorDoc is the document of zdt doctor.
type doctorDoc struct {
	Schema    string          `json:"schema"`  // zdt.doctor/1
	Outcome   string          `json:"outcome"` // healthy, attention, blocked
	ExitCode  ExitCode        `json:"exit_code"`
	Changed   bool            `json:"changed"` // always false
	Host      hostHealth      `json:"host"`
	Services  []serviceHealth `json:"services"`
	Leftovers []leftover      `json:"leftovers,omitempty"`
}

// hostHealth is what all services have in common.
type hostHealth struct {
	Zdt     string `json:"zdt"` // versions
	Systemd string `json:"systemd"`
	Kernel  string `json:"kernel"`
	Notes   []note `json:"notes,omitempty"`
}

// serviceHealth is what zdt status notes about a service and what zdt check finds in it.
type serviceHealth struct {
	Name     string                 `json:"name"`
	State    state                  `json:"state"`
	Notes    []note                 `json:"notes,omitempty"`
	Findings []handoffcheck.Finding `json:"findings"`
	Unknown  []string               `json:"unknown,omitempty"` // what could not be looked at
}

func newDoctorCmd(f *factory) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "doctor",
		Short: "Look at all services: findings, open upgrades, leftovers",
		Long: `Say of every service what zdt status notes and zdt check finds, and of the host
what all of them need; name what earlier versions and broken upgrades have left
behind. Changes nothing and takes no lock.

Exits with 10 if something waits for somebody: an upgrade that would be refused,
or one that was interrupted.`,
		Example: `  zdt doctor
  zdt doctor -o json | jq -r '.services[].findings[].id' | sort | uniq -c`,
		Args: arguments(0, 0, ""),
	}
	return f.command(cmd, func(ctx context.Context, _ []string) error {
		return runDoctor(ctx, f)
	}, ExitOK, ExitRefused, ExitUsage, ExitUnavailable)
}

func runDoctor(ctx context.Context, f *factory) error {
	p, err := f.paths()
	if err != nil {
		return err
	}
	bus, err := f.dialSystemd(ctx, f.globals.user)
	if err != nil {
		return err
	}
	defer bus.Close()
	doc, err := f.doctor(ctx, bus, p)
	if err != nil {
		return err
	}
	if f.globals.output == outputText {
		_, err = f.Out.Write([]byte(doctorText(f.outStyle(), doc)))
	} else {
		err = f.print(doc)
	}
	if err == nil && doc.ExitCode != ExitOK {
		err = &Failure{Code: doc.ExitCode, Told: true}
	}
	return err
}

// doctor looks at everything.
func (f *factory) doctor(ctx context.Context, bus systemd, p Paths) (doc doctorDoc, err error) {
	names, err := p.Services()
	if err != nil {
		return doc, fmt.Errorf("list services: %w", err)
	}
	doc = doctorDoc{Schema: "zdt.doctor/1", Services: []serviceHealth{}}
	if doc.Host, err = f.hostHealth(ctx, bus, p); err != nil {
		return doc, err
	}
	for _, name := range names {
		doc.Services = append(doc.Services, f.serviceHealth(ctx, bus, p, name))
		if ctx.Err() != nil {
			return doc, context.Cause(ctx)
		}
	}
	doc.Leftovers = leftovers(p, names)
	doc.judge()
	return doc, nil
}

// serviceHealth never fails: that one service cannot be looked at must not hide the others.
func (f *factory) serviceHealth(ctx context.Context, bus systemd, p Paths, name string) serviceHealth {
	d := serviceHealth{Name: name, Findings: []handoffcheck.Finding{}}
	s, err := f.collectStatus(ctx, bus, p, name)
	if err != nil {
		d.Unknown = append(d.Unknown, err.Error())
		return d
	}
	d.State = s.State
	d.Notes = slices.DeleteFunc(s.Notes, func(n note) bool { return n.ID == "masked" || n.ID == "daemon-reload" }) // findings say these
	if s.State == stateNone {
		return d // a note says so
	}
	h := &host{f: f, sd: bus, paths: p, service: name, unit: name + ".service"}
	found, err := h.check(ctx, "")
	if err != nil {
		d.Unknown = append(d.Unknown, err.Error())
		return d
	}
	d.Findings = found.Findings
	for _, u := range found.Unknown {
		if s.Runtime != nil && s.RuntimeProblem == "" || !strings.HasPrefix(u, runningUnknown) { // its state says it, or a note
			d.Unknown = append(d.Unknown, u)
		}
	}
	return d
}

// hostHealth looks at what is there once for all services.
func (f *factory) hostHealth(ctx context.Context, bus systemd, p Paths) (h hostHealth, err error) {
	if _, h.Systemd, err = bus.Version(ctx); err != nil {
		return h, err
	}
	info, _ := debug.ReadBuildInfo()
	h.Zdt = buildVersion(info).Version
	var name unix.Utsname
	if err := unix.Uname(&name); err == nil {
		h.Kernel = unix.ByteSliceToString(name.Release[:])
	}
	u, err := bus.Unit(ctx, unitgen.ReconcileUnit)
	switch {
	case err != nil && !errors.Is(err, dbusctl.ErrNoUnit):
		return h, err
	case err != nil || u.LoadState == "masked" || !strings.HasPrefix(u.UnitFileState, "enabled"):
		h.Notes = append(h.Notes, note{ID: "reconcile",
			Text: "nothing settles an upgrade that a power cut interrupts: " + unitgen.ReconcileUnit + " is not enabled",
			Next: f.systemctl() + " enable " + unitgen.ReconcileUnit + "; zdt init of any service makes it"})
	}
	return h, nil
}

// waits reports whether somebody has to do something before the next upgrade goes well, or ends.
func (s serviceHealth) waits() bool {
	return checkDoc{Findings: s.Findings}.count(handoffcheck.Blocker) > 0 ||
		slices.ContainsFunc(s.Notes, func(n note) bool { return n.ID == "upgrade-open" || n.ID == "frozen" || n.ID == "txn" })
}

// judge is the verdict on all of it.
func (d *doctorDoc) judge() {
	d.Outcome = "healthy"
	if len(d.Host.Notes)+len(d.Leftovers) > 0 {
		d.Outcome = "attention"
	}
	for _, s := range d.Services {
		switch {
		case s.waits():
			d.Outcome, d.ExitCode = "blocked", ExitRefused
		case len(s.Findings)+len(s.Notes)+len(s.Unknown) > 0 && d.Outcome == "healthy":
			d.Outcome = "attention"
		}
	}
}
