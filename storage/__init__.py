"""What is written, and how it is found again: signals, encodings, segments, snapshots, the reader."""

from stillroom.storage.cache import Cache
from stillroom.storage.errors import (
    BusyError,
    CorruptShardError,
    FormatError,
    NotACacheError,
    RowsError,
    SignalError,
    StillroomError,
    StoreFullError,
    StorePermissionError,
    UnknownRowError,
    UnknownSignalError,
)
from stillroom.storage.ragged import Ragged
from stillroom.storage.reader import Reader
from stillroom.storage.signal import Signal
from stillroom.storage.snapshot import Snapshot

__all__ = [
    "BusyError",
    "Cache",
    "CorruptShardError",
    "FormatError",
    "NotACacheError",
    "Ragged",
    "Reader",
    "RowsError",
    "Signal",
    "SignalError",
    "Snapshot",
    "StillroomError",
    "StoreFullError",
    "StorePermissionError",
    "UnknownRowError",
    "UnknownSignalError",
]
