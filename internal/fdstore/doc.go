// Package fdstore puts the sockets of a program that runs into systemd's file descriptor store for its service, so that
// the program which systemd starts in its place inherits them. Nobody is refused in between: the sockets
// listen all the time, and who connects waits in their queues.
//
// systemd takes descriptors from the processes of the service alone (sd_pid_notify_with_fds(3), FDSTORE=1). So the work is
// done by a command that systemd itself runs, as a control process of the service: ExecReload= with NotifyAccess=exec. It
// runs as root, takes duplicates with pidfd_getfd(2) (Linux 5.6), and the program need not know.
package fdstore
