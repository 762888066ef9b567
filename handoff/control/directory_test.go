package control

import "testing"

func TestDirectory(t *testing.T) {
	for env, want := range map[string]string{
		"":                                "",
		"/run/zdt/web":                    "/run/zdt/web",
		"/run/web":                        "/run/web",
		"/run/cache:/run/zdt/web:/run/x":  "/run/zdt/web",
		"/run/user/7/a:/run/user/7/zdt/a": "/run/user/7/zdt/a",
		"/run/web:/run/zdt":               "/run/web",
	} {
		if got := Directory(env); got != want {
			t.Errorf("%q: got %q, want %q", env, got, want)
		}
	}
}
