"""A server of scripted answers, for what real ones do only when they are broken."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from p3s_prefect.adapters import s3_server
from p3s_prefect.core.bucket_place import BucketPlace


@dataclass
class Scripted:
    """What it answers, and what it was asked."""

    place: BucketPlace
    answer: Callable[[BaseHTTPRequestHandler], None]
    asked: list[str] = field(default_factory=list)
    released: threading.Event = field(default_factory=threading.Event)


def says(status: int, code: str, *, content_type: str = "application/xml") -> Callable[[BaseHTTPRequestHandler], None]:
    """Answers everything with an error of S3."""

    def answer(asked: BaseHTTPRequestHandler) -> None:
        body = f"<Error><Code>{code}</Code><Message>said by the script</Message></Error>".encode()
        send(asked, status, body, content_type=content_type)

    return answer


def send(asked: BaseHTTPRequestHandler, status: int, body: bytes, *, length: int | None = None, **headers: str) -> None:
    asked.send_response(status)
    asked.send_header("Content-Length", str(len(body) if length is None else length))
    for name, value in headers.items():
        asked.send_header(name.replace("_", "-"), value)
    asked.end_headers()
    if asked.command != "HEAD":
        asked.wfile.write(body)
    if length is not None:
        asked.close_connection = True


@contextmanager
def scripted(path: Path, answer: Callable[[BaseHTTPRequestHandler], None]) -> Iterator[Scripted]:
    """Serves on loopback until it is left."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _any(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            script.asked.append(f"{self.command} {self.path}")
            script.answer(self)

        do_GET = do_PUT = do_HEAD = do_DELETE = do_POST = _any  # noqa: N815 -- http.server wants these names

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer((s3_server.HOST, 0), Handler)
    server.daemon_threads = True
    credentials = path / "scripted-credentials"
    s3_server.write_credentials(credentials, s3_server.new_keys())
    endpoint = f"http://{s3_server.HOST}:{server.server_port}"
    place = BucketPlace(bucket="central", prefix="p", endpoint=endpoint, credentials=str(credentials))
    script = Scripted(place=place, answer=answer)
    thread = threading.Thread(target=lambda: server.serve_forever(poll_interval=0.02))
    thread.start()
    try:
        yield script
    finally:
        script.released.set()
        server.shutdown()
        server.server_close()
        thread.join()
