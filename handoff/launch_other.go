//go:build !linux

package handoff

import (
	"errors"
	"os"

	"github.com/zdt-dev/zdt/internal/wire"
)

// launch is for Linux: elsewhere this package listens and drains, and a
// handoff is refused.
func launch(launchSpec) (*os.Process, *wire.Link, error) { return nil, nil, errors.ErrUnsupported }

func cannotExecute(error) bool { return false }

func awaitEnd(int) bool { return false }
func killGroup(int)     {}
