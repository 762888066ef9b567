package cmd

import (
	"context"
	"fmt"
	"os/exec"
	"os/user"
	"slices"
	"strconv"
	"strings"

	"github.com/zdt-dev/zdt/dbusctl"
)

// inGroup tells whether the user is a member of the group now. Users of a directory service are not in the files that this
// program reads, so the tool of the host is asked as well.
func inGroup(ctx context.Context, uid int, gid uint32) (bool, error) {
	want := strconv.FormatUint(uint64(gid), 10)
	if u, err := user.LookupId(strconv.Itoa(uid)); err == nil {
		if ids, err := u.GroupIds(); err == nil && slices.Contains(ids, want) {
			return true, nil
		}
	}
	out, err := exec.CommandContext(ctx, "id", "-G", strconv.Itoa(uid)).Output()
	if err != nil {
		return false, fmt.Errorf("run id: %w", err)
	}
	return slices.Contains(strings.Fields(string(out)), want), nil
}

func groupName(gid uint32) string {
	if g, err := user.LookupGroupId(strconv.FormatUint(uint64(gid), 10)); err == nil {
		return g.Name
	}
	return fmt.Sprintf("%d", gid)
}

func userName(uid int) string {
	if u, err := user.LookupId(strconv.Itoa(uid)); err == nil {
		return u.Username
	}
	return fmt.Sprintf("uid %d", uid)
}

// serviceIn tells whether the user of a service is in a group. A dynamic one has no other than its own.
func serviceIn(ctx context.Context, u dbusctl.Unit, gid uint32) (bool, error) {
	if u.User == "" || u.DynamicUser {
		return false, nil
	}
	name, err := user.Lookup(u.User)
	if err != nil {
		if name, err = user.LookupId(u.User); err != nil {
			return false, err
		}
	}
	uid, err := strconv.Atoi(name.Uid)
	if err != nil {
		return false, err
	}
	return inGroup(ctx, uid, gid)
}
