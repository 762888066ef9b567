package dbusctl

import (
	"context"
	"fmt"

	"github.com/godbus/dbus/v5"
)

// Settings returns all properties of a unit, each as a text that is the same for the same value. It
// is for comparing two units; what the texts look like is nobody's business. A unit that is not loaded is
// loaded from its file.
func (m *Manager) Settings(ctx context.Context, name string) (map[string]string, error) {
	all, err := m.Properties(ctx, name)
	if err != nil {
		return nil, err
	}
	out := make(map[string]string, len(all))
	for key, v := range all {
		out[key] = fmt.Sprint(v)
	}
	return out, nil
}

// Properties returns all properties of a unit by name: strings, booleans, numbers in the width that
// systemd gives them, and lists of those; structures are lists. A unit that is not loaded is loaded from its file.
func (m *Manager) Properties(ctx context.Context, name string) (map[string]any, error) {
	const op = "read"
	if err := checkName(op, name); err != nil {
		return nil, err
	}
	var all map[string]dbus.Variant
	if err := m.call(ctx, reading, unitPath(name), propsIface+".GetAll", []any{&all}, ""); err != nil {
		return nil, explain(ctx, op, name, err)
	}
	out := make(map[string]any, len(all))
	for key, v := range all {
		out[key] = v.Value()
	}
	return out, nil
}

// Pin makes systemd remember a unit that is loaded for as long as this Manager is open, or until Forget: what it says
// of the unit's end can still be read when the unit would have been collected. Over systemd's private socket, which
// counts no references, it does nothing.
func (m *Manager) Pin(ctx context.Context, name string) error {
	const op = "keep"
	if err := checkName(op, name); err != nil {
		return err
	}
	if m.direct {
		return nil
	}
	if err := m.call(ctx, acting, managerPath, managerIface+".RefUnit", nil, name); err != nil {
		return explain(ctx, op, name, err)
	}
	return nil
}
