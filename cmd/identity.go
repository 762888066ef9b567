package cmd

import (
	"encoding/json"
	"errors"
	"fmt"

	"github.com/zdt-dev/zdt/release"
)

// identity is what a transaction is known by, and who asked for it. As a hidden flag it comes from the zdt that has
// detached it: the process of a transient unit would say that root did, whom nobody saw log in.
type identity struct {
	TxID string       `json:"txid"`
	Who  *release.Who `json:"who"` // nil: whoever runs this process
}

// newIdentity is that of a transaction which begins in this process.
func newIdentity() (identity, error) {
	txid, err := release.NewTxID()
	return identity{TxID: txid}, err
}

// detached tells whether another zdt has asked for it, and waits for its end elsewhere.
func (i identity) detached() bool { return i.Who != nil }

func (i identity) who() release.Who {
	if i.Who != nil {
		return *i.Who
	}
	return release.Identify()
}

// check refuses an identity that is not believed. Who has logged in cannot give himself out for somebody else: the kernel sets
// the login uid once, and a unit of the system manager has none. A user manager has that of its user, whoever asks for
// something there, and its user can write whatever he likes into his own history.
func (i identity) check(userManager bool, own *uint32) error {
	if !i.detached() || userManager || own == nil || i.Who.LoginUID != nil && *i.Who.LoginUID == *own {
		return nil
	}
	return usage("--as is for the units that zdt itself starts", "login uid %d asks, and --as says otherwise", *own)
}

// Set reads the hidden flag --as.
func (i *identity) Set(s string) error {
	var got identity
	if err := json.Unmarshal([]byte(s), &got); err != nil {
		return err
	}
	switch {
	case !release.ValidTxID(got.TxID):
		return fmt.Errorf("%q is not the ID of a transaction", got.TxID)
	case got.Who == nil:
		return errors.New("it does not say who")
	}
	*i = got
	return nil
}

func (i *identity) String() string { return "" }

// Type names the flag's value in --help.
func (i *identity) Type() string { return "JSON" }

// flag is what Set reads.
func (i identity) flag() (string, error) {
	text, err := json.Marshal(i)
	return string(text), err
}
