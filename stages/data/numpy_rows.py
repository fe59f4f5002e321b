"""Rows of NumPy's own files: .npy, or an uncompressed .npz, mapped into memory."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from stillroom.stages.data.rows import ArrayRows, Batch
from stillroom.stages.data.tar_fields import npy_header
from stillroom.storage.errors import RowsError, nearest
from stillroom.storage.folder import Hashes
from stillroom.storage.identity import digest
from stillroom.storage.keys import KeyList, as_keys

Int64s = NDArray[np.int64]
Trust = Literal["content", "mtime"]
_LOCAL_HEADER = 30
"""Bytes of a zip entry's own header, before its name and its extra field."""


@dataclass(frozen=True)
class _Mapped:
    """An array in a file, and the file as it was when it was found."""

    path: Path
    size: int
    mtime_ns: int
    offset: int
    shape: tuple[int, ...]
    fortran: bool
    dtype: np.dtype[Any]

    def require_unchanged(self) -> None:
        try:
            state = self.path.stat()
        except FileNotFoundError:
            state = None
        if state is None or (state.st_size, state.st_mtime_ns) != (self.size, self.mtime_ns):
            raise RowsError(
                f"{self.path} changed since these rows were opened, so their hashes are no longer true; "
                "open them anew"
            )

    def mapped(self) -> NDArray[Any]:
        """The array, read only; its pages are read when they are touched."""
        if 0 in self.shape or self.dtype.itemsize == 0:
            return np.zeros(self.shape, self.dtype)
        order: Literal["F", "C"] = "F" if self.fortran else "C"
        array = np.memmap(self.path, self.dtype, "r", self.offset, self.shape, order)
        return array.view(np.ndarray)


class NumpyRows:
    """Columns in .npy files, or in one .npz that np.savez wrote, mapped and never loaded as a whole.

    Columns are numbers, or texts of dtype U. Row hashes are those of `ArrayRows` over the same content.
    Workers map the files themselves, so they must see the same paths. `trust`: "content", all is
    hashed; "mtime", each file's name, size and time of change.
    """

    def __init__(
        self,
        files: str | Path | Mapping[str, str | Path],
        *,
        keys: KeyList | str,
        trust: Trust = "content",
    ) -> None:
        """`files`: an .npz, whose arrays are the columns, or for each column its .npy. `keys`: one for
        each row, or the name of the column that holds them.

        RowsError for files that are cut, compressed or hold Python objects, and for columns of different
        lengths; FileNotFoundError.
        """
        if trust not in get_args(Trust):
            raise ValueError(f"trust {trust!r}; {nearest(trust, get_args(Trust))}")
        if isinstance(files, Mapping):
            self._arrays = {name: _npy(Path(path)) for name, path in files.items()}
        else:
            self._arrays = _npz(Path(files))
        self._trust = trust
        if isinstance(keys, str):
            if keys not in self._arrays:
                raise RowsError(f"no column {keys!r} for keys; {nearest(keys, self._arrays)}")
            keys = self._arrays[keys].mapped()
        self._keys = as_keys(keys)
        self._rows  # noqa: B018  keys that are not unique and columns of other lengths are named now

    @cached_property
    def _rows(self) -> ArrayRows:
        return ArrayRows(self._keys, **{n: array.mapped() for n, array in self._arrays.items()})

    def __getstate__(self) -> dict[str, Any]:
        """Paths and keys; a worker maps the files itself."""
        return {"_arrays": self._arrays, "_trust": self._trust, "_keys": self._keys}

    @property
    def keys(self) -> pa.Array:
        """Arrow int64 or large_string."""
        return self._keys

    @property
    def columns(self) -> tuple[str, ...]:
        """The names of the arrays."""
        return tuple(self._arrays)

    def __len__(self) -> int:
        """The number of rows."""
        return len(self._keys)

    def read(self, places: Int64s, columns: Sequence[str]) -> Batch:
        """The rows at these places: copies, in that order; RowsError when a file changed."""
        return self._unchanged(columns).read(places, columns)

    def hashes(self, columns: Sequence[str]) -> Hashes:
        """xxh3_128 of each row, whatever is trusted."""
        return self._unchanged(columns).hashes(columns)

    def fingerprint(self, columns: Sequence[str]) -> str:
        """Of keys and columns, by what is trusted."""
        rows, asked = self._unchanged(columns), sorted(columns)
        if self._trust == "content":
            return rows.fingerprint(asked)
        keys = rows.fingerprint([])
        files = [self._arrays[name] for name in asked]
        return digest(
            [self._trust, asked, keys, [[f.path.name, f.size, f.mtime_ns] for f in files]]
        )

    def _unchanged(self, columns: Sequence[str]) -> ArrayRows:
        for name in columns:
            if name in self._arrays:
                self._arrays[name].require_unchanged()
        return self._rows


def _npy(path: Path) -> _Mapped:
    if not path.exists():
        raise FileNotFoundError(f"no array at {path}; name an .npy file")
    with open(path, "rb") as file:
        return _described(path, file, 0, path.stat().st_size, str(path))


def _npz(path: Path) -> dict[str, _Mapped]:
    if not path.exists():
        raise FileNotFoundError(
            f"no arrays at {path}; name an .npz file, or a .npy for each column"
        )
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
    except (zipfile.BadZipFile, OSError, ValueError) as error:
        raise RowsError(
            f"{path} is no .npz: {error}. Single arrays need a name: {{'image': 'image.npy'}}"
        ) from error
    found = {}
    with open(path, "rb") as file:
        for member in members:
            who = f"{member.filename} in {path}"
            if member.compress_type != zipfile.ZIP_STORED or member.flag_bits & 1:
                raise RowsError(
                    f"{who} is compressed, so it cannot be mapped; write it with np.savez, or as .npy"
                )
            file.seek(member.header_offset)
            header = file.read(_LOCAL_HEADER)
            lengths = [int.from_bytes(header[at : at + 2], "little") for at in (26, 28)]
            if len(header) < _LOCAL_HEADER or header[:4] != b"PK\x03\x04":
                raise RowsError(f"{who} is not where the file says; it is damaged")
            start = member.header_offset + _LOCAL_HEADER + sum(lengths)
            file.seek(start)
            name = member.filename.removesuffix(".npy")
            found[name] = _described(path, file, start, start + member.file_size, who)
    if not found:
        raise RowsError(f"{path} holds no array")
    return found


def _described(path: Path, file: Any, start: int, stop: int, who: str) -> _Mapped:
    try:
        shape, fortran, dtype = npy_header(file, "biufU")
    except RowsError as error:
        raise RowsError(f"{who} cannot be read: {error}") from error
    state, offset = path.stat(), file.tell()
    # Python's whole numbers, as a made-up shape could overflow others.
    need = dtype.itemsize
    for length in shape:
        need *= length
    if offset + need != stop or stop > state.st_size:
        raise RowsError(
            f"{who} says {dtype} of shape {shape}, {need:,} bytes, and holds "
            f"{min(stop, state.st_size) - offset:,}; write it anew"
        )
    if not shape:
        raise RowsError(f"{who} is one number; a column has an entry for each row")
    return _Mapped(path, state.st_size, state.st_mtime_ns, offset, shape, fortran, dtype)
