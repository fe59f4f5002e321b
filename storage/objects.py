"""Object stores: S3 and what speaks like it, Google Cloud Storage, Azure, by the obstore library.

An object appears whole or not at all, so nothing is renamed: what must not be overwritten is put on
the condition that nothing is there, what is changed on the condition that it is as it was read.
"""

from __future__ import annotations

import functools
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, TypeVar

from stillroom.storage.errors import (
    MissingPackageError,
    StorePermissionError,
    StoreUnreachableError,
    StoreUnsupportedError,
)
from stillroom.storage.mirror import Mirror

Result = TypeVar("Result")
_ATTEMPTS = 8
_RETRY_SECONDS = "180"
_used_in: list[int] = []
"""The process in which the library was first used: its threads live there."""


@dataclass(frozen=True)
class ObjectPlace:
    """An object, or a prefix of objects, in a bucket.

    Credentials and endpoint come from the environment as the store's own tools read them (such as
    AWS_ACCESS_KEY_ID, AWS_REGION, AWS_ENDPOINT_URL); `options` overrides them. They travel with the
    place to worker processes.
    """

    root: str
    """The store's URL: scheme and bucket."""
    key: str
    """The path inside the bucket, without a slash at either end."""
    mirror: Mirror = field(default_factory=Mirror.usual, compare=False)
    """Where objects that never change are kept on this machine."""
    options: tuple[tuple[str, str], ...] = field(default=(), repr=False, compare=False)
    """Settings of obstore's `from_url`, such as ("endpoint", "http://127.0.0.1:9000")."""

    @classmethod
    def at(
        cls, url: str, *, mirror: Mirror | None = None, options: Mapping[str, str] | None = None
    ) -> ObjectPlace:
        """The place that a URL such as s3://bucket/prefix names."""
        scheme, _, rest = url.partition("://")
        bucket, _, key = rest.partition("/")
        given = tuple(sorted((options or {}).items()))
        return cls(f"{scheme}://{bucket}", key.strip("/"), mirror or Mirror.usual(), given)

    def __str__(self) -> str:
        """The URL."""
        return f"{self.root}/{self.key}".rstrip("/")

    @property
    def name(self) -> str:
        """The last part of the key."""
        return self.key.rpartition("/")[2]

    @property
    def parent(self) -> ObjectPlace:
        """The prefix that it lies in."""
        return self._sibling(self.key.rpartition("/")[0])

    def __truediv__(self, part: str) -> ObjectPlace:
        """An object below it."""
        return self._sibling(f"{self.key}/{part}" if self.key else part)

    def _sibling(self, key: str) -> ObjectPlace:
        return ObjectPlace(self.root, key, self.mirror, self.options)

    def exists(self) -> bool:
        """Whether there is an object, or one below it."""
        return self.is_file() or self.is_dir()

    def is_file(self) -> bool:
        """Whether there is an object of this key."""
        return self.size() is not None

    def is_dir(self) -> bool:
        """Whether there is an object below it."""
        return self._ask(lambda store: any(map(len, store.list(f"{self.key}/", chunk_size=1))))

    def iterdir(self) -> Iterator[ObjectPlace]:
        """Objects and prefixes directly below."""
        prefix = f"{self.key}/" if self.key else None
        found = self._ask(lambda store: store.list_with_delimiter(prefix))
        for below in found["common_prefixes"]:
            yield self._sibling(below.rstrip("/"))
        for known in found["objects"]:
            yield self._sibling(known["path"])

    def below(self) -> list[ObjectPlace]:
        """Every object at any depth, by one listing."""
        pages = self._ask(lambda store: list(store.list(f"{self.key}/")))
        return [self._sibling(known["path"]) for page in pages for known in page]

    def size(self) -> int | None:
        """Bytes of the object; None where there is none."""
        try:
            return int(self._ask(lambda store: store.head(self.key)["size"]))
        except FileNotFoundError:
            return None

    def read_bytes(self) -> bytes:
        """The object's bytes."""
        return self.read_tagged()[0]

    def read_tagged(self) -> tuple[bytes, str]:
        """Its bytes and the tag of this state of it."""

        def read(store: Any) -> tuple[bytes, str]:
            found = store.get(self.key)
            return bytes(found.bytes()), str(found.meta["e_tag"])

        return self._ask(read)

    def put(self, content: bytes) -> None:
        """Write it, over whatever was there."""
        self._ask(lambda store: store.put(self.key, content, use_multipart=False))

    def put_new(self, content: bytes) -> None:
        """Write it where nothing is; FileExistsError where something else is."""
        try:
            self._ask(
                lambda store: store.put(self.key, content, mode="create", use_multipart=False)
            )
        except FileExistsError:
            # A request whose answer got lost is sent again, and then finds what it wrote itself.
            if self.read_bytes() != content:
                raise

    def put_over(self, content: bytes, tag: str) -> bool:
        """Write it if it is still in the state of that tag; whether it was."""
        mode = {"e_tag": tag}
        try:
            self._ask(lambda store: store.put(self.key, content, mode=mode, use_multipart=False))
        except _library(self.root).exceptions.PreconditionError:
            return self.read_bytes() == content
        return True

    def copy(self, target: ObjectPlace) -> None:
        """Write the same bytes to another key of the same bucket, inside the store."""
        self._ask(lambda store: store.copy(self.key, target.key))

    def remove(self) -> None:
        """Delete the object, if there is one."""
        with suppress(FileNotFoundError):
            self._ask(lambda store: store.delete(self.key))

    def _ask(self, ask: Callable[[Any], Result]) -> Result:
        """What the store answers; its errors as ours: what was asked, what it said, what may help.

        The library itself repeats requests, but no conditional put that timed out and none whose
        answer broke off: it cannot know what came of them. Here that is found out.
        """
        raised = _library(self.root).exceptions
        _require_own_threads(self.root)
        give_up = time.monotonic() + float(dict(self.options).get("retry_timeout", _RETRY_SECONDS))
        for attempt in range(_ATTEMPTS):
            try:
                return ask(_opened(self.root, self.options, _environment_endpoint()))
            except (FileNotFoundError, FileExistsError, raised.PreconditionError):
                raise
            except raised.NotFoundError as error:
                raise FileNotFoundError(str(self)) from error
            except raised.AlreadyExistsError as error:
                raise FileExistsError(str(self)) from error
            except (raised.PermissionDeniedError, raised.UnauthenticatedError) as error:
                raise StorePermissionError(
                    f"{self} may not be read or written with these credentials ({_short(error)}). "
                    "Check them (for S3: AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_SESSION_TOKEN) "
                    "and the bucket's policy; nothing that was stored before is harmed"
                ) from error
            except raised.NotSupportedError as error:
                raise StoreUnsupportedError(
                    f"the store of {self} cannot do what a cache needs ({_short(error)}): it must be "
                    "able to write an object only if it is not there yet"
                ) from error
            except raised.BaseError as error:
                if attempt + 1 < _ATTEMPTS and time.monotonic() < give_up:
                    continue
                raise StoreUnreachableError(
                    f"the store of {self} did not do what was asked, also when asked again "
                    f"({_short(error)}). Check the network and the endpoint (for S3: "
                    "AWS_ENDPOINT_URL, AWS_REGION). Nothing that was stored before is harmed; run "
                    "again to go on"
                ) from error
        raise AssertionError("unreachable")


def _library(root: str) -> Any:
    try:
        import obstore.exceptions
        import obstore.store
    except ImportError as error:
        raise MissingPackageError(
            f"reading {root} needs the package obstore: pip install 'stillroom[objects]'"
        ) from error
    return obstore


def _require_own_threads(root: str) -> None:
    """StoreUnsupportedError in a fork of a process that used the library: it would wait for ever."""
    if not _used_in:
        _used_in.append(os.getpid())
    if _used_in[0] != os.getpid():
        raise StoreUnsupportedError(
            f"{root} cannot be reached from a fork of a process that has used it: the threads that "
            "wait for its answers are not copied. Start worker processes by spawn or forkserver (of "
            "torch's DataLoader: multiprocessing_context='spawn')"
        )


def _short(error: Exception) -> str:
    """The first line: the library adds pages for its own developers."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]


@functools.lru_cache(maxsize=64)
def _opened(root: str, options: tuple[tuple[str, str], ...], environment: str) -> Any:
    """One client a process for each store; `environment`: the endpoint that it names."""
    opened: Any = _library(root).store.from_url  # typed by scheme, which is known only from the URL
    settings: dict[str, Any] = dict(options)
    client: dict[str, Any] = {"timeout": timedelta(seconds=float(settings.pop("timeout", "60")))}
    endpoint = settings.get("endpoint", "") or environment
    if endpoint.startswith("http://"):
        client["allow_http"] = True
    retry = {
        "max_retries": int(settings.pop("max_retries", "8")),
        "retry_timeout": timedelta(seconds=float(settings.pop("retry_timeout", _RETRY_SECONDS))),
        "backoff": {
            "init_backoff": timedelta(milliseconds=100),
            "max_backoff": timedelta(seconds=10),
            "base": 2,
        },
    }
    return opened(root, client_options=client, retry_config=retry, **settings)


def _environment_endpoint() -> str:
    return os.environ.get("AWS_ENDPOINT_URL", os.environ.get("AWS_ENDPOINT", ""))
