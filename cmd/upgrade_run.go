package cmd

import (
	"context"

	"github.com/zdt-dev/zdt/upgrade"
)

// transact wires package upgrade to systemd, the runtime, the journal and the store.
func (f *factory) transact(ctx context.Context, o upgradeOptions, observe func(upgrade.Update)) (upgrade.Report, error) {
	return upgrade.Report{}, fail(ExitRefused, "", "upgrade: not built in")
}
