"""Bytes that payloads wrote, handed to browsers so that they can do no harm (S7)."""

from __future__ import annotations

import hashlib

from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response

from p3s_prefect.adapters.ledger import result_views
from p3s_prefect.core.errors import ChecksumMismatch, StoreError
from p3s_prefect.core.health import size
from p3s_prefect.core.views import printable
from p3s_prefect.web.access import PAYLOAD_POLICY
from p3s_prefect.web.face import Face, face_of, whole

# An object is read into memory: a picture has 100 kB, and the station's memory is small.
MAX_BYTES = 32 * 10**6
# The end of a log tells why a step failed; browsers get slow with more.
LOG_TAIL_BYTES = 500_000
_PNG = b"\x89PNG\r\n\x1a\n"


async def product(request: Request) -> Response:
    """A product: a PNG as a picture, anything else as text to be saved. Its checksum is verified."""
    face = face_of(request)
    row = await face.read(result_views.product_of, whole("product", request.path_params["product_id"]))
    content = await face.in_thread(lambda: _read(face, row.key))
    if hashlib.sha256(content).hexdigest() != row.sha256:
        raise ChecksumMismatch(
            f"{row.title!r} is no longer what was published", fix=f"{row.key} was damaged in the store; restore it."
        )
    headers = {
        "Content-Security-Policy": PAYLOAD_POLICY,
        # A product never changes.
        "Cache-Control": "private, max-age=31536000, immutable",
    }
    if content.startswith(_PNG):
        return Response(content, media_type="image/png", headers=headers)
    headers["Content-Disposition"] = f'attachment; filename="{row.file}.txt"'
    return Response(content, media_type="text/plain; charset=utf-8", headers=headers)


async def log(request: Request) -> Response:
    """The end of an attempt's log, as text in which everything but plain characters is escaped."""
    face = face_of(request)
    key = await face.read(result_views.log_key, whole("attempt", request.path_params["attempt_id"]))
    content = await face.in_thread(lambda: _read(face, key))
    cut = len(content) - LOG_TAIL_BYTES
    head = f"[the first {size(cut)} of {key} are left out]\n" if cut > 0 else ""
    text = content[-LOG_TAIL_BYTES:].decode("utf-8", "backslashreplace")
    return PlainTextResponse(head + printable(text), headers={"Content-Security-Policy": PAYLOAD_POLICY})


def _read(face: Face, key: str) -> bytes:
    found = next((info for info in face.store.list(key) if info.key == key), None)
    if found is not None and found.size > MAX_BYTES:
        raise StoreError(
            f"{key} has {size(found.size)}; pages show up to {size(MAX_BYTES)}", fix=f"Read it in {face.store.url}."
        )
    return face.store.read_bytes(key)
