package release

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"syscall"
	"time"
	"unicode"

	"aead.dev/minisign"
)

// A SignatureFormat names the tool that makes such signatures.
type SignatureFormat string

// The formats of detached signatures that are understood.
const (
	FormatMinisign SignatureFormat = "minisign" // minisign -S, hashed or legacy
	FormatSSH      SignatureFormat = "ssh"      // ssh-keygen -Y sign -n zdt
)

// A Signature is what was verified about a release when it was staged.
type Signature struct {
	Format     SignatureFormat `json:"format"`
	Key        string          `json:"key"`               // minisign: the public key; ssh: its fingerprint
	KeyName    string          `json:"key_name"`          // minisign: the file of the key; ssh: the signer
	Comment    string          `json:"comment,omitempty"` // minisign's trusted comment: signed as well
	VerifiedAt time.Time       `json:"verified_at"`
}

// A SignatureError tells why a signature is not believed.
type SignatureError struct {
	Path string // of the signature
	Err  error
	Help string
}

func (e *SignatureError) Error() string { return fmt.Sprintf("signature %s: %v", e.Path, e.Err) }

// Unwrap returns the cause.
func (e *SignatureError) Unwrap() error { return e.Err }

// Hint returns what the operator can do next.
func (e *SignatureError) Hint() string { return e.Help }

const (
	maxSignature = 64 << 10 // bytes
	// maxLegacy bounds what is verified at once: minisign's old format signs the
	// whole file and not its hash, so that all of it has to be in memory.
	maxLegacy  = 512 << 20
	maxComment = 256 // characters
)

// A detached is the operator's signature, read and not yet verified.
type detached struct {
	path   string
	format SignatureFormat
	text   []byte
}

// readSignature reads the file at path, which may be anybody's: only what it
// says about the content counts.
func readSignature(path string) (detached, error) {
	s := detached{path: path}
	bad := func(err error, help string) (detached, error) { return detached{}, &SignatureError{path, err, help} }
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0) // a FIFO must not make us wait
	if err != nil {
		return bad(err, "")
	}
	defer f.Close()
	if fi, err := f.Stat(); err != nil {
		return bad(err, "")
	} else if !fi.Mode().IsRegular() {
		return bad(errors.New("is not a regular file"), "")
	}
	if s.text, err = io.ReadAll(io.LimitReader(f, maxSignature+1)); err != nil {
		return bad(err, "")
	}
	switch {
	case len(s.text) > maxSignature:
		return bad(errors.New("is too large to be one"), "give the detached signature, not the signed file")
	case bytes.HasPrefix(s.text, []byte("untrusted comment: ")):
		s.format = FormatMinisign
	case bytes.HasPrefix(s.text, []byte("-----BEGIN SSH SIGNATURE-----")):
		s.format = FormatSSH
	default:
		return bad(errors.New("is of no format that zdt knows"), "sign with minisign -S, or with ssh-keygen -Y sign -n "+SSHNamespace)
	}
	return s, nil
}

// verify reads message to its end and tells who has signed it.
func (k Keys) verify(ctx context.Context, s detached, message io.Reader, size int64) (Signature, error) {
	var sig Signature
	var err error
	if s.format == FormatMinisign {
		sig, err = k.verifyMinisign(s, message, size)
	} else {
		sig, err = k.verifySSH(ctx, s, message)
	}
	if err != nil {
		if ctx.Err() != nil {
			return Signature{}, ctx.Err()
		}
		var known *SignatureError
		if !errors.As(err, &known) {
			err = &SignatureError{Path: s.path, Err: err}
		}
		return Signature{}, err
	}
	sig.Format = s.format
	return sig, nil
}

func (k Keys) verifyMinisign(s detached, message io.Reader, size int64) (Signature, error) {
	bad := func(help, format string, args ...any) (Signature, error) {
		return Signature{}, &SignatureError{s.path, fmt.Errorf(format, args...), help}
	}
	var parsed minisign.Signature
	if err := parsed.UnmarshalText(s.text); err != nil {
		return bad("the file is incomplete; fetch it again", "is not one of minisign")
	}
	id := strings.ToUpper(strconv.FormatUint(parsed.KeyID, 16))
	var candidates []minisignKey // IDs are eight bytes that anybody may choose
	for _, m := range k.minisign {
		if m.key.ID() == parsed.KeyID {
			candidates = append(candidates, m)
		}
	}
	if len(candidates) == 0 {
		return bad("if the key is to be trusted, put it there as NAME.pub", "is by the key %s, which is not in %s", id, k.Dir)
	}
	// The formats must not be mixed up: a legacy signature of a hash would
	// pass for one of the file that has this hash.
	var good func(minisign.PublicKey) bool
	if parsed.Algorithm == minisign.HashEdDSA {
		r := minisign.NewReader(message)
		if _, err := io.CopyBuffer(struct{ io.Writer }{io.Discard}, r, make([]byte, copyChunk)); err != nil {
			return Signature{}, err
		}
		good = func(key minisign.PublicKey) bool { return r.Verify(key, s.text) }
	} else {
		if size > maxLegacy {
			return bad("sign it again with a newer minisign, or with -H", "is in minisign's old format, which cannot be used for files of more than %d MiB", maxLegacy>>20)
		}
		data, err := io.ReadAll(io.LimitReader(message, maxLegacy+1))
		if err != nil {
			return Signature{}, err
		}
		good = func(key minisign.PublicKey) bool { return minisign.Verify(key, data, s.text) }
	}
	for _, m := range candidates {
		if good(m.key) {
			return Signature{Key: m.key.String(), KeyName: printable(m.name), Comment: printableText(parsed.TrustedComment, maxComment)}, nil
		}
	}
	return bad("the signature is of another file, or one of the two was changed; fetch both again", "is not of this file")
}

// printableText keeps what can be printed, at most that many characters.
func printableText(s string, most int) string {
	r := []rune(strings.Map(func(r rune) rune {
		if unicode.IsPrint(r) {
			return r
		}
		return -1
	}, s))
	return string(r[:min(len(r), most)])
}
