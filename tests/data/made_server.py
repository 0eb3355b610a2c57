"""A web server for tests that drops, stalls, cuts, corrupts and refuses, as it is told for each request."""

import base64
import http.server
import re
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


class Faulty:
    """What a server does. `faults` are taken one a request, in order; after the last it answers as it should.

    A fault is a status (500, (429, {"Retry-After": "0"})), ("drop", n) or ("stall", n) after n bytes of the body,
    ("cut", n) that says it is all there is, ("flip", n) with the n-th byte changed, or "shut" before any answer.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.faults, self.ranges, self.tags, self.lengths = folder, list[Any](), True, True, True
        self.requests: list[str] = []  # path, and from which byte on
        self.sent = 0  # bytes of bodies
        self.user: str | None = None  # name:password of those who are let in; None for all
        self.credentials: list[str | None] = []  # as they came with each request
        self.base = ""

    def stall(self) -> None:
        time.sleep(3)


def _handler(faulty: Faulty) -> type[http.server.BaseHTTPRequestHandler]:
    class Handler(http.server.BaseHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None:
            pass

        def do_GET(self) -> None:
            wanted = self.headers.get("Range", "")
            start = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted and faulty.ranges else 0
            faulty.requests.append(f"{self.path} {wanted}".strip())
            given = self.headers.get("Authorization")
            faulty.credentials.append(given)
            if faulty.user is not None and given != f"Basic {base64.b64encode(faulty.user.encode()).decode()}":
                self.send_response(401)
                self.send_header("WWW-Authenticate", 'Basic realm="here"')
                self.end_headers()
                return
            fault = faulty.faults.pop(0) if faulty.faults else None
            path = faulty.folder / self.path.partition("?")[0].lstrip("/")
            if fault == "shut":
                self.connection.close()
                return
            if isinstance(fault, int):
                self.send_error(fault)
                return
            if isinstance(fault, tuple) and isinstance(fault[0], int):
                self.send_response(fault[0])
                for name, value in fault[1].items():
                    self.send_header(name, value)
                self.end_headers()
                return
            if not path.is_file():
                self.send_error(404)
                return
            kind, place = fault if isinstance(fault, tuple) else ("", -1)
            whole = path.read_bytes()
            if kind == "flip":
                whole = whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :]
            body = whole[start:]
            if kind == "cut":
                body = body[:place]
            self.send_response(206 if start else 200)
            if start:
                self.send_header("Content-Range", f"bytes {start}-{len(whole) - 1}/{len(whole)}")
            if faulty.lengths:
                self.send_header("Content-Length", str(len(body)))
            if faulty.tags:
                self.send_header("ETag", f'"{path.stat().st_mtime_ns}"')
            self.end_headers()
            sent = body[:place] if kind in ("drop", "stall") else body
            faulty.sent += len(sent)  # before, for the reader may be quicker than the next line here
            self.wfile.write(sent)
            if kind == "stall":
                self.wfile.flush()
                faulty.stall()

    return Handler


class _Server(http.server.ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: object, client_address: object) -> None:
        pass  # of clients that went away


@contextmanager
def served(folder: Path, setup: Callable[[Faulty], None] = lambda faulty: None) -> Iterator[Faulty]:
    """A server of the files in a folder, on a port of its own."""
    faulty = Faulty(folder)
    setup(faulty)
    with _Server(("127.0.0.1", 0), _handler(faulty)) as server:
        faulty.base = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        thread.start()
        try:
            yield faulty
        finally:
            server.shutdown()
            thread.join()


@contextmanager
def told(*patterns: str) -> Iterator[list[str]]:
    """Each pattern is found in a warning, and there is none that none of them is found in, nor one of two lines."""
    said: list[str] = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield said
    said += [str(warning.message) for warning in caught]
    for pattern in patterns:
        assert any(re.search(pattern, line) for line in said), (pattern, said)
    for line in said:
        assert "\n" not in line
        assert any(re.search(pattern, line) for pattern in patterns), line
