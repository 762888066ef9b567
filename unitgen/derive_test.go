package unitgen

import (
	"slices"
	"testing"
)

func TestReadSettings(t *testing.T) {
	files := []File{
		{Path: "/a", Data: []byte("[Unit]\nDescription=a\n# no\n[Service]\nExecStart=/bin/a \\\n  b\nnonsense\n[X-Zdt]\nName=a\n")},
		{Path: "/b", Data: []byte("[Service]\nUser=u\nEnvironment=\n")},
	}
	all, err := ReadSettings(files...)
	want := []Setting{{"Unit", "Description", "a"}, {"Service", "ExecStart", "/bin/a    b"}, {"X-Zdt", "Name", "a"}, {"Service", "User", "u"}, {"Service", "Environment", ""}}
	if err != nil || !slices.Equal(all, want) {
		t.Errorf("%v, %v", all, err)
	}
	again, err := ReadSettings(File{Data: WriteSettings(all)})
	if err != nil || !slices.Equal(again, all) {
		t.Errorf("written and read: %v, %v", again, err)
	}
	if _, err := ReadSettings(File{Path: "/c", Data: []byte("[Unit\nA=b\n")}); err == nil {
		t.Error("a broken section header is no error")
	}
	last := []Setting{{"Service", "Environment", `A=b\`}, {"Service", "User", "u"}}
	if got, _ := ReadSettings(File{Data: WriteSettings(last)}); len(got) != 2 || got[1] != last[1] {
		t.Errorf("a backslash at the end took the next line in: %v", got)
	}
}

func TestExpandNames(t *testing.T) {
	const path = "/etc/systemd/system/web-shop.service"
	for _, c := range []struct{ unit, in, want string }{
		{"web-shop.service", "plain 100", "plain 100"},
		{"web-shop.service", "%n %N %p %P %j %i|%f %y %Y", "web-shop.service web-shop web-shop web/shop shop |/web/shop " + path + " /etc/systemd/system"},
		{"web@a-b.service", "%n %p %i %I %f", "web@a-b.service web a-b a/b /a/b"},
		{"web.service", "%t/%S %%n %%%n %H", "%t/%S %%n %%web.service %H"},
		{"web.service", "50%", "50%"},
		{`w\x20b.service`, "%P", "w b"},
	} {
		if got := ExpandNames(c.in, c.unit, path); got != c.want {
			t.Errorf("%s of %s: %q, want %q", c.in, c.unit, got, c.want)
		}
	}
}
