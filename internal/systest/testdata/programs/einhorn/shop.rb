#!/usr/bin/ruby
# A server of its own making around puma's HTTP, as one writes it for einhorn.
require "socket"
require "puma"
require "puma/server"

VERSION = "v0000"

app = lambda { |env|
  body = env["REQUEST_METHOD"] == "POST" ? env["rack.input"].read : "#{VERSION} pid #{Process.pid}\n"
  [200, { "x-version" => VERSION, "content-length" => body.bytesize.to_s }, [body]]
}

server = Puma::Server.new(app)
ENV.fetch("EINHORN_FDS").split.each do |fd|
  server.binder.ios << TCPServer.for_fd(fd.to_i)
end

# puma's own stop finishes what has begun.
Signal.trap("TERM") { server.stop }
server.run.join
