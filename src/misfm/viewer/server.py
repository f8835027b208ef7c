"""The viewer's server: loopback only, everything behind a random token, no file named by its path.

A page of another site that is open in the same browser can send requests here, too. It does not know the
token, which is in the path of the address; the ``Host`` header must be this machine's, so that no name that
points here gets in. What is answered forbids to be embedded, and the page to load anything from elsewhere.
"""

from __future__ import annotations

import gzip
import hmac
import json
import re
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from misfm.errors import MisfmError
from misfm.terminal import logger
from misfm.viewer.nifti import FEW_VOXELS, MOST_VOXELS
from misfm.viewer.session import LABEL_FILES, Session, sentence

ADDRESS = "127.0.0.1"
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self' data:; "
    "img-src 'self' data: blob:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
"""What the page may load: itself. NiiVue has its font and colours within itself, as ``data:``."""
HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-store",
}
PAGE = {
    "": ("index.html", "text/html; charset=utf-8"),
    "viewer.css": ("viewer.css", "text/css; charset=utf-8"),
    "viewer.js": ("viewer.js", "text/javascript; charset=utf-8"),
    "scene.js": ("scene.js", "text/javascript; charset=utf-8"),
    "niivue.js": ("niivue.js", "text/javascript; charset=utf-8"),
    "niivue-licence.txt": ("niivue-licence.txt", "text/plain; charset=utf-8"),
}
"""Files of the page by what follows the token, and there are no others."""
AMOUNTS = {"whole": float("inf"), "small": FEW_VOXELS}
"""Most voxels of a large scan, by what follows the question mark in an address."""
BINARY, JSON = "application/octet-stream", "application/json"
_CASE = re.compile(r"case/(\d{1,7})/(facts|labels|image-(\d{1,3})\.nii|(\w+)\.nii)")
_PIECE = 1 << 20
"""Bytes that are written at a time."""


@dataclass(frozen=True)
class Answer:
    """What a request gets.

    Attributes:
        parts: of the body, in order.
        kind: its type.
        status: of HTTP.
        headers: further ones.
    """

    parts: Sequence[memoryview | bytes]
    kind: str = JSON
    status: HTTPStatus = HTTPStatus.OK
    headers: dict[str, str] = field(default_factory=dict)

    @property
    def length(self) -> int:
        """Bytes of the body."""
        return sum(len(part) for part in self.parts)


class ViewerServer(ThreadingHTTPServer):
    """Serves a session on this machine.

    Args:
        session: what is viewed.
        port: to listen at; 0 takes a free one.

    Raises:
        OSError: the port is taken.
    """

    daemon_threads = True

    def __init__(self, session: Session, port: int = 0) -> None:
        super().__init__((ADDRESS, port), _Handler)
        self.session = session
        self.token = secrets.token_urlsafe(24)

    @property
    def address(self) -> str:
        """Where the page is, token included."""
        return f"http://{ADDRESS}:{self.server_port}/{self.token}/"

    def answer(self, path: str, *, packed: bool, most: float = MOST_VOXELS) -> Answer:
        """Answer what follows the token in an address.

        Args:
            path: that, without its query.
            packed: whether the browser takes gzip.
            most: voxels that it takes of a large scan.
        """
        if path in PAGE:
            name, kind = PAGE[path]
            return Answer([(Path(__file__).parent / "page" / name).read_bytes()], kind)
        if path == "cases.json":
            return _as_json(self.session.listing())
        match = _CASE.fullmatch(path)
        if match is None or int(match[1]) >= len(self.session.collection.cases):
            return _refusal(HTTPStatus.NOT_FOUND, "There is no such thing here.")
        number, what = int(match[1]), match[2]
        try:
            if what == "facts":
                return _as_json(self.session.image_facts(number, most=most))
            if what == "labels":
                return _as_json(self.session.label_facts(number))
            if match[3] is not None:
                return Answer(self.session.image_file(number, int(match[3]), most=most), BINARY)
            if match[4] not in LABEL_FILES:
                raise KeyError(what)
            return _label_map(self.session.label_file(number, match[4], most=most), packed)
        except KeyError:
            return _refusal(HTTPStatus.NOT_FOUND, f"This case has no {what}.")
        except (MisfmError, OSError, ValueError) as error:
            return _refusal(HTTPStatus.UNPROCESSABLE_ENTITY, sentence(error))
        except MemoryError:
            return _refusal(HTTPStatus.INSUFFICIENT_STORAGE, "There is not enough memory for this scan.")


class _Handler(BaseHTTPRequestHandler):
    server: ViewerServer
    server_version, sys_version = "misfm", ""
    protocol_version = "HTTP/1.1"
    timeout = 60

    def do_GET(self) -> None:
        """Answer with a body."""
        self._send(self._answer())

    def do_HEAD(self) -> None:
        """Answer without one."""
        self._send(self._answer(), with_body=False)

    def _answer(self) -> Answer:
        own = {f"{host}:{self.server.server_port}" for host in (ADDRESS, "localhost")}
        if self.headers.get("Host", "").lower() not in own:
            return _refusal(HTTPStatus.FORBIDDEN, "The viewer answers to this machine alone.")
        path, _, query = self.path.partition("?")
        token, _, rest = path.removeprefix("/").partition("/")
        if not hmac.compare_digest(token.encode(), self.server.token.encode()):
            return _refusal(
                HTTPStatus.FORBIDDEN,
                "Wrong token: open the address that misfm view printed in its first line.",
            )
        packed = "gzip" in self.headers.get("Accept-Encoding", "")
        answer = self.server.answer(rest, packed=packed, most=AMOUNTS.get(query, MOST_VOXELS))
        wanted = self.headers.get("Range")
        return answer if wanted is None or answer.status != HTTPStatus.OK else ranged(answer, wanted)

    def _send(self, answer: Answer, *, with_body: bool = True) -> None:
        try:
            self.send_response(answer.status)
            fields = {"Content-Type": answer.kind, "Content-Length": str(answer.length)}
            for name, value in {**fields, **HEADERS, **answer.headers}.items():
                self.send_header(name, value)
            self.end_headers()
            for part in answer.parts if with_body else ():
                view = memoryview(part)
                for start in range(0, len(view), _PIECE):
                    self.wfile.write(view[start : start + _PIECE])
        except (ConnectionError, TimeoutError):  # the page went on to another case
            self.close_connection = True

    def log_message(self, format: str, *args: Any) -> None:
        """Tell nothing: the address has the token in it."""
        logger.debug("viewer: %s", self.command)


def ranged(answer: Answer, wanted: str) -> Answer:
    """Return the part of an answer that a ``Range`` header asks for; all where that is no single range."""
    match = re.fullmatch(r"bytes=(\d*)-(\d*)", wanted.strip())
    if match is None or match[0].endswith("=-") or "Content-Encoding" in answer.headers:
        return answer
    whole = answer.length
    if match[1]:
        start, stop = int(match[1]), min(int(match[2]) + 1 if match[2] else whole, whole)
    else:
        start, stop = max(whole - int(match[2]), 0), whole
    if start >= stop:
        refusal = _refusal(HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE, "There is no such range.")
        refusal.headers["Content-Range"] = f"bytes */{whole}"
        return refusal
    parts, before = [], 0
    for part in answer.parts:
        view = memoryview(part)
        parts.append(view[max(start - before, 0) : max(stop - before, 0)])
        before += len(view)
    headers = {**answer.headers, "Content-Range": f"bytes {start}-{stop - 1}/{whole}"}
    return Answer(parts, answer.kind, HTTPStatus.PARTIAL_CONTENT, headers)


def _label_map(parts: Sequence[memoryview], packed: bool) -> Answer:
    """A label map, which shrinks to little in no time."""
    ranges = {"Accept-Ranges": "bytes"}
    if not packed:
        return Answer(parts, BINARY, headers=ranges)
    content = gzip.compress(b"".join(parts), compresslevel=1, mtime=0)
    return Answer([content], BINARY, headers={"Content-Encoding": "gzip", "Vary": "Accept-Encoding"})


def _as_json(content: Any) -> Answer:
    return Answer([json.dumps(content, allow_nan=False).encode()])


def _refusal(status: HTTPStatus, why: str) -> Answer:
    return Answer([json.dumps({"error": why}).encode()], status=status)
