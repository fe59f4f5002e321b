"""Files of Arrow columns that are read in parts: Parquet, Arrow IPC, CSV."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa

from stillroom.storage.errors import RowsError


@dataclass(frozen=True)
class OpenFile:
    """An open file of columns."""

    names: tuple[str, ...]
    counts: tuple[int, ...]
    """Rows of each part."""
    part: str
    """What a part is called."""
    read: Callable[[int, str], pa.ChunkedArray]
    """A column of a part; raises what Arrow raises."""
    statistics: Callable[[Sequence[str]], Any]
    """What the file says about columns without being read, as JSON; None when it says nothing."""
    lost: Mapping[str, str] = field(default_factory=dict)
    """By place: what in the file is no row, where that is passed over, and why."""


def open_file(path: Path, *, skip: bool = False) -> OpenFile:
    """Open by suffix; RowsError when it is no such file.

    `skip`: lines of a CSV that have another number of fields than its head are passed over.
    """
    try:
        opened = _csv(path, skip) if path.suffix == ".csv" else _OPENERS[path.suffix](path)
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise RowsError(f"{path} cannot be read as {path.suffix[1:]}: {error}") from error
    if doubled := sorted({name for name in opened.names if opened.names.count(name) > 1}):
        raise RowsError(f"{path} has more than one column {', '.join(doubled)}")
    return opened


def _parquet(path: Path) -> OpenFile:
    import pyarrow.parquet as pq

    # A reader is not made for several threads; each read opens one over metadata that is kept.
    footer = pq.read_metadata(path)
    names = tuple(footer.schema.to_arrow_schema().names)
    groups = range(footer.num_row_groups)

    def read(group: int, name: str) -> pa.ChunkedArray:
        with pq.ParquetFile(path, metadata=footer, memory_map=True) as file:
            return file.read_row_group(group, columns=[name], use_threads=False).column(name)

    def statistics(columns: Sequence[str]) -> Any:
        said = []
        for group in (footer.row_group(i) for i in groups):
            for chunk in (group.column(i) for i in range(group.num_columns)):
                path = chunk.path_in_schema
                if not any(path == name or path.startswith(f"{name}.") for name in columns):
                    continue
                known = chunk.statistics
                if known is None or not known.has_min_max:
                    return None
                sizes = [chunk.total_compressed_size, chunk.total_uncompressed_size]
                ends = [repr(known.min_raw), repr(known.max_raw)]
                said.append([path, chunk.physical_type, chunk.num_values, *sizes, *ends])
        return [[footer.row_group(i).num_rows for i in groups], said]

    return OpenFile(
        names, tuple(footer.row_group(i).num_rows for i in groups), "row group", read, statistics
    )


def _ipc(path: Path) -> OpenFile:
    mapped = pa.memory_map(str(path))
    try:
        with mapped:
            try:
                file = pa.ipc.open_file(mapped)
                batches = [file.get_batch(i) for i in range(file.num_record_batches)]
            except pa.ArrowInvalid:
                mapped.seek(0)
                file = pa.ipc.open_stream(mapped)  # as Hugging Face writes them
                batches = list(file)
    except EOFError as error:
        raise pa.ArrowInvalid(f"it ends too early: {error}") from error

    def read(batch: int, name: str) -> pa.ChunkedArray:
        column = batches[batch].column(name)
        column.validate(full=True)
        return pa.chunked_array([column])

    names, counts = tuple(file.schema.names), tuple(len(batch) for batch in batches)
    return OpenFile(names, counts, "record batch", read, lambda columns: None)


def _csv(path: Path, skip: bool = False) -> OpenFile:
    import pyarrow.csv as csv

    lost: dict[str, str] = {}

    def odd(line: Any) -> str:
        if skip:
            found = f"{line.actual_columns} fields where {line.expected_columns} are expected"
            lost[f"{path}, line {line.number:,}"] = f"{found}: {line.text[:80]!r}"
        return "skip" if skip else "error"

    # Only one thread can tell the numbers of lines.
    how = {
        "read_options": csv.ReadOptions(use_threads=not skip),
        "parse_options": csv.ParseOptions(invalid_row_handler=odd),
    }
    first = csv.read_csv(path, **how)
    # A column of nothing but empty fields is one of empty texts, as it is beside others.
    types = {f.name: pa.string() if pa.types.is_null(f.type) else f.type for f in first.schema}

    def read(part: int, name: str) -> pa.ChunkedArray:
        options = csv.ConvertOptions(include_columns=[name], column_types={name: types[name]})
        return csv.read_csv(path, convert_options=options, **how).column(name)

    names, rows = tuple(first.schema.names), (len(first),)
    return OpenFile(names, rows, "part", read, lambda columns: None, dict(lost))


_OPENERS: dict[str, Callable[[Path], OpenFile]] = {
    ".parquet": _parquet,
    ".arrow": _ipc,
    ".feather": _ipc,
    ".ipc": _ipc,
    ".csv": _csv,
}
SUFFIXES = tuple(_OPENERS)


def files_of(path: Path) -> list[Path]:
    """The path itself, or the files of columns in a folder, in order of names.

    FileNotFoundError where nothing is, RowsError for a file of another kind or a folder without any.
    """
    if not path.exists():
        raise FileNotFoundError(f"no rows at {path}; name a file or a folder of {_SAID} files")
    if path.is_file():
        if path.suffix not in SUFFIXES:
            raise RowsError(f"{path} is none of {_SAID}")
        return [path]
    inside = (p for p in sorted(path.rglob("*")) if p.suffix in SUFFIXES and p.is_file())
    found = [p for p in inside if not any(part[0] in "._" for part in p.relative_to(path).parts)]
    if not found:
        raise RowsError(f"the folder {path} holds no {_SAID} file")
    return found


_SAID = ", ".join(name[1:] for name in SUFFIXES)
