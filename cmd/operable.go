package cmd

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/zdt-dev/zdt/handoffcheck"
	"github.com/zdt-dev/zdt/internal/operators"
	"github.com/zdt-dev/zdt/release"
	"github.com/zdt-dev/zdt/unitgen"
)

// operable refuses a service whose upgrade would be more than that: whoever can put a program of his own into root's hands is root.
func (h *host) operable(ctx context.Context, p unitgen.Policy) error {
	if release.Require(p.RequireSignature).Needed() {
		return nil
	}
	u, err := h.ask(ctx)
	if err != nil {
		return err
	}
	unit, err := h.properties(ctx, h.unit)
	if err != nil {
		return err
	}
	why := rootly(unit, h.paths.StateDir(h.service))
	if why == "" && u.MainPID != 0 {
		uid, err := mainUID(u)
		if err != nil {
			return fmt.Errorf("find the user of the main process: %w", err)
		}
		if uid == 0 {
			why = "its main process is root's"
		}
	}
	if why == "" {
		return nil
	}
	return fail(ExitRefused, "give it a user (--service-user, --dynamic-user) and no more rights, or trust signed programs only: RequireSignature=yes in [X-Zdt], see docs/releases.md",
		"whoever may choose the program of %s is root: %s", h.service, why)
}

// rootly is the setting by which systemd would execute what lies in the store with root's rights, or hand them to it; "" if
// there is none. A program may give them up when it starts: an operator's need not.
func rootly(u handoffcheck.Unit, store string) string {
	// A User= that exists is taken with DynamicUser=yes, too.
	if user := u.Text("User"); user == "root" || user == "0" || user == "" && !u.Is("DynamicUser") {
		return "it runs as root"
	}
	// Of the others one can make root's rights, or take over other programs: CAP_SETUID, CAP_SYS_ADMIN, CAP_DAC_OVERRIDE …
	const harmless = 1 << unix.CAP_NET_BIND_SERVICE
	if u.Number("AmbientCapabilities")&^harmless != 0 {
		return "AmbientCapabilities= gives it more than CAP_NET_BIND_SERVICE"
	}
	for _, key := range []string{"ExecCondition", "ExecStartPre", "ExecStart", "ExecStartPost", "ExecReload", "ExecStop", "ExecStopPost"} {
		commands, _ := u.Properties[key+"Ex"].([][]any) // a(sasasttttuii): path, argv, flags, …
		for _, c := range commands {
			if len(c) < 3 {
				continue
			}
			path, _ := c[0].(string)
			argv, _ := c[1].([]string)
			flags, _ := c[2].([]string)
			if !slices.ContainsFunc(append(argv, path), func(word string) bool { return strings.Contains(word, store+"/") }) {
				continue // an administrator's own
			}
			// The prefixes +, ! and !! of systemd.service(5).
			if slices.ContainsFunc(flags, func(f string) bool { return f == "privileged" || f == "no-setuid" || f == "ambient" }) {
				return key + "= starts it with a prefix that keeps root's rights (+, ! or !!)"
			}
			if key != "ExecStart" && u.Is("PermissionsStartOnly") {
				return "PermissionsStartOnly=yes starts " + key + "= as root"
			}
		}
	}
	return ""
}

// admitOperator is asked under the service's lock, for which an upgrade may have waited long: what was true when the request was
// taken may be so no more.
func (s *site) admitOperator(o upgradeOptions) func(context.Context) error {
	return func(ctx context.Context) error {
		if err := s.isOperator(ctx, o.as.who().UID); err != nil {
			return err
		}
		u, err := s.ask(ctx)
		if err != nil {
			return err
		}
		policy, err := s.host.policy(u)
		if err != nil {
			return &Failure{Code: ExitRefused, Err: fmt.Errorf("read [X-Zdt] of %s: %w", s.unit, err), Hint: hintOf(err)}
		}
		if fmt.Sprintf("%+v", policy) != fmt.Sprintf("%+v", s.policy) {
			return fail(ExitRefused, "ask for it again", "[X-Zdt] of %s changed while this waited for its turn", s.unit)
		}
		if o.Bake != nil && *o.Bake < policy.Bake {
			return fail(ExitNotAuthorised, "leave --bake out", "a bake of %v: the service asks for %v, and an operator may only lengthen it", *o.Bake, policy.Bake)
		}
		return s.operable(ctx, policy)
	}
}

// isOperator refuses a user who is not among the operators, or not any more. Who is logged in keeps the groups that he had.
func (h *host) isOperator(ctx context.Context, uid int) error {
	gid, err := operators.Group(h.paths.OperatorsOf(h.service))
	if errors.Is(err, fs.ErrNotExist) {
		return fail(ExitNotAuthorised, "ask an administrator", "%s has no operators any more", h.service)
	}
	if err != nil {
		return err
	}
	ok, err := inGroup(ctx, uid, gid)
	switch {
	case err != nil:
		return fail(ExitNotAuthorised, "id "+userName(uid), "find the groups of %s: %w", userName(uid), err)
	case !ok:
		return fail(ExitNotAuthorised, "ask an administrator", "%s is not in the group %s, whose members are the operators of %s", userName(uid), groupName(gid), h.service)
	}
	return nil
}
