"""Who may look: a token for whoever comes from elsewhere; what every answer says to browsers."""

from __future__ import annotations

import hmac
import os
import re
import secrets
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass
from http.cookies import CookieError, SimpleCookie
from typing import Any
from urllib.parse import parse_qs, quote

from stillroom.storage.errors import SettingsError

VARIABLE = "STILLROOM_TOKEN"
LEAST_TOKEN = 16
"""Characters; one that a person made up can be guessed."""
_LONGEST_FORM = 4096
_HOST = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[^:\[\]]*)(?::[0-9]*)?")
POLICY = (
    "default-src 'none'; style-src 'self'; img-src 'self' data:; form-action 'self'; base-uri 'none'; "
    "frame-ancestors 'none'"
)
REPORT_POLICY = (
    "default-src 'none'; style-src 'unsafe-inline' 'self'; img-src 'self' data:; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'; sandbox allow-same-origin allow-popups"
)
"""Of a run's own files: they bring their style with them, and no script of theirs is run."""
_HEADERS = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-store",
}

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]


def chosen_token(loopback: bool) -> str:
    """STILLROOM_TOKEN; without it one that is made now, or none for an address of this machine alone.

    SettingsError for one that is too short, or that no header can carry.
    """
    given = os.environ.get(VARIABLE, "")
    if given and (len(given) < LEAST_TOKEN or not (given.isascii() and given.isprintable())):
        raise SettingsError(
            f"{VARIABLE} should have at least {LEAST_TOKEN} printable ASCII characters, found "
            f"{len(given)}; python -c 'import secrets; print(secrets.token_urlsafe())' makes one, and "
            "without the variable one is made at every start"
        )
    return given or ("" if loopback else secrets.token_urlsafe(24))


@dataclass(frozen=True)
class Door:
    """An ASGI application in front of another one."""

    inside: App
    refused: Callable[[str, str], bytes]
    """The page for whoever is not let in, from what is wrong and what to do."""
    token: str = ""
    """What must be shown; empty: nothing, to those who asked for one of `hosts`."""
    hosts: frozenset[str] = frozenset()
    """Names of this machine for itself. Without a token others are refused: a page of the web whose
    name was made to lead here would be read by that page otherwise (DNS rebinding)."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer, or let the inner application answer."""
        if scope["type"] != "http":
            return

        async def guarded(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "http.response.start":
                said = {name.lower() for name, _ in message["headers"]}
                more = [(n.encode(), v.encode()) for n, v in _HEADERS.items()]
                message["headers"] = [
                    *message["headers"],
                    *((n, v) for n, v in more if n not in said),
                ]
            await send(message)

        if not self.token:
            host = _header(scope, b"host")
            if _name(host) not in self.hosts:
                page = self.refused(
                    f"this page is not {host or 'without a name'}",
                    f"open it as http://127.0.0.1, through a tunnel (ssh -L), or set {VARIABLE}",
                )
                await _answer(guarded, 421, page)
                return
        elif scope["path"] == "/enter" and scope["method"] == "POST":
            await self._enter(scope, await _form(receive), "/", guarded)
            return
        elif asked := parse_qs(scope["query_string"].decode("latin-1")).get("token"):
            await self._enter(scope, asked[0], "/" + quote(scope["path"].lstrip("/")), guarded)
            return
        elif scope["path"] != "/page.css" and not self._known(scope):
            await _answer(guarded, 401, self.refused("a token is needed", "token"))
            return
        await self.inside(scope, receive, guarded)

    def _is(self, said: str) -> bool:
        return hmac.compare_digest(said.encode(), self.token.encode())

    def _known(self, scope: Scope) -> bool:
        kind, _, said = _header(scope, b"authorization").partition(" ")
        if kind.lower() == "bearer":
            return self._is(said.strip())
        try:
            cookie = SimpleCookie(_header(scope, b"cookie")).get(_cookie(scope))
        except CookieError:
            return False
        return cookie is not None and self._is(cookie.value)

    async def _enter(self, scope: Scope, said: str, to: str, send: Send) -> None:
        if not self._is(said):
            await _answer(send, 401, self.refused("that is not the token", "token"))
            return
        cookie: SimpleCookie = SimpleCookie()
        name = _cookie(scope)
        cookie[name] = self.token
        rules: dict[str, Any] = {"httponly": True, "samesite": "Strict", "path": "/"}
        cookie[name].update(rules)
        if scope["scheme"] == "https":
            cookie[name].update({"secure": "yes"})
        more = {b"location": to.encode(), b"set-cookie": cookie[name].OutputString().encode()}
        await _answer(send, 303, b"", more)


def _cookie(scope: Scope) -> str:
    # Browsers give a host's cookies to all of its ports.
    return f"stillroom-{(scope.get('server') or ('', 0))[1]}"


def _header(scope: Scope, name: bytes) -> str:
    return next((v.decode("latin-1") for n, v in scope["headers"] if n == name), "")


def _name(host: str) -> str:
    """Of a Host header, without its port; empty when it is none."""
    found = _HOST.fullmatch(host)
    return str(found[1]).lower() if found else ""


async def _form(receive: Receive) -> str:
    body = b""
    while len(body) <= _LONGEST_FORM:
        message = await receive()
        body += message.get("body", b"")
        if not message.get("more_body"):
            return str(parse_qs(body.decode("latin-1")).get("token", [""])[0])
    return ""


async def _answer(
    send: Send, code: int, body: bytes, more: MutableMapping[bytes, bytes] | None = None
) -> None:
    headers = {b"content-type": b"text/html; charset=utf-8", **(more or {})}
    headers[b"content-length"] = str(len(body)).encode()
    start = {"type": "http.response.start", "status": code, "headers": list(headers.items())}
    await send(start)
    await send({"type": "http.response.body", "body": body})
