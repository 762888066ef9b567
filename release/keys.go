package release

import (
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"slices"
	"strings"

	"aead.dev/minisign"
)

const (
	minisignSuffix = ".pub"            // of a file with one public key
	signersFile    = "allowed_signers" // see ssh-keygen(1)
	// SSHNamespace is what a signature by ssh-keygen -Y sign has to be made for
	// (-n): one made for git or mail says nothing about a program.
	SSHNamespace = "zdt"
)

// Keys are the keys of those whose releases are believed.
type Keys struct {
	Dir string

	minisign []minisignKey
	signers  []byte // allowed_signers as it is; nil if there is none
}

type minisignKey struct {
	name string // of its file
	key  minisign.PublicKey
}

// ReadKeys reads the keys in dir, an absolute path such as /etc/zdt/keys: the
// minisign keys in *.pub and, for ssh-keygen, the file allowed_signers. Other
// names are left alone. The directory and the files must belong to root (or to
// the caller) and be writable for nobody else; no part may be a symbolic link
// of somebody else's. Without a directory there are no keys, which is no error.
func ReadKeys(dir string) (Keys, error) {
	k, err := readKeys(dir)
	if err != nil {
		return Keys{}, fmt.Errorf("read keys in %s: %w", dir, err)
	}
	return k, nil
}

func readKeys(dir string) (Keys, error) {
	k := Keys{Dir: dir}
	d, err := openTrusted(dir, false)
	if errors.Is(err, fs.ErrNotExist) {
		return k, nil
	}
	if err != nil {
		return k, err
	}
	defer d.Close()
	names, err := d.Readdirnames(-1)
	if err != nil {
		return k, err
	}
	slices.Sort(names)
	for _, name := range names {
		if name != signersFile && !strings.HasSuffix(name, minisignSuffix) {
			continue
		}
		data, err := readRecord(d, name)
		if err != nil {
			return k, err
		}
		if name == signersFile {
			k.signers = data
			continue
		}
		var key minisign.PublicKey
		if err := key.UnmarshalText([]byte(strings.TrimSpace(string(data)))); err != nil {
			return k, hint(fmt.Errorf("%s is not a minisign key", name),
				"*%s files hold minisign keys; those of ssh-keygen belong into %s", minisignSuffix, filepath.Join(dir, signersFile))
		}
		k.minisign = append(k.minisign, minisignKey{name, key})
	}
	return k, nil
}

// Empty tells whether there is no key at all.
func (k Keys) Empty() bool { return len(k.minisign) == 0 && len(k.signers) == 0 }

// Require is a service's policy about signatures.
type Require string

// The policies. The empty one is RequireNone.
const (
	RequireNone     Require = "no"
	RequireAny      Require = "yes"      // of a known format
	RequireMinisign Require = "minisign" // of this one
	RequireSSH      Require = "ssh"
)

// Needed tells whether a release needs a signature at all.
func (q Require) Needed() bool { return q != "" && q != RequireNone }

// ErrUnsigned: a policy asks for a signature that a release does not have.
var ErrUnsigned = errors.New("not signed as the service requires")

// Believe tells whether r satisfies the policy by the signature that was
// verified when it was staged: nil, or an error that is ErrUnsigned. A key that
// was taken out of the directory since is believed no more.
func (k Keys) Believe(r Release, q Require) error {
	switch s := r.Signature; {
	case !q.Needed():
		return nil
	case s == nil:
		return hint(fmt.Errorf("release %s: %w: it was staged without a signature", r.ID, ErrUnsigned),
			"stage the same file again with --signature")
	case !q.takes(s.Format):
		return hint(fmt.Errorf("release %s: %w: it has a signature of %s, and not of %s", r.ID, ErrUnsigned, s.Format, q),
			"stage the same file again with the other signature")
	case !k.has(*s):
		return hint(fmt.Errorf("release %s: %w: the key that signed it (%s) is not in %s any more", r.ID, ErrUnsigned, s.KeyName, k.Dir),
			"stage the same file again with the signature of another key")
	}
	return nil
}

// takes tells whether a signature of that format is of the kind asked for.
func (q Require) takes(f SignatureFormat) bool {
	return !q.Needed() || q == RequireAny || string(q) == string(f)
}

// has tells whether the key of a recorded signature is still trusted.
func (k Keys) has(s Signature) bool {
	if s.Format == FormatMinisign {
		return slices.ContainsFunc(k.minisign, func(m minisignKey) bool { return m.key.String() == s.Key })
	}
	return slices.Contains(fingerprints(k.signers), s.Key)
}

// fingerprints are those of the keys in an allowed_signers file, as ssh-keygen
// prints them. A key follows its type: PRINCIPALS [OPTIONS] TYPE KEY [COMMENT].
func fingerprints(signers []byte) []string {
	var out []string
	for line := range strings.Lines(string(signers)) {
		if strings.HasPrefix(strings.TrimSpace(line), "#") {
			continue
		}
		fields := strings.Fields(line)
		for i := 1; i+1 < len(fields); i++ {
			// The key begins with the length and the name of its type.
			blob, err := base64.StdEncoding.DecodeString(fields[i+1])
			if err == nil && len(blob) > 4 && strings.HasPrefix(string(blob[4:]), fields[i]) {
				sum := sha256.Sum256(blob)
				out = append(out, "SHA256:"+base64.RawStdEncoding.EncodeToString(sum[:]))
				break
			}
		}
	}
	return out
}
