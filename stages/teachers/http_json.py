"""JSON over HTTP from a server that answers for a teacher: bounded, retried, and never half a reply."""

from __future__ import annotations

import http.client
import json
import os
import random
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from stillroom.storage.errors import SignalError, TeacherUnreachableError

_AGAIN = {408, 409, 425, 429, 500, 502, 503, 504}
"""Statuses after which the same request may succeed."""
_LONGEST_WAIT = 30.0
_PIECE = 1 << 16


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """A redirect would carry the key to another server."""

    def redirect_request(self, *_: Any) -> None:
        return None


@dataclass(frozen=True)
class JsonServer:
    """Requests to one server. Holds the name of the key's environment variable, never the key."""

    url: str
    """Such as http://127.0.0.1:8000, without a path."""
    key_variable: str = ""
    """Environment variable with the key that is sent as a bearer token; none where it is not set."""
    timeout: float = 120.0
    """Seconds that one attempt may take, from the request to the last byte."""
    attempts: int = 6
    """How often a request is sent before it has failed."""
    backoff: float = 0.5
    """Seconds before the second attempt; doubled each time, up to 30, or what the server asks for."""

    def __post_init__(self) -> None:
        """Refuse a URL that is none, or that carries a password."""
        parts = urlsplit(self.url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"{self.url!r} is no server's URL; expected http://host:port")
        if parts.username or parts.password or parts.query or parts.fragment:
            raise ValueError(
                f"the URL of {parts.hostname} holds more than host, port and path; keep a key in an "
                "environment variable"
            )
        if self.attempts < 1 or self.timeout <= 0 or self.backoff < 0:
            raise ValueError("attempts and timeout must be positive, backoff 0 or more")

    def get(self, path: str, *, missing: Any = None) -> Any:
        """The JSON at a path; `missing` (where one is given) instead of an error when there is none."""
        return self._ask(path, None, missing)

    def post(self, path: str, body: Mapping[str, Any]) -> Any:
        """The JSON that answers this one.

        TeacherUnreachableError when no attempt brought a whole answer, or access is denied;
        SignalError with the server's own words when it refuses this very request.
        """
        return self._ask(path, json.dumps(body, allow_nan=False).encode(), None)

    def _ask(self, path: str, body: bytes | None, missing: Any) -> Any:
        for attempt in range(1, self.attempts + 1):
            try:
                return json.loads(self._sent(path, body))
            except urllib.error.HTTPError as error:
                with error:
                    if error.code == 404 and missing is not None:
                        return missing
                    if error.code not in _AGAIN:
                        raise self._refused(path, error) from None
                    failed, asked = f"status {error.code}: {_words(error)}", _seconds(error)
            except (OSError, http.client.HTTPException, ValueError) as error:
                # Refused, cut off, too slow, or bytes that are no JSON because some are missing.
                failed, asked = _named(error), 0.0
            if attempt < self.attempts:
                wait = min(self.backoff * 2 ** (attempt - 1), _LONGEST_WAIT)
                # Spread, so that many workers do not come back at the same moment.
                time.sleep(max(wait * random.uniform(0.5, 1.0), min(asked, _LONGEST_WAIT)))
        raise TeacherUnreachableError(
            f"{self.url}{path} gave no answer in {self.attempts} attempts; the last: {failed}. Shards that "
            "are finished stay; see to the server and run again"
        )

    def _sent(self, path: str, body: bytes | None) -> bytes:
        """One attempt; TimeoutError, IncompleteRead, or what urllib raises."""
        end = time.monotonic() + self.timeout
        headers = {"Accept": "application/json"}
        if body is not None:
            headers["Content-Type"] = "application/json"
        if key := os.environ.get(self.key_variable, "") if self.key_variable else "":
            headers["Authorization"] = f"Bearer {key}"
        request = urllib.request.Request(self.url.rstrip("/") + path, body, headers)
        opener = urllib.request.build_opener(_NoRedirects)
        with opener.open(request, timeout=self.timeout) as response:
            promised = response.headers.get("Content-Length")
            read: list[bytes] = []
            while piece := response.read1(_PIECE):
                read.append(piece)
                if time.monotonic() > end:
                    raise TimeoutError(f"not finished after {self.timeout:g} s")
            whole = b"".join(read)
            # read1 ends quietly where a connection is cut.
            if promised is not None and len(whole) != int(promised):
                raise http.client.IncompleteRead(whole, int(promised) - len(whole))
            return whole

    def _refused(self, path: str, error: urllib.error.HTTPError) -> Exception:
        said = f"{self.url}{path} answers {error.code}: {_words(error)}"
        if error.code in (401, 403):
            way = (
                f"set {self.key_variable} to a valid key"
                if self.key_variable
                else "name key_variable="
            )
            return TeacherUnreachableError(f"{said}. Access is denied; {way}")
        if error.code == 404 or 300 <= error.code < 400:
            return TeacherUnreachableError(
                f"{said}. Name the URL of the server itself, without /v1"
            )
        return SignalError(said)


def _words(error: urllib.error.HTTPError) -> str:
    """What the server says: the message of vLLM's error JSON, or the first of its words."""
    try:
        text = error.read(_PIECE).decode("utf-8", "replace")
    except (OSError, http.client.HTTPException):
        return str(error.reason)
    try:
        said = json.loads(text)
        said = said.get("error", said)
        return str(said["message"] if isinstance(said, Mapping) else said)[:500]
    except (ValueError, KeyError, AttributeError, TypeError):
        return text.strip()[:200] or str(error.reason)


def _seconds(error: urllib.error.HTTPError) -> float:
    try:
        return max(float(error.headers.get("Retry-After", "0")), 0.0)
    except ValueError:
        return 0.0  # a date: the backoff will do


def _named(error: Exception) -> str:
    if isinstance(error, http.client.IncompleteRead):
        return "the connection was cut in the middle of the answer"
    reason = getattr(error, "reason", error)
    return str(reason) or type(reason).__name__
