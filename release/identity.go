package release

import (
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"os"
	"os/user"
	"strconv"
	"strings"
	"time"
	"unicode"
)

// Who asked for an upgrade. The login uid is the one to believe: the kernel
// sets it once at login and passes it on through sudo and su. SUDO_USER is an
// environment variable, so root can set it to anything.
type Who struct {
	UID  int    `json:"uid"` // real uid of the process
	User string `json:"user,omitempty"`
	// LoginUID is nil if nobody logged in: a timer, a boot unit, a container.
	LoginUID *uint32 `json:"loginuid,omitempty"`
	SudoUser string  `json:"sudo_user,omitempty"`
	Host     string  `json:"host,omitempty"`
	// Operator: not root asked, but a member of the service's operators, by a file that belongs to UID; root's zdt carried it
	// out. There is no login uid then.
	Operator bool `json:"operator,omitempty"`
}

// noLoginUID is what /proc/self/loginuid says before a login: (uid_t)-1.
const noLoginUID = 4294967295

// Identify says who runs this process. What cannot be found out is left out.
func Identify() Who {
	loginuid, _ := os.ReadFile("/proc/self/loginuid") // absent without CONFIG_AUDIT
	host, _ := os.Hostname()
	return identify(os.Getuid(), string(loginuid), os.Getenv("SUDO_USER"), host, lookupName)
}

func identify(uid int, loginuid, sudoUser, host string, name func(uid int) string) Who {
	w := Who{
		UID:      uid,
		User:     printable(name(uid)),
		SudoUser: printable(sudoUser),
		Host:     printable(host),
	}
	if n, err := strconv.ParseUint(strings.TrimSpace(loginuid), 10, 32); err == nil && n != noLoginUID {
		u := uint32(n)
		w.LoginUID = &u
	}
	return w
}

// Operator says who a user is that asked by a file of theirs.
func Operator(uid int) Who {
	host, _ := os.Hostname()
	w := identify(uid, "", "", host, lookupName)
	w.Operator = true
	return w
}

// String is short: the user who typed it, and the one it ran as.
func (w Who) String() string {
	name := w.User
	if name == "" {
		name = "uid " + strconv.Itoa(w.UID)
	}
	if w.SudoUser != "" && w.SudoUser != w.User {
		name = w.SudoUser + " as " + name
	}
	if w.LoginUID != nil && int(*w.LoginUID) != w.UID {
		name += fmt.Sprintf(", login uid %d", *w.LoginUID)
	}
	if w.Operator {
		name += ", as an operator"
	}
	return name
}

func lookupName(uid int) string {
	u, err := user.LookupId(strconv.Itoa(uid))
	if err != nil {
		return ""
	}
	return u.Username
}

// printable keeps what comes from outside from playing with the terminal of
// whoever reads the history.
func printable(s string) string {
	const most = 64
	s = strings.Map(func(r rune) rune {
		if unicode.IsPrint(r) {
			return r
		}
		return -1
	}, s)
	if r := []rune(s); len(r) > most {
		s = string(r[:most])
	}
	return s
}

const txIDTime = "20060102T150405"

// NewTxID returns a new ID for an upgrade: UTC to the millisecond, so that IDs
// sort by time, and random digits. It can be part of a file or unit name.
func NewTxID() (string, error) {
	var b [4]byte
	if _, err := rand.Read(b[:]); err != nil {
		return "", err
	}
	return txID(time.Now(), b), nil
}

func txID(t time.Time, b [4]byte) string {
	t = t.UTC()
	return fmt.Sprintf("%s%03dZ-%s", t.Format(txIDTime), t.Nanosecond()/1e6, hex.EncodeToString(b[:]))
}

// ValidTxID tells whether s has the form of the ID of an upgrade. Such a
// string is safe as a part of a file or unit name.
func ValidTxID(s string) bool {
	stamp, random, ok := strings.Cut(s, "-")
	if !ok || len(random) != 8 || !isHex(random) || len(stamp) != len(txIDTime)+4 {
		return false
	}
	millis, ok := strings.CutSuffix(stamp[len(txIDTime):], "Z")
	if !ok || strings.Trim(millis, "0123456789") != "" {
		return false
	}
	_, err := time.Parse(txIDTime, stamp[:len(txIDTime)])
	return err == nil
}
