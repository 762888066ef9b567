package release

import "time"

// Recovered tells of which process a release was taken.
type Recovered struct {
	PID     int       `json:"pid"`
	Deleted bool      `json:"deleted,omitempty"` // its file was no longer there
	At      time.Time `json:"at"`
}
