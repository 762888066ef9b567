package handoff

import "github.com/zdt-dev/zdt/internal/wire"

// WireVersion is the newest version of the protocol between two generations
// that this package speaks.
const WireVersion = wire.Version
