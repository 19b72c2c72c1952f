"""Where servers of buckets say that something has changed: a hint, which may come twice, late, or never."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import JSONResponse

from p3s_prefect.core.errors import BadName
from p3s_prefect.core.notices import read_notices
from p3s_prefect.web.face import face_of

# S3 sends one record an event, some hundred bytes long.
_MOST_BYTES = 1 << 20


async def notices(request: Request) -> JSONResponse:
    """Takes a notification; what it is about is then looked up where it is, as nobody has to be believed."""
    body = bytearray()
    async for piece in request.stream():
        body += piece
        if len(body) > _MOST_BYTES:
            raise BadName("the notification is larger than 1 MB", fix="Send an event at a time.")
    return JSONResponse({"taken": face_of(request).hint(read_notices(bytes(body)))}, 202)
