"""Configuration files: YAML with a workflow's settings by name, and the schema they are written in.

`schema: 1` is the version of the workflow's settings. When their names or meanings change, the flow's
file gets one more function in MIGRATIONS, and files of before are still read:

    def in_batches(settings):                  # from schema 1 to schema 2
        settings["batch_size"] = settings.pop("batch", 100)
        return settings

    MIGRATIONS = (in_batches,)
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from stillroom.storage.errors import SettingsError, nearest
from stillroom.workflows.yaml_text import Key, parse_yaml

SCHEMA = "schema"
"""The key of a file that is no setting."""
Migration = Callable[[dict[str, Any]], dict[str, Any]]


@dataclass(frozen=True)
class ConfigFile:
    """What a file says, in the workflow's current schema."""

    path: Path
    settings: Mapping[str, Any]
    lines: Mapping[Key, int] = field(default_factory=dict)
    """Where each key stands; of what a migration moved nothing is known."""
    migrated: str = ""
    """What was done to an older file, for the user; empty when nothing was."""

    def place(self, key: Key) -> str:
        """`file:line` of a key, or of the nearest one around it."""
        for end in range(len(key), 0, -1):
            if key[:end] in self.lines:
                return f"{self.path}:{self.lines[key[:end]]}"
        return str(self.path)


def read_config(path: str | Path, migrations: tuple[Migration, ...] = ()) -> ConfigFile:
    """Read a file and bring it to the current schema, in memory only.

    SettingsError for what cannot be read, is no mapping, has keys twice or is of a newer schema.
    """
    path = Path(path)
    parsed = parse_yaml(_text(path), str(path))
    if parsed.value is not None and not isinstance(parsed.value, dict):
        raise SettingsError(
            f"{path}: expected settings as `name: value` lines, found a {type(parsed.value).__name__}"
        )
    settings = dict(parsed.value or {})
    now = 1 + len(migrations)
    schema = settings.pop(SCHEMA, None)
    if schema is None and (SCHEMA,) not in parsed.lines and now == 1:
        schema = 1  # there never was another
    if not isinstance(schema, int) or isinstance(schema, bool) or schema < 1:
        raise SettingsError(
            f"{path}: expected `schema: {now}`, the version of the workflow's settings that the file is "
            f"written for (1 to {now}); found {schema!r}"
        )
    if schema > now:
        raise SettingsError(
            f"{path}: its schema is {schema}, the workflow's is {now}: it is for a newer version of the "
            "workflow; use that one, or write the file for this one: stillroom config show FLOW"
        )
    if schema == now:
        return ConfigFile(path, settings, parsed.lines)
    return _migrated(path, settings, parsed.lines, migrations, schema)


def migrations_of(workflow: Callable[..., Any]) -> tuple[Migration, ...]:
    """What the workflow's file says in MIGRATIONS; SettingsError when that is no tuple of functions."""
    found = getattr(sys.modules.get(workflow.__module__), "MIGRATIONS", ())
    if not isinstance(found, tuple | list) or not all(map(callable, found)):
        raise SettingsError(
            f"MIGRATIONS of {workflow.__module__} should be a tuple of functions, the first from "
            f"schema 1 to 2; found {found!r:.80}"
        )
    return tuple(found)


def _text(path: Path) -> str:
    if path.is_dir():
        raise SettingsError(f"{path} is a folder; expected a YAML file with settings")
    try:
        return path.read_text("utf-8-sig")
    except FileNotFoundError:
        near = path.parent if path.parent.is_dir() else Path()
        files = [str(f) for f in sorted(near.iterdir()) if f.suffix in (".yaml", ".yml", ".json")]
        raise SettingsError(
            f"no file {path} (looked in {Path.cwd()}); {nearest(str(path), files)}"
        ) from None
    except UnicodeDecodeError as error:
        raise SettingsError(f"{path}: not a text in UTF-8: {error.reason}") from None
    except OSError as error:
        raise SettingsError(f"{path}: cannot be read: {error.strerror}") from None


def _migrated(
    path: Path,
    before: dict[str, Any],
    lines: Mapping[Key, int],
    migrations: tuple[Migration, ...],
    schema: int,
) -> ConfigFile:
    settings = copy.deepcopy(before)
    for number, migration in enumerate(migrations[schema - 1 :], schema):
        try:
            settings = migration(settings)
        except Exception as error:
            raise SettingsError(
                f"{path}: {migration.__name__}, which brings settings from schema {number} to "
                f"{number + 1}, failed: {type(error).__name__}: {error}"
            ) from error
        if not isinstance(settings, dict):
            raise SettingsError(
                f"{migration.__name__} (schema {number} to {number + 1}) returned a "
                f"{type(settings).__name__}; it should return the settings"
            )
    now = 1 + len(migrations)
    changes = [f"{key} gone" for key in before if key not in settings]
    changes += [f"{key} new" for key in settings if key not in before]
    changes += [
        f"{key} changed" for key in settings if key in before and before[key] != settings[key]
    ]
    said = (
        f"{path} is of schema {schema} and was read as schema {now} ({', '.join(changes) or 'the same'}); "
        f"the file is as it was. `stillroom config show FLOW --config {path}` prints it as schema {now}"
    )
    return ConfigFile(path, settings, lines, said)
