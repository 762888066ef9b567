package helper

import (
	"os"
	"slices"
	"strings"
	"testing"
)

func TestUntouched(t *testing.T) {
	const rest = "Size: 4 kB\nRss: 4 kB\n"
	smaps := "00400000-00500000 r-xp 00000000 fe:00 1 /usr/bin/zdt\n" + rest + "Anonymous:             0 kB\nVmFlags: rd ex mr mw me sd\n" +
		"00500000-00600000 r--p 00100000 fe:00 1 /usr/bin/zdt\n" + rest + "Anonymous:             4 kB\nVmFlags: rd\n" +
		"00600000-00700000 r--p 00200000 fe:00 1 /usr/bin/zdt\n" + rest + "Anonymous:             0 kB\n" +
		"00700000-00800000 rw-p 00300000 fe:00 1 /usr/bin/zdt\n" + rest + "Anonymous:             0 kB\n" +
		"c000000000-c000400000 rw-p 00000000 00:00 0 \n" + rest + "Anonymous:          0 kB\n" +
		"7f0000000000-7f0000001000 r--p 00000000 fe:00 2 /usr/lib/not-/usr/bin/zdt\n" + rest + "Anonymous:          0 kB\n" +
		"7fff00000000-7fff00001000 r-xp 00000000 00:00 0 [vdso]\n" + rest + "Anonymous:          0 kB\n"
	if got, want := untouched(smaps, "/usr/bin/zdt"), []mapping{{0x400000, 0x500000}, {0x600000, 0x700000}}; !slices.Equal(got, want) {
		t.Errorf("%x, want %x", got, want)
	}
}

// This process goes on after it has given its text back, and finds its mappings.
func TestThrift(t *testing.T) {
	exe, err := os.Readlink("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	before, err := os.ReadFile("/proc/self/smaps")
	if err != nil {
		t.Fatal(err)
	}
	if len(untouched(string(before), exe)) == 0 {
		t.Errorf("nothing of %s in\n%s", exe, before)
	}
	for range 10 {
		thrift()
	}
	if after, err := os.ReadFile("/proc/self/smaps"); err != nil || strings.Count(string(after), exe) != strings.Count(string(before), exe) {
		t.Errorf("%v\n%s", err, after)
	}
}

func BenchmarkThrift(b *testing.B) {
	for b.Loop() {
		thrift()
	}
}
