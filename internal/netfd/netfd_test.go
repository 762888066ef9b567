package netfd

import "testing"

func TestSameAddress(t *testing.T) {
	for _, tt := range []struct {
		have, want string
		same       bool
	}{
		{"[::]:80", ":80", true},
		{"0.0.0.0:80", ":80", true},
		{"[::]:80", "0.0.0.0:80", true},
		{"127.0.0.1:80", "127.0.0.1:80", true},
		{"/run/x", "/run/x", true},
		{"127.0.0.1:80", ":80", false},
		{"[::]:80", "127.0.0.1:80", false},
		{"[::]:80", ":81", false},
		{"/run/x", "/run/y", false},
		{"", ":80", false},
	} {
		if got := SameAddress(tt.have, tt.want); got != tt.same {
			t.Errorf("SameAddress(%q, %q) = %v", tt.have, tt.want, got)
		}
	}
}
