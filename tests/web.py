"""A web server of one file, with every fault that a download can meet."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import attrs


@attrs.define
class Web:
    """What the server says, and what it was asked.

    Attributes:
        address: Without a slash at the end.
        content: Of the file, under every path.
        tag: Its ETag.
        status: What it answers with.
        cut: After how many bytes it hangs up.
        ranges: Whether it sends parts of the file.
        lies: Whether it sends the whole in place of a part.
        asked: (method, range) of each request.
        paths: Of all requests.
    """

    address: str = ""
    content: bytes = b""
    tag: str = '"one"'
    status: int = 200
    cut: int | None = None
    ranges: bool = True
    lies: bool = False
    asked: list[tuple[str, str | None]] = attrs.field(factory=list)
    paths: set[str] = attrs.field(factory=set)


@contextlib.contextmanager
def serving() -> Iterator[Web]:
    """A context in which the server runs."""
    web = Web()

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.answer()

        def do_GET(self) -> None:
            body = self.answer()
            self.wfile.write(body if web.cut is None else body[: web.cut])

        def answer(self) -> bytes:
            wanted = self.headers.get("Range")
            web.asked.append((self.command, wanted))
            web.paths.add(self.path)
            body, status = web.content, web.status
            if wanted and web.ranges and not web.lies and status == 200:
                body, status = body[int(wanted.removeprefix("bytes=").rstrip("-")) :], 206
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.send_header("ETag", web.tag)
            if web.ranges:
                self.send_header("Accept-Ranges", "bytes")
            self.end_headers()
            return body

        def log_message(self, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        web.address = f"http://127.0.0.1:{server.server_address[1]}"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield web
        finally:
            server.shutdown()
            thread.join()
