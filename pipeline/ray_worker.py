"""The actor: what runs in a Ray worker's process, and how it says what it lacks."""

from __future__ import annotations

import re
import socket
from contextlib import suppress
from typing import Any


class UnreadableWorkError(Exception):
    """The work could not be read or built here; the message is complete."""


class NotBegunError(Exception):
    """An end was asked for before the item was begun."""


class Worker:
    """Built once for each map, then asked again and again."""

    def __init__(self) -> None:
        """Nothing is built before the first item."""
        self._made_from: Any = None
        self._work: Any = None
        self._failure: Exception | None = None

    def ready(self) -> tuple[str, str]:
        """(id of its node, host and address of it), once it runs."""
        import ray

        return ray.get_runtime_context().get_node_id(), _here()

    def work(self, source: list[Any], item: Any) -> Any:
        """`source` holds the reference of the map's `build`, in a list so that Ray leaves it alone, and
        the name of the mark that ends the map."""
        if source[1] and _is_put(source[1]):
            raise NotBegunError
        if self._made_from != source[0]:
            self.forget()
            self._made_from = source[0]
            try:
                self._work = _fetched(source[0])()
            except Exception as error:
                self._failure = _explained(error)
        if self._failure is not None:
            raise self._failure
        try:
            return self._work(item)
        except ModuleNotFoundError as error:
            raise _explained(error) from error

    def forget(self) -> None:
        """Let go of what was built: a teacher's memory is wanted by what comes next."""
        self._made_from = self._work = self._failure = None


def put_mark(name: str) -> None:
    """Let all workers of a map see that an end was asked for: a key in the cluster's own table."""
    with suppress(Exception):  # the head may be gone; then what was given is finished
        _table()._internal_kv_put(name, b"1")


def drop_mark(name: str) -> None:
    """The map is over."""
    with suppress(Exception):  # the head may be gone
        _table()._internal_kv_del(name)


def _is_put(name: str) -> bool:
    try:
        return bool(_table()._internal_kv_exists(name))
    except Exception:
        return False  # the head does not answer: whether to go on is not ours to say


def _table() -> Any:
    from ray.experimental import internal_kv

    return internal_kv


def _fetched(reference: Any) -> Any:
    import ray

    try:
        return ray.get(reference)
    except ray.exceptions.ObjectLostError:
        raise
    except Exception as error:
        raise _lacking(str(error)) from error


def _explained(error: Exception) -> Exception:
    """A package that is missing here is this node's fault, not the work's; the rest is as it is."""
    return _lacking(str(error)) if isinstance(error, ModuleNotFoundError) else error


def _lacking(text: str) -> UnreadableWorkError:
    found = re.search(r"No module named '([\w.]+)'", text)
    if not found:
        return UnreadableWorkError(f"a worker on {_here()} could not read its work: {text}")
    name = found[1]
    top = name.split(".")[0]
    return UnreadableWorkError(
        f"a worker on {_here()} has no module {name!r}, which the work needs. Install it on that node, "
        f"start the cluster from an image that has it, or ship it: RayRunner(runtime_env={{'pip': "
        f"[{top!r}]}}) for a package, {{'py_modules': ['path/to/{top}']}} for code of your own"
    )


def _here() -> str:
    """Host and address of this node."""
    import ray

    util: Any = ray.util
    return f"{socket.gethostname()} ({util.get_node_ip_address()})"
