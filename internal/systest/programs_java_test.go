package systest

import (
	"archive/zip"
	"bytes"
	"os"
	"testing"
)

// buildJava makes a program of testdata/programs/java/Shop.java: a jar behind the line that makes the kernel start Java
// with it. Java itself is only asked once; what differs between two releases is one constant.
func (s *service) buildJava(n int, broken bool) map[string][]byte {
	const dir = "/srv/java"
	if _, err := s.g.ReadFile(dir + "/Shop.class"); err != nil {
		s.write(dir+"/Shop.java", foreign{recipe: "java"}.source(s.t, "Shop.java"))
		// The compiler of this package writes classes of Java 17 at most.
		s.run("java", "-cp", "/usr/share/java/eclipse-jdt-core-compiler-batch.jar", "org.eclipse.jdt.internal.compiler.batch.Main",
			"-source", "17", "-target", "17", "-d", dir, dir+"/Shop.java")
	}
	class, err := s.g.ReadFile(dir + "/Shop.class")
	if err != nil {
		s.t.Fatal(err)
	}
	class = bytes.ReplaceAll(class, []byte("v0000"), []byte(version(n)))
	if broken {
		class = class[:len(class)/2]
	}
	var jar bytes.Buffer
	jar.WriteString("#!/usr/bin/java -jar\n")
	w := zip.NewWriter(&jar)
	w.SetOffset(int64(jar.Len()))
	for _, f := range []struct {
		name string
		data []byte
	}{{"META-INF/MANIFEST.MF", []byte("Manifest-Version: 1.0\nMain-Class: Shop\n")}, {"Shop.class", class}} {
		out, err := w.Create(f.name)
		if err == nil {
			_, err = out.Write(f.data)
		}
		if err != nil {
			s.t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		s.t.Fatal(err)
	}
	return map[string][]byte{"shop": jar.Bytes()}
}

func readFile(t testing.TB, name string) []byte {
	t.Helper()
	data, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return data
}
