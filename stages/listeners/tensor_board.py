"""TensorBoard: the paces of teachers and the metrics of students as scalars (extra `tensorboard`)."""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from stillroom.stages.events import RowsTaught, StudentTrained
from stillroom.stages.listeners.tally import Tally
from stillroom.storage.errors import MissingPackageError

_SCALARS = ("rows_per_second", "bytes_per_second", "busy", "seconds_left", "stored", "halved")


class EventFile:
    """One event file in a folder, whose numbers are there once it is flushed."""

    def __init__(self, folder: str | Path) -> None:
        """Open it; MissingPackageError without tensorboardX."""
        try:
            from tensorboardX.event_file_writer import EventsWriter
        except ImportError as error:
            raise MissingPackageError(
                "TensorBoard files are written by the package tensorboardX, which is not installed: "
                "pip install 'stillroom[tensorboard]'"
            ) from error
        Path(folder).mkdir(parents=True, exist_ok=True)
        # Not SummaryWriter: its thread would lose the last numbers of a process that is killed.
        self._writer = EventsWriter(str(Path(folder) / "events"), f".{secrets.token_hex(4)}")

    def scalar(self, tag: str, value: float, step: int) -> None:
        """Write one number."""
        from tensorboardX.proto.event_pb2 import Event
        from tensorboardX.summary import scalar

        summary = scalar(tag, float(value))
        self._writer.write_event(Event(wall_time=time.time(), step=step, summary=summary))

    def flush(self) -> None:
        """Let others see what was written."""
        self._writer.flush()

    def close(self) -> None:
        """Close the file."""
        self._writer.close()


class TensorBoard:
    """Writes an event file into a folder: `teach/NAME/rows_per_second` and the like over rows stored,
    `train/NAME/METRIC` over seeds. `tensorboard --logdir FOLDER` shows it.
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        retried: tuple[type, ...] = (),
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        """Open the event file; MissingPackageError without tensorboardX. `retried` is that of `Tally`."""
        self._file = EventFile(folder)
        self._tally, self._clock, self._lock = Tally(retried), clock, threading.Lock()

    def __call__(self, event: Any) -> None:
        """Take one event; those without numbers are ignored."""
        with self._lock:
            self._tally.take(event, self._clock())
            if isinstance(event, RowsTaught):
                self._taught(event.teacher)
            elif isinstance(event, StudentTrained):
                for name, value in event.metrics.items():
                    self._file.scalar(f"train/{event.name}/{name}", value, event.seed)
                self._file.flush()

    def _taught(self, teacher: str) -> None:
        pace = self._tally.paces[teacher]
        for name, value in pace.to_json().items():
            if name in _SCALARS and value is not None:
                self._file.scalar(f"teach/{teacher}/{name}", value, pace.stored)
        self._file.scalar("run/retries", self._tally.retries, pace.stored)
        self._file.scalar("run/skipped", self._tally.skipped, pace.stored)
        self._file.flush()

    def close(self) -> None:
        """Close the file."""
        self._file.close()
