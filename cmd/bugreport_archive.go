package cmd

import (
	"archive/tar"
	"bytes"
	"cmp"
	"compress/gzip"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/zdt-dev/zdt/internal/redact"
)

// pack makes an archive of files below the directory root. The same files give the same bytes.
func pack(root string, files []filed, made time.Time) ([]byte, error) {
	var out bytes.Buffer
	z := gzip.NewWriter(&out)
	t := tar.NewWriter(z)
	made = made.Truncate(time.Second)
	for _, f := range files {
		head := tar.Header{Typeflag: tar.TypeReg, Name: path.Join(root, f.Path), Size: int64(len(f.data)), Mode: 0o600, ModTime: made, Format: tar.FormatPAX}
		if err := t.WriteHeader(&head); err != nil {
			return nil, fmt.Errorf("pack %s: %w", f.Path, err)
		}
		if _, err := t.Write(f.data); err != nil {
			return nil, fmt.Errorf("pack %s: %w", f.Path, err)
		}
	}
	if err := t.Close(); err != nil {
		return nil, fmt.Errorf("pack: %w", err)
	}
	if err := z.Close(); err != nil {
		return nil, fmt.Errorf("pack: %w", err)
	}
	return out.Bytes(), nil
}

func checksum(data []byte) string {
	sum := sha256.Sum256(data)
	return hex.EncodeToString(sum[:])
}

// writeNew writes a file that only the caller can read, and that was not there: whoever can write to the directory may have put
// a link there.
func writeNew(path string, data []byte) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	if _, err = f.Write(data); err == nil {
		err = f.Sync()
	}
	err = cmp.Or(err, f.Close())
	if err != nil {
		os.Remove(path)
	}
	return err
}

// manifestText is the MANIFEST: what is in the archive, what was taken out, and what is missing.
func manifestText(d bugreportDoc, root string, made time.Time) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s, made %s\n\n", root, made.Format(time.RFC3339))
	b.WriteString("    bytes  redacted  file\n")
	total := map[redact.Kind]int{}
	for _, f := range d.Files {
		fmt.Fprintf(&b, "%9d  %8d  %s\n", f.Size, f.secrets(), f.Path)
		for kind, n := range f.Redacted {
			total[kind] += n
		}
		for _, c := range f.Cut {
			fmt.Fprintf(&b, "%21scut: %s\n", "", c)
		}
	}
	b.WriteString("\nRedacted, by what it was known by:\n")
	for _, kind := range slices.Sorted(maps.Keys(total)) {
		fmt.Fprintf(&b, "%9d  %s\n", total[kind], kind)
	}
	if len(total) == 0 {
		b.WriteString("  nothing\n")
	}
	b.WriteString("\nMissing:\n")
	for _, m := range d.Missing {
		fmt.Fprintf(&b, "  %s\n", m)
	}
	if len(d.Missing) == 0 {
		b.WriteString("  nothing\n")
	}
	return b.String()
}

// bugreportText is the document for people.
func bugreportText(st style, d bugreportDoc) string {
	var b strings.Builder
	n, cut := 0, 0
	for _, f := range d.Files {
		n, cut = n+f.secrets(), cut+len(f.Cut)
	}
	about := "the host alone"
	if len(d.Services) > 0 {
		about = strings.Join(d.Services, ", ")
	}
	fmt.Fprintf(&b, "%s %s\n", st.good.Render(st.marks.ok), st.bold.Render(clean(filepath.Base(d.File))))
	for _, l := range wrapWords(fmt.Sprintf("about %s: %s, %s in all; %s redacted, each counted in its MANIFEST", about, plural(len(d.Files), "file"), sizeWords(d.Size), plural(n, "secret")), pageWidth-2) {
		fmt.Fprintf(&b, "  %s\n", l)
	}
	for _, f := range d.Files {
		for _, c := range f.Cut {
			writeMarked(&b, st.dim.Render(st.marks.todo), f.Path+" is cut: "+c)
		}
	}
	for _, m := range d.Missing {
		writeMarked(&b, st.warn.Render(st.marks.warn), "missing: "+m)
	}
	fmt.Fprintf(&b, "  sha256 %s\n", st.dim.Render(d.SHA256))
	fmt.Fprintf(&b, "  %s no rule finds every secret; read it before you pass it on:\n    tar xzOf %s | less\n", st.marks.arrow, shellWord(d.File))
	return b.String()
}

func writeMarked(b *strings.Builder, mark, text string) {
	fmt.Fprintf(b, "  %s %s\n", mark, strings.Join(wrapWords(clean(text), pageWidth-4), "\n    "))
}

// shellWord is a word as a shell reads it.
func shellWord(s string) string {
	if strings.Trim(s, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789/._-+@:") == "" {
		return s
	}
	return "'" + strings.ReplaceAll(clean(s), "'", `'\''`) + "'"
}

// sizeWords is a number of bytes as people say it.
func sizeWords(n int) string {
	if n < 10<<10 {
		return fmt.Sprintf("%d bytes", n)
	}
	return fmt.Sprintf("%d KiB", n>>10)
}

// plainJSON is a document, indented, with the secrets taken out of every text in it.
func plainJSON(r *redact.Redactor, doc any) ([]byte, error) {
	var b bytes.Buffer
	if err := printJSON(&b, doc, true); err != nil {
		return nil, err
	}
	lines := r.Lines() // an array may have a log line in each of its elements
	var out bytes.Buffer
	data := b.Bytes()
	for i := 0; i < len(data); {
		if data[i] != '"' {
			out.WriteByte(data[i])
			i++
			continue
		}
		end := i + 1
		for data[end] != '"' {
			if data[end] == '\\' {
				end++
			}
			end++
		}
		end++
		if rest := bytes.TrimLeft(data[end:], " "); len(rest) > 0 && rest[0] == ':' { // a name
			out.Write(data[i:end])
			i = end
			continue
		}
		var s string
		if err := json.Unmarshal(data[i:end], &s); err != nil {
			return nil, err
		}
		var value bytes.Buffer
		if err := printJSON(&value, printable(lines.Line(s)), false); err != nil {
			return nil, err
		}
		out.Write(bytes.TrimSpace(value.Bytes()))
		i = end
	}
	return out.Bytes(), nil
}

// printable keeps the lines of a text, and nothing else that a terminal acts upon.
func printable(s string) string {
	lines := strings.Split(s, "\n")
	for i, l := range lines {
		lines[i] = clean(l)
	}
	return strings.Join(lines, "\n")
}
