package cmd

import (
	"strings"
	"testing"
	"time"

	"github.com/zdt-dev/zdt/internal/operators"
	"github.com/zdt-dev/zdt/release"
	"github.com/zdt-dev/zdt/unitgen"
)

// Every flag of upgrade and rollback is for operators or is refused to them; a new one is refused.
func TestOperatorFlags(t *testing.T) {
	f, _, _ := testFactory(t, false)
	for _, tt := range []struct{ args, want string }{
		{"--binary=x --sha256=y --bake=1m --timeout=1m --wait -m why --rehearse --exec=a --signature=s", ""},
		{"--release=4f", ""},
		{"--binary=x --ignore-hold", "--ignore-hold is for root"},
		{"--skip-gates", "--skip-gates is for root"},
		{"--gate=exec:/bin/sh", "--gate is for root"},
		{"--no-rehearse", "--no-rehearse is for root"},
		{"--strategy=restart", "--strategy is for root"},
		{"--on-failure=freeze", "--on-failure is for root"},
		{"--ready-timeout=1s", "--ready-timeout is for root"},
		{"--drain-timeout=1s", "--drain-timeout is for root"},
		{"--helper", "--helper is for root"},
		{"--detach", "--detach is for root"},
		{`--as={"txid":"20261122T124005123Z-4f2a91c0","who":{"uid":0}}`, "--as is for root"},
	} {
		cmd := newUpgradeCmd(f)
		if err := cmd.ParseFlags(strings.Fields(tt.args)); err != nil {
			t.Fatal(err)
		}
		err := operatorsOnly(cmd, "web")
		if tt.want == "" && err != nil || tt.want != "" && (err == nil || !strings.Contains(err.Error(), tt.want) || codeOf(err) != ExitNotAuthorised) {
			t.Errorf("%s: %v, want %q", tt.args, err, tt.want)
		}
	}
}

func TestRequestOf(t *testing.T) {
	bake, always := time.Minute, unitgen.RehearseAlways
	r := upgradeOptions{Service: "web", Binary: "dist/web 1.4.tar.gz", Exec: "bin/web", Bake: &bake, Wait: -1, Why: "x", Rehearse: &always}.request()
	want := operators.Request{Service: "web", Do: operators.Upgrade, Bake: time.Minute, Wait: 24 * time.Hour, Why: "x", Rehearse: true, Program: r.Program}
	if r != want || *r.Program != (operators.Program{Name: "web1.4.tar.gz", Exec: "bin/web"}) {
		t.Errorf("%+v, %+v", r, r.Program)
	}
	r = upgradeOptions{Service: "web", Kind: release.KindRollback, Release: "4f", Timeout: time.Second}.request()
	if r != (operators.Request{Service: "web", Do: operators.Rollback, Release: "4f", Timeout: time.Second}) {
		t.Errorf("%+v", r)
	}
}
