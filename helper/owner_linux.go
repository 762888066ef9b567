package helper

import "github.com/zdt-dev/zdt/internal/sockowner"

// owners are the processes whose answers are the generation's.
func (b band) owners() sockowner.Set {
	return sockowner.Set{Leader: b.Leader, Members: func() []int { return b.members(processes()) }}
}

// members are the processes of the generation: the process group, and whoever descends from one
// of it. Who left the group and has lost its parent is not told from others.
func (b band) members(table []process) []int {
	all := make([]sockowner.Process, len(table))
	for i, p := range table {
		all[i] = sockowner.Process{PID: p.pid, Parent: p.parent, Group: p.group}
	}
	return sockowner.Members(b.Leader, all)
}
