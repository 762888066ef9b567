#!/usr/bin/perl
# An HTTP server as one writes it for Server::Starter: one process, one loop.
use strict;
use warnings;
use IO::Select;
use IO::Socket::INET;
use Server::Starter qw(server_ports);
use Time::HiRes qw(time);

my $VERSION = "v0000";

my ($fd) = values %{ server_ports() };
my $listener = IO::Socket::INET->new_from_fd($fd, "r") or die "descriptor $fd: $!";
$listener->blocking(0);    # another generation may be faster

# Once told to stop it accepts no more, and tells whoever asks again to come back on a new connection. Who does not within
# a second finds the old one closed.
my $until;
$SIG{TERM} = sub { $until = time + 1 };
$SIG{PIPE} = "IGNORE";

my $reads = IO::Select->new($listener);
my %client;                # by descriptor: the socket, and what it has sent so far
while (1) {
	if ($until) {
		$reads->remove($listener);
		exit 0 if !%client || time >= $until;
	}
	for my $socket ($reads->can_read(0.05)) {
		if ($socket == $listener) {
			my $new = $listener->accept or next;
			$new->blocking(1);
			$client{ fileno $new } = { socket => $new, got => "" };
			$reads->add($new);
			next;
		}
		my $c = $client{ fileno $socket };
		hang_up($c) if !sysread($socket, $c->{got}, 65536, length $c->{got}) || !serve($c);
	}
}

# serve answers what has come whole, and returns whether the connection goes on.
sub serve {
	my ($c) = @_;
	while ($c->{got} =~ /^(\w+) .*?\r\n\r\n/s) {
		my ($method, $head) = ($1, substr($c->{got}, 0, $+[0]));
		my $length = $head =~ /\r\nContent-Length: (\d+)/i ? $1 : 0;
		return 1 if length($c->{got}) < length($head) + $length;
		my $body = substr($c->{got}, length $head, $length);
		substr($c->{got}, 0, length($head) + $length) = "";
		$body = "$VERSION pid $$\n" if $method ne "POST";
		my $last = $until || $head =~ /\r\nConnection: close/i;
		syswrite $c->{socket}, "HTTP/1.1 200 OK\r\nX-Version: $VERSION\r\nContent-Length: "
			. length($body) . "\r\n" . ($last ? "Connection: close\r\n" : "") . "\r\n$body";
		return 0 if $last;
	}
	return 1;
}

sub hang_up {
	my ($c) = @_;
	$reads->remove($c->{socket});
	delete $client{ fileno $c->{socket} };
	close $c->{socket};
}
