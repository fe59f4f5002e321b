"""Rows of image files: a folder for each class, or one folder of images."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from stillroom.stages.data.image_files import Found, find_images
from stillroom.stages.data.images import Decode, check_image
from stillroom.stages.data.records import CHANGED, Broken, Key, Records
from stillroom.stages.data.rows import Batch
from stillroom.storage.errors import RowsError, nearest
from stillroom.storage.folder import Hashes

Int64s = NDArray[np.int64]
Trust = Literal["content", "mtime"]


class ImageFolderRows:
    """Image files below a folder, read on threads when they are needed.

    Keys are paths relative to the folder, with `/`. Columns: `image`, and where images lie in class
    folders `label` (int64, the number of the folder among the sorted names) and `class_name`. An image
    is its file's bytes, or with `decode` a uint8 array (height, width, 3).

    Hashes cover the file's bytes (and the settings of `decode`), not what a library decodes from them.
    `trust` says what makes two states of the folder equal: "content", every byte is read; "mtime",
    each file's size and time of change, which misses a file whose time was set back after an edit that
    kept its size. Rows that have to be compared are compared by content.

    With broken="stop" a file that cannot be read or decoded is an error that names it, met when it is
    read. With broken="skip" every image is read and decoded once, in parallel, when the rows are made;
    broken ones are no rows, and `skipped` says which and why. `remember`, a JSON file, keeps that until
    a file's size or time changes.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        decode: Decode | None = None,
        labels: bool | None = None,
        classes: Sequence[str] | None = None,
        trust: Trust = "content",
        broken: Broken = "stop",
        remember: str | Path | None = None,
    ) -> None:
        """`labels`: whether the folders directly below are classes (None: when all images lie in
        some). `classes`: their names in the order of their numbers, for folders that lack some.

        Links to files and folders are followed; hidden names, files that are no images and folders
        without any are left out and listed in `left_out`.

        RowsError for a folder without images, a file of no bytes, a link to nothing, images beside
        class folders, a folder that is no class, names that are no UTF-8; FileNotFoundError.
        """
        if trust not in get_args(Trust):
            raise ValueError(f"trust {trust!r}; {nearest(trust, get_args(Trust))}")
        root = Path(path)
        found = find_images(root)
        self.left_out: dict[str, str] = found.left_out
        """Names that are not taken, and why."""
        self.classes = _classes(root, found, labels, classes)
        """The class of each label; empty where there are none."""
        source = _Images(root, found.names, found.sizes, found.times, decode, self.classes)
        self._records = Records(pa.array(found.names, pa.large_string()), source)
        self._trust = trust
        lost: dict[Key, str] = dict(found.lost.items())
        self._records.settle(broken, found.broken, lost, remember)

    @property
    def keys(self) -> pa.Array:
        """Relative paths: Arrow large_string."""
        return self._records.keys

    @property
    def columns(self) -> tuple[str, ...]:
        """`image`, `label`, `class_name`."""
        return self._records.source.columns

    @property
    def skipped(self) -> dict[Key, str]:
        """Broken files that are no rows, and why."""
        return self._records.skipped

    def __len__(self) -> int:
        """The number of images."""
        return len(self._records)

    def read(self, places: Int64s, columns: Sequence[str]) -> Batch:
        """The rows at these places, in that order; RowsError names a file that is broken or changed."""
        return self._records.read(places, columns)

    def hashes(self, columns: Sequence[str]) -> Hashes:
        """xxh3_128 of each row; each file is read once, whatever is trusted."""
        return self._records.hashes(columns)

    def fingerprint(self, columns: Sequence[str]) -> str:
        """Of keys and columns, by what is trusted."""
        return self._records.fingerprint(columns, trust=self._trust)


class _Images:
    """Image files by place."""

    def __init__(
        self,
        root: Path,
        names: list[str],
        sizes: Int64s,
        times: Int64s,
        decode: Decode | None,
        classes: tuple[str, ...],
    ) -> None:
        self._root, self._names, self._sizes, self._times = root, names, sizes, times
        self._decode, self._classes = decode, {name: i for i, name in enumerate(classes)}

    @property
    def columns(self) -> tuple[str, ...]:
        return ("image", "label", "class_name") if self._classes else ("image",)

    def load(self, place: int, columns: Sequence[str], *, raw: bool) -> dict[str, Any]:
        values: dict[str, Any] = {}
        for name in columns:
            if name == "image":
                content = self._content(place)
                values[name] = content if raw or self._decode is None else self._decode(content)
            else:
                of = self._names[place].partition("/")[0]
                values[name] = of if name == "class_name" else np.int64(self._classes[of])
        return values

    def check(self, place: int) -> dict[str, Any]:
        values = self.load(place, self.columns, raw=False)
        if self._decode is None:
            check_image(values["image"])
        return values

    def _content(self, place: int) -> bytes:
        try:
            with open(self._root / self._names[place], "rb") as file:
                state = os.fstat(file.fileno())
                content = file.read()
        except OSError as error:
            raise RowsError(f"it cannot be read: {error.strerror or error}") from error
        if (state.st_size, state.st_mtime_ns) != (self._sizes[place], self._times[place]):
            raise RowsError(f"it {CHANGED}")
        return content

    def hashed_as(self, column: str) -> str:
        made = column == "image" and self._decode is not None
        return f"image as {self._decode}" if made else column

    def said(self, place: int) -> str:
        return str(self._root / self._names[place])

    def stamp(self) -> Any:
        return [self._sizes.tolist(), self._times.tolist(), list(self._classes)]


def _classes(
    root: Path, found: Found, labels: bool | None, given: Sequence[str] | None
) -> tuple[str, ...]:
    beside = [name for name in found.names if "/" not in name]
    folders = sorted({name.partition("/")[0] for name in found.names if "/" in name})
    if labels is None:
        labels = given is not None or not beside
        if not labels and folders:
            raise RowsError(
                f"{root} holds images ({beside[0]}) beside folders of images ({folders[0]}); pass "
                "labels=False when the folders are no classes, or move the images into one"
            )
    if not labels:
        if given is not None:
            raise ValueError("classes= names the labels; it needs labels=True")
        return ()
    if beside:
        raise RowsError(
            f"{root / beside[0]} lies in no class folder; move it, or pass labels=False"
        )
    if given is None:
        return tuple(folders)
    if doubled := sorted({name for name in given if list(given).count(name) > 1}):
        raise ValueError(f"classes= names {', '.join(doubled)} more than once")
    for name in folders:
        if name not in given:
            raise RowsError(f"{root / name} is no class; {nearest(name, given)}")
    return tuple(given)
