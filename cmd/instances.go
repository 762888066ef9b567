package cmd

import (
	"context"
	"errors"
	"path"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/zdt-dev/zdt/dbusctl"
	"github.com/zdt-dev/zdt/unitgen"
)

// Several commands take all instances of a template at once: web@ are all of them, 'web@b*' those that match, web@1 web@2
// these two.

// isSet reports whether the arguments mean instances of a template, and not one service.
func isSet(args []string) bool {
	return len(args) > 1 || len(args) == 1 && (strings.HasSuffix(trimService(args[0]), "@") || hasPattern(args[0]))
}

func trimService(arg string) string { return strings.TrimSuffix(arg, ".service") }

func hasPattern(arg string) bool { return strings.ContainsAny(arg, "*?[") }

// fleet is a set of instances of one template.
type fleet struct {
	Template string // web@
	Names    []string
	// Named are those of Names that were given by their whole name.
	Named []string
}

// expandSet finds the instances that the arguments name, in the order of the arguments and, of all that match one, by number.
func expandSet(args []string, all func(template string) ([]string, error)) (fleet, error) {
	var set fleet
	add := func(names ...string) {
		for _, name := range names {
			if !slices.Contains(set.Names, name) {
				set.Names = append(set.Names, name)
			}
		}
	}
	for _, arg := range args {
		arg = trimService(arg)
		template, _, found := strings.Cut(arg, "@")
		template += "@"
		switch {
		case !found && hasPattern(arg):
			return set, usage("match instances of one template, such as 'web@*'", "%q matches services that need not have one program", arg)
		case !found:
			return set, usage("name instances of one template, such as web@1 web@2", "%s is no instance of a template: several at once are for those", arg)
		case set.Template != "" && set.Template != template:
			return set, usage("run zdt once for each", "%s and %s are two templates", set.Template, template)
		}
		set.Template = template
		if err := unitgen.ValidateTemplate(template); err != nil {
			return set, err
		}
		if arg != template && !hasPattern(arg) {
			if err := unitgen.ValidateName(arg); err != nil {
				return set, err
			}
			add(arg)
			if !slices.Contains(set.Named, arg) {
				set.Named = append(set.Named, arg)
			}
			continue
		}
		names, err := all(template)
		if err != nil {
			return set, err
		}
		if arg != template {
			if _, err := path.Match(arg, ""); err != nil {
				return set, usage("patterns have *, ? and [a-z]", "%q is no pattern", arg)
			}
			names = slices.DeleteFunc(names, func(name string) bool { ok, _ := path.Match(arg, name); return !ok })
		}
		if len(names) == 0 {
			return set, fail(ExitNoService, "zdt status lists those there are", "zdt manages no instance that is called %s", arg)
		}
		add(names...)
	}
	return set, nil
}

// openSet is expandSet for this host.
func (f *factory) openSet(args []string) (fleet, error) {
	p, err := f.paths()
	if err != nil {
		return fleet{}, err
	}
	return expandSet(args, p.Instances)
}

// leaveStopped takes out of a set what was not named and is stopped: somebody wanted that, and an upgrade would start it.
func (f *factory) leaveStopped(ctx context.Context, set *fleet) (stopped []string, err error) {
	bus, err := f.dialSystemd(ctx, f.globals.user)
	if err != nil {
		return nil, err
	}
	defer bus.Close()
	for _, name := range set.Names {
		u, err := bus.Unit(ctx, name+".service")
		if err != nil && !errors.Is(err, dbusctl.ErrNoUnit) {
			return nil, err
		}
		if stateOf(u, err != nil) == stateStopped && !slices.Contains(set.Named, name) {
			stopped = append(stopped, name)
		}
	}
	set.Names = slices.DeleteFunc(set.Names, func(name string) bool { return slices.Contains(stopped, name) })
	return stopped, nil
}

// completeSets completes NAME with the services of this host, and with their templates.
//
// With others, further arguments may be any services; else they are instances of the same template.
func (f *factory) completeSets(others bool) cobra.CompletionFunc {
	services := f.completeServices(-1)
	return func(cmd *cobra.Command, args []string, toComplete string) ([]cobra.Completion, cobra.ShellCompDirective) {
		found, directive := services(cmd, args, toComplete)
		var all []cobra.Completion
		for _, name := range found {
			template, _, ok := unitgen.SplitName(name)
			if len(args) > 0 && !others && (!ok || !strings.HasPrefix(args[0], template)) {
				continue
			}
			if ok && strings.HasPrefix(template, toComplete) && !slices.Contains(slices.Concat(args, all), template) {
				all = append(all, template)
			}
			all = append(all, name)
		}
		return all, directive
	}
}
