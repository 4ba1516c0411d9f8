"""A local HTTP server of a single file, which can break off, change the file, or answer with errors."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest


@dataclass
class Server:
    """The state of an HTTP server for a single file.

    ``breaks`` lists the numbers of bytes after which its next responses break off, one per response.
    """

    content: bytes
    file: str
    version: str | None = '"1"'
    breaks: list[int] = field(default_factory=list)
    ranges: bool = True
    status: int = 200
    answer: bytes = b""
    requested: list[str | None] = field(default_factory=list)
    url: str = ""


@contextlib.contextmanager
def serving(content: bytes, file: str) -> Iterator[Server]:
    """Serve ``content`` as ``file`` in the folder ``url`` of the server. Proxies are not used meanwhile."""
    state = Server(content, file)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> object:
            requested, data, start = self.headers["Range"], state.content, 0
            state.requested.append(requested)
            if state.answer:
                return self.wfile.write(state.answer)
            if state.status != 200 or not self.path.endswith(f"/{state.file}"):
                return self.send_error(state.status if state.status != 200 else 404)
            if requested and state.ranges and self.headers["If-Range"] == state.version:
                start = int(requested.removeprefix("bytes=").removesuffix("-"))
                if start >= len(data):
                    return self.send_error(416)
                self.send_response(206)
                self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
            else:
                self.send_response(200)
            if state.version:
                self.send_header("ETag", state.version)
            self.send_header("Content-Length", str(len(data) - start))
            self.end_headers()
            stop = start + state.breaks.pop(0) if state.breaks else len(data)
            self.wfile.write(data[start:stop])
            return None

        def log_message(self, *_: object) -> None:
            pass

    listening = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=listening.serve_forever, args=(0.01,))
    thread.start()
    state.url = f"http://127.0.0.1:{listening.server_port}/somewhere"
    try:
        with pytest.MonkeyPatch.context() as patch:
            for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
                patch.delenv(name, raising=False)
            yield state
    finally:
        listening.shutdown()
        thread.join()
        listening.server_close()
