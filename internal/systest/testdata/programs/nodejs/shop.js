#!/usr/bin/node
"use strict";
const http = require("node:http");
const net = require("node:net");

const VERSION = "v0000";

const server = http.createServer((request, response) => {
  response.setHeader("X-Version", VERSION);
  if (stopping) response.setHeader("Connection", "close");
  if (request.method === "POST") {
    request.pipe(response);
  } else {
    response.end(`${VERSION} pid ${process.pid}\n`);
  }
});

// The first inherited socket has the number 3: sd_listen_fds(3).
server.listen(process.env.LISTEN_FDS ? { fd: 3 } : { port: 8080 });

// SIGTERM would just end Node.js. http.Server's close() would end idle connections at once, and with them requests
// that are on their way; net.Server's only accepts no more. Whoever asks again is told to come back on a new
// connection, and who does not within ten seconds finds the old one closed.
let stopping = false;
process.on("SIGTERM", () => {
  stopping = true;
  net.Server.prototype.close.call(server);
  setTimeout(() => server.closeIdleConnections(), 10_000).unref();
});
