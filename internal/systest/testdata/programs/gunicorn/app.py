import os

VERSION = "v0000"


def app(environ, start_response):
    if environ["REQUEST_METHOD"] == "POST":
        body = environ["wsgi.input"].read()
    else:
        body = f"{VERSION} pid {os.getpid()}\n".encode()
    start_response("200 OK", [("X-Version", VERSION), ("Content-Length", str(len(body)))])
    return [body]
