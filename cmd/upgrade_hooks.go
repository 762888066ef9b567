package cmd

import (
	"context"

	"github.com/zdt-dev/zdt/internal/hooks"
	"github.com/zdt-dev/zdt/upgrade"
)

// hooks are the administrator's for this service; nil: there are none.
func (s *site) hooks() (*upgrade.Hooks, error) {
	set, err := hooks.Find(hooks.Root(s.f.globals.user), s.service)
	if err != nil {
		return nil, refused(err)
	}
	if len(set) == 0 {
		return nil, nil
	}
	options := hooks.Options{Timeout: s.policy.HookTimeout}
	found := map[upgrade.HookPoint][]string{}
	for point, all := range set {
		for _, h := range all {
			found[upgrade.HookPoint(point)] = append(found[upgrade.HookPoint(point)], h.Path)
		}
	}
	return &upgrade.Hooks{Limit: options.Budget(set), Each: s.policy.HookTimeout, Found: found, Run: func(ctx context.Context, d upgrade.HookDoc) ([]upgrade.HookRun, error) {
		found := set[hooks.Point(d.Point)]
		if len(found) == 0 {
			return nil, nil
		}
		log := hooks.OpenLog("", d.Service, d.TxID)
		defer log.Close() // what the journal did not take of their chatter is no news
		o := options
		o.Line = log.Line
		results, err := hooks.Run(ctx, found, d, o)
		var runs []upgrade.HookRun
		for _, r := range results {
			runs = append(runs, upgrade.HookRun{Point: d.Point, Name: r.Hook, Took: r.Took, ExitCode: r.ExitCode, Error: r.Error, Tail: r.Tail, Cut: r.Cut})
		}
		return runs, err
	}}, nil
}
