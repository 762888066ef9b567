package upgrade

import "fmt"

// Footprint is what the processes of a service take, and what there is. All sizes are bytes; 0 is not known, of a limit none.
type Footprint struct {
	// Generation is what the generation that serves has for itself: the proportional set size of its processes or, where
	// that may not be read, their resident memory (Resident says so). Processes counts them.
	Generation uint64
	Resident   bool
	Processes  int

	// Of the unit's control group. Used is without what the kernel can give back at once, files nobody has used lately.
	Used, High, Max uint64
	Tasks, TasksMax uint64
	// Of the slice around it that has least left.
	SliceUsed, SliceMax uint64
	// HostAvailable is MemAvailable of the host.
	HostAvailable uint64
}

// RoomVerdict says whether there is room for a second generation beside the first.
type RoomVerdict string

const (
	RoomFits    RoomVerdict = "fits"
	RoomTight   RoomVerdict = "tight" // less than a quarter is left, or the kernel will slow it down
	RoomNone    RoomVerdict = "does-not-fit"
	RoomUnknown RoomVerdict = "unknown"
)

// Room is whether two generations have room for one thing, memory or tasks, while both run.
type Room struct {
	What    string      `json:"what"` // memory, tasks
	Verdict RoomVerdict `json:"verdict"`
	// Needs is what a second generation takes if it is like the first, Free what is left for it, Bound what bounds that.
	Needs uint64 `json:"needs"`
	Free  uint64 `json:"free"`
	Bound string `json:"bound,omitempty"` // MemoryMax, MemoryHigh, slice, host, TasksMax; empty: nothing
	// Resident: Needs counts what processes share several times.
	Resident bool `json:"resident,omitempty"`
	// Used and Limit are those of the bound.
	Used  uint64 `json:"used,omitempty"`
	Limit uint64 `json:"limit,omitempty"`
}

// Rooms are the verdicts on a footprint.
func (f Footprint) Rooms() []Room {
	memory := f.Beside()
	if f.Generation > 0 {
		memory.consider("MemoryMax", left(f.Max, f.Used), f.Used, f.Max, f.Max > 0 && f.Used > 0, false)
		memory.consider("MemoryHigh", left(f.High, f.Used), f.Used, f.High, f.High > 0 && f.Used > 0, true)
	}
	rooms := []Room{memory}
	if f.Tasks > 0 && f.TasksMax > 0 {
		tasks := Room{What: "tasks", Verdict: RoomUnknown, Needs: f.Tasks}
		tasks.consider("TasksMax", left(f.TasksMax, f.Tasks), f.Tasks, f.TasksMax, true, false)
		rooms = append(rooms, tasks)
	}
	return rooms
}

// Beside is the verdict on a generation in a control group of its own, next to the unit's: what bounds the unit does not bound it.
func (f Footprint) Beside() Room {
	memory := Room{What: "memory", Verdict: RoomUnknown, Needs: f.Generation, Resident: f.Resident}
	if f.Generation > 0 {
		memory.consider("host", f.HostAvailable, 0, 0, f.HostAvailable > 0, false)
		memory.consider("slice", left(f.SliceMax, f.SliceUsed), f.SliceUsed, f.SliceMax, f.SliceMax > 0 && f.SliceUsed > 0, false)
	}
	return memory
}

func left(limit, used uint64) uint64 {
	if used >= limit {
		return 0
	}
	return limit - used
}

// consider lets one bound, if it is known, have its say: the worst verdict counts, and of equal ones the bound that leaves least. A soft
// bound slows down and stops nothing.
func (r *Room) consider(bound string, free, used, limit uint64, known, soft bool) {
	if !known {
		return
	}
	verdict := RoomFits
	switch {
	case free < r.Needs && !soft:
		verdict = RoomNone
	case free < r.Needs, free < r.Needs+r.Needs/4 && !soft:
		verdict = RoomTight
	}
	rank := map[RoomVerdict]int{RoomUnknown: 0, RoomFits: 1, RoomTight: 2, RoomNone: 3}
	if rank[verdict] < rank[r.Verdict] || rank[verdict] == rank[r.Verdict] && free >= r.Free {
		return
	}
	r.Verdict, r.Bound, r.Free, r.Used, r.Limit = verdict, bound, free, used, limit
}

func (r Room) String() string {
	return fmt.Sprintf("%s: %s, needs %d, free %d (%s)", r.What, r.Verdict, r.Needs, r.Free, r.Bound)
}
