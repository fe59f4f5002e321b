"""Assets: files beside the weights that decide a teacher's numbers, such as a tokenizer's."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path

from stillroom.storage.errors import FormatError

Assets = Mapping[str, str | Path | bytes]
"""A file, a folder or its content, by what it is for: tokenizer, chat_template, config, ..."""


def asset_digests(assets: Assets) -> dict[str, str]:
    """SHA-256 of each file by role, of files in a folder by `role/path within it`.

    Where they lie does not count, and neither does the name of a file. Raises FileNotFoundError, or
    FormatError for a role with a slash, a folder without files, or one that leads elsewhere.
    """
    found: dict[str, str] = {}
    for role, given in sorted(assets.items()):
        if not role or "/" in role:
            raise FormatError(f"asset {role!r}: name its role without a slash, such as 'tokenizer'")
        if isinstance(given, bytes):
            found[role] = hashlib.sha256(given).hexdigest()
            continue
        path = Path(given)
        if path.is_dir():
            inside = _files(role, path)
            found |= {
                f"{role}/{file.relative_to(path).as_posix()}": _digest(file) for file in inside
            }
        elif path.is_file():
            found[role] = _digest(path)
        else:
            raise FileNotFoundError(f"no asset {role!r} at {path}; name a file or a folder")
    return found


def asset_paths(assets: Assets) -> dict[str, Path | bytes]:
    """As `prepare` gets them: bytes as they are, everything else as a path."""
    return {role: a if isinstance(a, bytes) else Path(a) for role, a in assets.items()}


def _files(role: str, folder: Path) -> list[Path]:
    found: list[Path] = []
    for place, folders, files in os.walk(folder):
        if linked := [name for name in folders if (Path(place) / name).is_symlink()]:
            raise FormatError(
                f"asset {role!r}: {Path(place) / linked[0]} is a link to another folder; name the "
                "folder that holds the files"
            )
        found += [Path(place) / name for name in files]
    if not found:
        raise FormatError(f"asset {role!r}: the folder {folder} holds no files")
    return found


def _digest(file: Path) -> str:
    with open(file, "rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()
