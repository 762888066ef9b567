// Package guest boots a complete systemd as PID 1 of fresh namespaces, so that a test can install units, restart
// journald or stop the machine without the host noticing.
//
// A guest is a process tree, not a virtual machine: PID 1 is a child of the test process in its own pid, mount, uts,
// ipc, network and cgroup namespaces. Its root is an overlay whose lower layer is an image made by debootstrap (see
// [Store]) and whose upper layer is a tmpfs, so a guest starts in about a second, sees nothing of what the host has
// installed or enabled, and leaves nothing on disk.
//
// Lifecycle in a test:
//
//	guest.Each(t, func(t *testing.T, g *guest.Guest) { // once per systemd version, in parallel
//		g.Copy(binary, "/usr/bin/hello", 0o755)
//		g.MustRun(t, "systemctl", "start", "hello")
//	})
//
// and in a program: [Start], then [Guest.Close].
//
// What holds afterwards: when Close returns, the guest's processes are gone and reaped, its mounts went with its mount
// namespace, and its cgroups are removed. When the creating process is killed instead, the kernel kills PID 1 with it
// (PDEATHSIG), and with PID 1 every process of the guest; the empty cgroup directories that remain are removed by the
// next guest that boots on the machine.
//
// The environment decides about tests: ZDT_SYSTEST=require makes a test that cannot boot a guest fail instead of skip,
// ZDT_SYSTEST=off skips all of them, ZDT_GUEST_KEEP=1 leaves guests running for a person to look at, and ZDT_CACHE moves
// the images.
//
// What it does not promise: isolation from a hostile guest. Root inside is root outside.
package guest
