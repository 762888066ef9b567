VERSION = "v0000"

run lambda { |env|
  body = env["REQUEST_METHOD"] == "POST" ? env["rack.input"].read : "#{VERSION} pid #{Process.pid}\n"
  [200, { "x-version" => VERSION, "content-length" => body.bytesize.to_s }, [body]]
}
