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

_SCALARS = ("rows_per_second", "bytes_per_second", "busy", "seconds_left", "stored", "halved")


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
        """Open the event file; ImportError without tensorboardX. `retried` is that of `Tally`."""
        try:
            from tensorboardX.event_file_writer import EventsWriter
        except ImportError as error:
            raise ImportError(
                "TensorBoard files are written by the package tensorboardX, which is not installed: "
                "pip install 'stillroom[tensorboard]'"
            ) from error
        self._tally, self._clock, self._lock = Tally(retried), clock, threading.Lock()
        Path(folder).mkdir(parents=True, exist_ok=True)
        # Not SummaryWriter: its thread would lose the last numbers of a process that is killed.
        self._writer = EventsWriter(str(Path(folder) / "events"), f".{secrets.token_hex(4)}")

    def __call__(self, event: Any) -> None:
        """Take one event; those without numbers are ignored."""
        with self._lock:
            self._tally.take(event, self._clock())
            if isinstance(event, RowsTaught):
                self._taught(event.teacher)
            elif isinstance(event, StudentTrained):
                for name, value in event.metrics.items():
                    self._scalar(f"train/{event.name}/{name}", value, event.seed)
                self._writer.flush()

    def _taught(self, teacher: str) -> None:
        pace = self._tally.paces[teacher]
        for name, value in pace.to_json().items():
            if name in _SCALARS and value is not None:
                self._scalar(f"teach/{teacher}/{name}", value, pace.stored)
        self._scalar("run/retries", self._tally.retries, pace.stored)
        self._scalar("run/skipped", self._tally.skipped, pace.stored)
        self._writer.flush()

    def _scalar(self, tag: str, value: float, step: int) -> None:
        from tensorboardX.proto.event_pb2 import Event
        from tensorboardX.summary import scalar

        summary = scalar(tag, float(value))
        self._writer.write_event(Event(wall_time=time.time(), step=step, summary=summary))

    def close(self) -> None:
        """Close the file."""
        self._writer.close()
