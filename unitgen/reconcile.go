package unitgen

import (
	"path"

	"github.com/zdt-dev/zdt/templates"
)

// ReconcileUnit is the name of the unit that settles, after a boot, what upgrades were under way when the
// host went down. There is one for all services of a manager.
const ReconcileUnit = "zdt-reconcile.service"

// Reconcile says where that unit and what it looks at are.
type Reconcile struct {
	UnitDir     string
	StateRoot   string // the parent of the services' release stores
	Zdt         string // absolute
	UserManager bool
	// Environment of it, KEY=VALUE; a user manager need not have the variables that a shell has.
	Environment []string
}

// Generate returns the unit's file.
func (r Reconcile) Generate() (File, error) {
	view := struct {
		Open, Target, ExecStart string
		UserManager             bool
		Environment             []string
	}{Open: quoteValue(r.StateRoot) + "/*/txn.json", Target: "multi-user.target", UserManager: r.UserManager}
	argv := []string{r.Zdt}
	if r.UserManager {
		view.Target = "default.target"
		argv = append(argv, "--user")
	}
	view.ExecStart = Spec{}.command(append(argv, "resume", "--all", "--settle"))
	for _, v := range r.Environment {
		view.Environment = append(view.Environment, quoteWord(v))
	}
	data, err := render("reconcile", templates.Reconcile(), view)
	if err != nil {
		return File{}, err
	}
	return File{Name: ReconcileUnit, Path: path.Join(r.UnitDir, ReconcileUnit), Mode: 0o644, Data: data}, nil
}
