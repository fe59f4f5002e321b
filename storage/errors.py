"""What can go wrong with a cache, each error also the builtin one a caller would expect.

A message names the thing, says what was expected and what was found, and gives the way out.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

GARBLED = (KeyError, IndexError, TypeError, ValueError, AttributeError, OverflowError)
"""What taking fields out of damaged or made-up JSON can raise."""


class StillroomError(Exception):
    """Base of every error that stillroom raises on purpose."""

    def __str__(self) -> str:
        """The plain message (KeyError would print its repr)."""
        return str(self.args[0]) if self.args else ""


class NotACacheError(StillroomError, FileNotFoundError):
    """The path holds no cache, or something else."""


class FormatError(StillroomError, ValueError):
    """A stored file is of a newer format, or says something that cannot be."""


class UnknownSignalError(StillroomError, KeyError):
    """A signal was asked for that the snapshot does not have."""


class UnknownRowError(StillroomError, KeyError):
    """Rows were asked for that were never taught."""


class RowsError(StillroomError, ValueError):
    """A data set cannot be taught from: no stable keys, duplicate keys, ragged columns."""


class SignalError(StillroomError, ValueError):
    """A teacher answered something that cannot be stored: shape, dtype, row count, NaN."""


class UnsteadyError(SignalError):
    """A teacher answers a row otherwise when it is asked again, or beside other rows."""


class OutOfMemoryError(StillroomError, MemoryError):
    """A teacher needs more memory than there is, even for a batch of one row."""


class IdentityError(StillroomError, ValueError):
    """A teacher is not the one whose answers are to be stored: its files or packages are others."""


class CorruptShardError(StillroomError, OSError):
    """Stored bytes are not what was written: truncated, missing or flipped."""


class ViewError(StillroomError, ValueError):
    """A view of a row cannot be replayed as the teacher saw it."""


class StoreFullError(StillroomError, OSError):
    """The disk is full; what was finished before stays."""


class StorePermissionError(StillroomError, PermissionError):
    """The cache folder cannot be written."""


class StoreUnreachableError(StillroomError, ConnectionError):
    """An object store gave no answer, or none that helps, after several attempts."""


class TeacherUnreachableError(StillroomError, ConnectionError):
    """A server that answers for a teacher gave no whole answer after several attempts, or denies access."""


class StoreUnsupportedError(StillroomError, NotImplementedError):
    """An object store, or what is installed here to reach it, lacks something that a cache needs."""


class MirrorError(StillroomError, OSError):
    """A shard of an object store does not fit into the local mirror."""


class StaleError(StillroomError, LookupError):
    """What was derived from a cache was derived from something else than what is there now."""


class SettingsError(StillroomError, ValueError):
    """A workflow cannot be found or read, or its settings are wrong."""


class MissingPackageError(StillroomError, ModuleNotFoundError):
    """What was asked for needs a package that is not installed; the message has pip's command."""


class BusyError(StillroomError, RuntimeError):
    """Another process is writing to this cache."""


def nearest(name: str, known: Iterable[str]) -> str:
    """The end of a message about a wrong name: the closest known ones, or all of them.

    >>> nearest("logit", ["logits", "feature"])
    "did you mean 'logits'?"
    >>> nearest("x", ["logits", "feature"])
    'known: feature, logits'
    """
    names = sorted(known)
    close = difflib.get_close_matches(name, names, n=2)
    if close:
        return "did you mean " + " or ".join(repr(c) for c in close) + "?"
    return "known: " + (", ".join(names) or "none")


def listed(items: Iterable[object], limit: int = 5) -> str:
    """A short list for a message: the first few, and how many more.

    >>> listed(range(8))
    '0, 1, 2, 3, 4 and 3 more'
    """
    every = list(items)
    shown = ", ".join(str(item) for item in every[:limit])
    return shown + (f" and {len(every) - limit:,} more" if len(every) > limit else "")
