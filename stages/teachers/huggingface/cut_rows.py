"""Which rows a teacher of texts did not read to their end."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from stillroom.storage.reader import Reader
from stillroom.storage.snapshot import Snapshot


def cut_rows(snapshot: Snapshot, teacher: str, column: str = "") -> pa.Array:
    """The keys of rows of which a teacher read fewer tokens than their text has, in any order.

    Teachers that cut texts store `tokens` and `length` of each row, with `-column` behind them where
    they read several columns. UnknownSignalError where this one does not.
    """
    tail = f"-{column}" if column else ""
    kept, whole = f"{teacher}/tokens{tail}", f"{teacher}/length{tail}"
    reader = Reader(snapshot, [kept, whole])
    taught = np.flatnonzero(snapshot.hashes(kept) != np.zeros((), "V16"))
    found = reader.take(taught)
    return snapshot.keys.take(pa.array(taught[np.asarray(found[kept]) < np.asarray(found[whole])]))
