package dbusctl

import (
	"context"
	"time"

	"github.com/godbus/dbus/v5"
)

// Load is how systemd has its units from the disk.
type Load struct {
	// At is when it last read all unit files: at its start, or with a daemon-reload. Zero: this systemd does not say.
	At time.Time
	// Path are the directories with unit files, the most important first.
	Path []string
}

// Load returns when and from where systemd last read its units.
func (m *Manager) Load(ctx context.Context) (Load, error) {
	var all map[string]dbus.Variant
	if err := m.call(ctx, reading, managerPath, propsIface+".GetAll", []any{&all}, managerIface); err != nil {
		return Load{}, explain(ctx, "read when systemd loaded its units", "", err)
	}
	return parseLoad(all), nil
}

func parseLoad(all map[string]dbus.Variant) Load {
	p := props(all)
	return Load{At: p.time("UnitsLoadTimestamp"), Path: p.strs("UnitPath")}
}
