"""What is written, and how it is found again: signals, encodings, segments, snapshots, the reader."""

from stillroom.storage.cache import Cache
from stillroom.storage.care.compacting import Compacted, compact
from stillroom.storage.care.problems import Problem, Verified
from stillroom.storage.care.pruning import Pruned, prune
from stillroom.storage.care.verifying import verify
from stillroom.storage.derived import Derived
from stillroom.storage.errors import (
    BusyError,
    CorruptShardError,
    FormatError,
    NotACacheError,
    OutOfMemoryError,
    RowsError,
    SignalError,
    StaleError,
    StillroomError,
    StoreFullError,
    StorePermissionError,
    UnknownRowError,
    UnknownSignalError,
    UnsteadyError,
    ViewError,
)
from stillroom.storage.ragged import Ragged
from stillroom.storage.reader import Reader
from stillroom.storage.signal import Signal
from stillroom.storage.snapshot import Snapshot

__all__ = [
    "BusyError",
    "Cache",
    "Compacted",
    "CorruptShardError",
    "Derived",
    "FormatError",
    "NotACacheError",
    "OutOfMemoryError",
    "Problem",
    "Pruned",
    "Ragged",
    "Reader",
    "RowsError",
    "Signal",
    "SignalError",
    "Snapshot",
    "StaleError",
    "StillroomError",
    "StoreFullError",
    "StorePermissionError",
    "UnknownRowError",
    "UnknownSignalError",
    "UnsteadyError",
    "Verified",
    "ViewError",
    "compact",
    "prune",
    "verify",
]
