"""Who may look, and what a browser may do with what it gets."""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import ipaddress
from collections.abc import Iterable
from http.cookies import CookieError, SimpleCookie
from urllib.parse import parse_qsl, urlencode

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from p3s_prefect.web.messages import message

PAGE_POLICY = (
    "default-src 'none'; img-src 'self'; style-src 'self'; script-src 'self'; connect-src 'self'; "
    "base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
)
# What a payload wrote is shown as a picture or a text, and can do nothing.
PAYLOAD_POLICY = "sandbox; default-src 'none'; frame-ancestors 'none'"
# Says no more than "the station answers", which a watchdog must be able to ask; and style sheets are no secret.
_OPEN = ("/healthz", "/static/")


class Guard:
    """Asks for the token, if there is one, and adds the headers that keep a browser safe.

    A token comes as ``Authorization: Bearer``, or as the cookie that a visit to ``/?token=`` leaves. Without a token
    the station listens on loopback only, and just names of this machine are answered: else a page from anywhere could
    read it through a name of its own that points here.
    """

    def __init__(self, app: ASGIApp, *, token: str | None, name: str) -> None:
        self._app = app
        self._token = token
        # The cookie is not the token: whoever reads it cannot open another station of the same token.
        self._pass = hashlib.sha256(f"{name}:{token}".encode()).hexdigest()
        self._cookie = f"p3s_{name}"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        answer = self._answer(scope) or self._app
        await answer(scope, receive, _with_headers(send))

    def _answer(self, scope: Scope) -> Response | None:
        headers = Headers(scope=scope)
        if self._token is None:
            scope["p3s_known"] = True
            return None if _names_this_machine(headers) else _other_name(headers)
        query = parse_qsl(scope["query_string"].decode("latin-1"))
        given = dict(query).get("token")
        if given is not None and _same(given, self._token):
            return self._let_in(scope, [(name, value) for name, value in query if name != "token"])
        scope["p3s_known"] = self._is_known(headers)
        if scope["p3s_known"] or scope["path"].startswith(_OPEN):
            return None
        return message(
            headers,
            401,
            "This page needs a token",
            "Open the address that `p3s status` prints, or add ?token=… to this one; the token is what P3S_TOKEN was "
            "when the station was started. Programs send the header Authorization: Bearer <token>.",
            also={"WWW-Authenticate": "Bearer"},
        )

    def _let_in(self, scope: Scope, query: Iterable[tuple[str, str]]) -> Response:
        # To the same page without the token, so that it stays out of the browser's history and of shared links.
        path = "/" + scope["path"].lstrip("/")
        rest = urlencode(list(query))
        response = RedirectResponse(f"{path}?{rest}" if rest else path, status_code=303)
        secure = scope["scheme"] == "https"
        response.set_cookie(self._cookie, self._pass, httponly=True, samesite="lax", secure=secure, max_age=2_592_000)
        return response

    def _is_known(self, headers: Headers) -> bool:
        kind, _, bearer = headers.get("authorization", "").partition(" ")
        if kind.lower() == "bearer":
            return _same(bearer.strip(), self._token or "")
        try:
            cookie = SimpleCookie(headers.get("cookie", "")).get(self._cookie)
        except CookieError:
            return False
        return cookie is not None and _same(cookie.value, self._pass)


def _same(given: str, expected: str) -> bool:
    return hmac.compare_digest(given.encode("utf-8", "replace"), expected.encode("utf-8", "replace"))


def _names_this_machine(headers: Headers) -> bool:
    host = headers.get("host", "")
    name = host.rpartition(":")[0] if host.rpartition(":")[2].isdigit() else host
    # A page from elsewhere comes with its own name; with the number of a loopback address nobody else can come.
    with contextlib.suppress(ValueError):
        return ipaddress.ip_address(name.removeprefix("[").removesuffix("]")).is_loopback
    return name.lower() == "localhost"


def _other_name(headers: Headers) -> Response:
    return message(
        headers,
        421,
        "This station answers to names of its own machine only",
        "Open it as http://127.0.0.1 with its port (from elsewhere by `ssh -L`), or set P3S_TOKEN and station.host.",
    )


def _with_headers(send: Send) -> Send:
    async def wrapped(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            headers.setdefault("Content-Security-Policy", PAGE_POLICY)
            headers.setdefault("X-Content-Type-Options", "nosniff")
            headers.setdefault("Referrer-Policy", "no-referrer")
            headers.setdefault("Cross-Origin-Resource-Policy", "same-origin")
            headers.setdefault("Cross-Origin-Opener-Policy", "same-origin")
            headers.setdefault("Cache-Control", "no-store")
        await send(message)

    return wrapped
