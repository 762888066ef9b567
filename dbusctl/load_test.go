package dbusctl

import (
	"reflect"
	"testing"
	"time"
)

func TestParseLoad(t *testing.T) {
	got := parseLoad(viaWire(t, map[string]any{"UnitsLoadTimestamp": uint64(1_700_000_000_000_001), "UnitPath": []string{"/etc/systemd/system", "/usr/lib/systemd/system"}}))
	if want := (Load{time.UnixMicro(1_700_000_000_000_001), []string{"/etc/systemd/system", "/usr/lib/systemd/system"}}); !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v, want %+v", got, want)
	}
	if got := parseLoad(nil); !got.At.IsZero() || got.Path != nil {
		t.Errorf("of nothing: %+v", got)
	}
}
