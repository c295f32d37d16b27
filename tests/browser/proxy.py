"""A reverse proxy between a browser and a site."""

import http.client
import http.server
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from urllib.parse import urlsplit

from tests.browser.conftest import Site


class Proxy(http.server.BaseHTTPRequestHandler):
    """A reverse proxy that takes a path of its own off, and passes each piece of an answer on as it comes."""

    protocol_version = "HTTP/1.1"
    upstream = ""
    path_before = "/behind/a/proxy"

    def do_GET(self) -> None:
        self._pass_on(None)

    def do_POST(self) -> None:
        self._pass_on(self.rfile.read(int(self.headers["content-length"])))

    def _pass_on(self, body: bytes | None) -> None:
        assert self.path.startswith(self.path_before)
        own = {name: text for name, text in self.headers.items() if name.lower() != "host"}
        with closing(http.client.HTTPConnection(self.upstream, timeout=20)) as connection:
            connection.request(self.command, self.path.removeprefix(self.path_before), body, own)
            answer = connection.getresponse()
            self.send_response(answer.status)
            for name, text in answer.getheaders():
                if name.lower() not in ("content-length", "transfer-encoding", "connection", "keep-alive"):
                    self.send_header(name, text)
            self.send_header("connection", "close")
            self.end_headers()
            self.write_body(answer)

    def write_body(self, answer: http.client.HTTPResponse) -> None:
        while piece := answer.read1(65_536):
            self.wfile.write(piece)

    def log_message(self, *_: object) -> None:
        """Says nothing."""


@contextmanager
def proxy_of(site: Site, kind: type[Proxy] = Proxy) -> Iterator[str]:
    """Runs a proxy before a site; yields its URL."""
    handler = type("Behind", (kind,), {"upstream": urlsplit(site.url).netloc})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}{Proxy.path_before}"
        finally:
            server.shutdown()
            thread.join()
