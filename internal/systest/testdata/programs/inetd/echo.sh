#!/bin/bash
# An HTTP server of the kind that inetd starts: one process for each connection, which is its standard input and
# output. socat is the inetd here.
set -u
readonly VERSION=v0000

if [[ ${1:-} != serve ]]; then
	# Whoever started this script takes its end for the end of all. It ends when the last connection has, which is
	# when nobody has the pipe open any more.
	exec 8< <(exec 9>&1; PARENT=$BASHPID exec socat "ACCEPT-FD:$1,fork" "EXEC:$0 serve,nofork")
	trap "kill $!; stopped=0" TERM
	read -r -u 8
	exit "${stopped:-1}"
fi

crlf=$'\r\n'
while true; do
	# Between two requests: is there another, or has socat ended?
	request=
	until IFS= read -r -t 0.2 line; do
		[[ $? -gt 128 ]] || exit 0
		request+=$line
		[[ -n $request ]] || kill -0 "$PARENT" 2>/dev/null || exit 0
	done
	request+=$line
	length=0 close=
	while IFS= read -r line && [[ $line != $'\r' ]]; do
		line=${line,,}
		case $line in
		content-length:*) length=${line//[^0-9]/} ;;
		connection:*close*) close=yes ;;
		esac
	done
	if [[ $request = POST* ]]; then
		IFS= read -r -N "$length" body
	else
		body="$VERSION pid $$"$'\n'
	fi
	kill -0 "$PARENT" 2>/dev/null || close=yes
	printf 'HTTP/1.1 200 OK\r\nX-Version: %s\r\nContent-Length: %d\r\n%s\r\n%s' \
		"$VERSION" "${#body}" "${close:+Connection: close$crlf}" "$body"
	[[ -z $close ]] || exit 0
done
