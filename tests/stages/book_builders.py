"""Teachers whose signals need books, and ways to harm a cache."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

from stillroom.stages import FunctionTeacher, ModuleTeacher
from tests.stages.builders import network, plain


def coded(encoding: str = "product(2,3)", **more: Any) -> FunctionTeacher:
    """`doubled`, its feature stored as codes."""
    return plain("coded", ("logits", "feature"), encodings={"feature": encoding}, **more)


def headed(encoding: str = "head(2)", **more: Any) -> ModuleTeacher:
    """`net`, its logits stored as what its last layer is given."""
    given = {"layers": {"logits": "2:input"}, "encodings": {"logits": encoding}, **more}
    return network("headed", **given)


def book_path(cache: Path) -> Path:
    """The only book of a cache."""
    (path,) = (cache / "books").glob("*.arrow")
    return path


def flip(path: Path, place: int) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)


def killed(act: Callable[[], object]) -> None:
    """Do it in another process, which kills itself."""
    child = os.fork()
    if not child:
        try:
            act()
        finally:
            os._exit(0)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status), "it came to its end"


def die(*_: Any) -> None:
    os.kill(os.getpid(), signal.SIGKILL)
