// Package operators is the way by which a user who is not root asks for the upgrade of one service. A directory belongs to the
// service:
//
//	NAME/           root:GROUP 0750
//	    incoming/   root:GROUP 3770   operators put ID.request and ID.program here
//	    answers/    root:GROUP 0750   root says in ID.ndjson how far it is, and how it ended
//	    taken/      root       0700   what was taken from incoming, copied, by the ID of its upgrade
//
// incoming is set-group-ID, so that what is made there has the group, and sticky, so that no operator can move or remove
// what another one has made. Nothing in it is believed: Box opens without following links, only regular files
// with one name that belong to an unprivileged user and can be written by nobody else, of a bounded size, and copies before
// anybody looks at the content. The owner of the file is who asks.
package operators
