package release

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"time"

	"github.com/zdt-dev/zdt/internal/memfile"
)

// verifySSH has ssh-keygen verify: it alone knows all that can stand in an
// allowed_signers file (patterns, validity, namespaces, certificates). OpenSSH
// 8.2 is the first that finds the signer.
//
// Both files go to it by descriptor: it judges what was read and checked here.
func (k Keys) verifySSH(ctx context.Context, s detached, message io.Reader) (Signature, error) {
	bad := func(help, format string, args ...any) (Signature, error) {
		return Signature{}, &SignatureError{s.path, fmt.Errorf(format, args...), help}
	}
	if len(k.signers) == 0 {
		return bad("list the signers there, as ssh-keygen(1) describes", "is by ssh-keygen, and there is no %s/%s", k.Dir, signersFile)
	}
	tool, err := exec.LookPath("ssh-keygen")
	if err != nil {
		return bad("install it (openssh-client)", "needs ssh-keygen, which is not on this host")
	}
	var files []*os.File
	defer func() {
		for _, f := range files {
			f.Close()
		}
	}()
	for _, data := range [][]byte{s.text, k.signers} {
		fd, err := memfile.Write("zdt-signature", data)
		if err != nil {
			return Signature{}, err
		}
		files = append(files, os.NewFile(uintptr(fd), "zdt-signature"))
	}
	run := func(stdin io.Reader, args ...string) (stdout, stderr string, err error) {
		cmd := exec.CommandContext(ctx, tool, append([]string{"-Y"}, args...)...)
		cmd.Args = append(cmd.Args, "-s", "/proc/self/fd/3", "-f", "/proc/self/fd/4")
		cmd.ExtraFiles = files
		cmd.Env = []string{"LC_ALL=C", "PATH=/usr/bin:/bin"}
		cmd.Stdin = stdin
		cmd.WaitDelay = time.Second
		var out, problems bytes.Buffer
		cmd.Stdout, cmd.Stderr = &out, &problems
		err = cmd.Run()
		return out.String(), problems.String(), err
	}
	var exit *exec.ExitError
	out, problems, err := run(nil, "find-principals")
	signer, _, _ := strings.Cut(out, "\n")
	switch {
	case err != nil && !errors.As(err, &exit):
		return Signature{}, fmt.Errorf("run %s: %w", tool, err)
	case err != nil || signer == "":
		return bad("if the key is to be trusted, list it there", "is by nobody that %s/%s lists%s", k.Dir, signersFile, why(problems))
	}
	out, problems, err = run(message, "verify", "-n", SSHNamespace, "-I", signer)
	switch {
	case err != nil && !errors.As(err, &exit):
		return Signature{}, fmt.Errorf("run %s: %w", tool, err)
	case err != nil && strings.Contains(problems, "namespace"):
		return bad("sign it with: ssh-keygen -Y sign -n "+SSHNamespace+" -f KEY FILE", "was made for something else%s", why(problems))
	case err != nil:
		return bad("the signature is of another file, or one of the two was changed; fetch both again", "is not of this file%s", why(problems))
	}
	// Good "zdt" signature for SIGNER with TYPE key SHA256:…
	_, key, found := strings.Cut(strings.TrimSpace(out), " key SHA256:")
	if !found {
		return Signature{}, fmt.Errorf("cannot understand ssh-keygen: %q", out)
	}
	return Signature{Key: "SHA256:" + key, KeyName: printable(signer)}, nil
}

// why is what ssh-keygen says, without its verdict.
func why(problems string) string {
	line, _, _ := strings.Cut(problems, "\n")
	if line = printableText(line, maxComment); line == "" || strings.HasPrefix(line, "Could not verify") {
		return ""
	}
	return " (" + line + ")"
}
