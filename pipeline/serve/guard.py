"""Who may ask: the Host and Origin of a request, the token, the size of its body, and what the page may do.

A page of another site that the user visits can send requests to this machine; the checks of Host (a name that an
attacker points here, "DNS rebinding") and Origin keep it out.
"""

import base64
import hashlib
import hmac
import re
from collections.abc import Sequence
from typing import Any
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

MOST_BYTES = 2**20  # of a request's body
_OPEN = ("/", "/health")  # hold nothing that is the user's; the page asks for the token


class Guard:
    def __init__(self, app: ASGIApp, hosts: Sequence[str] | None, token: str | None) -> None:
        """`hosts`: names by which the server may be called; None: any, where a token protects it."""
        self._app, self._hosts, self._token = app, hosts, token

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)

        async def send_guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers.setdefault("content-security-policy", "default-src 'none'; frame-ancestors 'none'")
                headers["x-content-type-options"] = "nosniff"
                headers["referrer-policy"] = "no-referrer"
                headers["cache-control"] = "no-store"
            await send(message)

        refused = self._refused(Headers(scope=scope), scope["path"])
        await (refused or self._app)(scope, receive, send_guarded)

    def _refused(self, headers: Headers, path: str) -> JSONResponse | None:
        host, origin = headers.get("host", ""), headers.get("origin")
        if self._hosts is not None and _name(host) not in self._hosts:
            return refusal(403, f"this server is not {host[:100]!r}; it is called {' or '.join(self._hosts)}")
        if origin is not None and urlsplit(origin).netloc != host:
            return refusal(403, f"pages of {origin[:100]!r} may not ask this server")
        if self._token is not None and path not in _OPEN:
            given = headers.get("authorization", "").removeprefix("Bearer ")
            if not hmac.compare_digest(given.encode(), self._token.encode()):
                return refusal(401, "send the server's token as: Authorization: Bearer …", code="invalid_api_key")
        return None


def _name(host: str) -> str | None:
    try:
        return urlsplit(f"//{host}").hostname
    except ValueError:
        return None


def failure(status: int, words: str, param: str | None = None, code: str | None = None) -> dict[str, Any]:
    """In the shape of OpenAI's API."""
    kind = "invalid_request_error" if status < 500 else "server_error"
    return {"error": {"message": words, "type": kind, "param": param, "code": code}}


def refusal(status: int, words: str, param: str | None = None, code: str | None = None) -> JSONResponse:
    return JSONResponse(
        failure(status, words, param, code), status, headers={"retry-after": "1"} if status == 429 else {}
    )


async def body(request: Request) -> bytes:
    """The body of a request; raises HTTPException for more than MOST_BYTES."""
    received = bytearray()
    async for part in request.stream():
        received += part
        if len(received) > MOST_BYTES:
            raise HTTPException(413, f"the body is too long; at most {MOST_BYTES:,} bytes")
    return bytes(received)


def page_policy(page: str) -> str:
    """The Content-Security-Policy of the page: its own style and script, and requests to this server."""
    (style,) = re.findall(r"<style>(.*?)</style>", page, re.S)
    (script,) = re.findall(r"<script>(.*?)</script>", page, re.S)
    allowed = "; ".join(f"{kind}-src {_hash(text)}" for kind, text in (("style", style), ("script", script)))
    rest = "default-src 'none'; connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'"
    return f"{rest}; frame-ancestors 'none'; {allowed}"


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
