package cmd

import (
	"strings"
	"testing"

	"github.com/spf13/pflag"
)

func TestRunTakeoverFlag(t *testing.T) {
	for _, tt := range []struct {
		flags, environ string
		want, err      string
	}{
		{"", "", "", ""},
		{"--takeover=/s/a", "", "/s/a", ""},
		{"", "/s/b", "/s/b", ""},
		{"--takeover=/s/a", "/s/b", "/s/a", ""},
		{"--takeover=-", "/s/b", "", ""},
		{"", "-", "", ""},
		{"--takeover=a", "", "", "give an absolute path"},
		{"", "b", "", "give an absolute path"},
		{"--takeover=/s/a --strategy=restart", "", "", "--strategy restart exclude each other"},
		{"--takeover=- --strategy=restart", "", "", ""},
		{"--takeover=/s/a --workers=4", "", "/s/a", ""},
		{"--takeover=/s/a --workers=4 --reuse-port", "", "", "--reuse-port exclude each other"},
	} {
		var o runOptions
		flags := pflag.NewFlagSet("run", pflag.ContinueOnError)
		o.bind(flags)
		if err := flags.Parse(strings.Fields(tt.flags)); err != nil {
			t.Fatal(err)
		}
		options, err := o.options([]string{"/bin/program"}, []string{"ZDT_TAKEOVER=" + tt.environ})
		if tt.err == "" && (err != nil || options.Takeover != tt.want) || tt.err != "" && (err == nil || !strings.Contains(err.Error(), tt.err)) {
			t.Errorf("%q, ZDT_TAKEOVER=%q: %q, %v; want %q, %q", tt.flags, tt.environ, options.Takeover, err, tt.want, tt.err)
		}
	}
}
