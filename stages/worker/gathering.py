"""One signal of one shard, gathered batch by batch: encoded when it comes, joined when all are there."""

from __future__ import annotations

from math import prod
from typing import Any

import numpy as np

from stillroom.storage.books import Book
from stillroom.storage.coded import Coded
from stillroom.storage.encodings.head import Head
from stillroom.storage.errors import SignalError
from stillroom.storage.folder import Ask
from stillroom.storage.ragged import Ragged
from stillroom.storage.signal import Signal, Values

_MEASURED_ROWS, _MEASURED_NUMBERS = 256, 2**20
"""Of each shard, from its start, to measure the encoding's error on: so many rows (elements, where rows
differ in length), or as many as hold so many numbers. What is measured lies there undone and done."""


class Gathering:
    """Takes the values of batches in turn; then `values` and `error` are those of the shard."""

    def __init__(self, who: str, name: str, ask: Ask, book: Book | None) -> None:
        """`who` is named in messages."""
        self._who, self._name, self._ask, self._book = f"{who}, signal {name!r}", name, ask, book
        self._given: Signal | None = None
        self._pieces: list[Any] = []
        self._measured: list[Any] = []

    def add(self, values: Values) -> None:
        """The next batch; SignalError where it is of another shape or dtype, or cannot be encoded."""
        given = Signal.of(self._name, values)
        if self._given is None:
            self._given = given
        elif change := self._given.differs(given):
            raise SignalError(
                f"{self._who}: {change} from one batch to the next. Every row needs one shape and dtype; "
                "return a list of arrays where rows differ in length"
            )
        if isinstance(values, list) or self._ask.encoding == "raw":
            self._pieces.append(values)
            return
        signal = self._signal(values)
        elements = values.values if isinstance(values, Ragged) else values
        most = min(_MEASURED_ROWS, max(_MEASURED_NUMBERS // max(prod(signal.inner_shape), 1), 1))
        left = most - sum(map(len, self._measured))
        if left > 0:
            # A copy, or the whole batch would stay in memory behind it.
            self._measured.append(elements[:left].copy())
        try:
            self._pieces.append(Coded.of(signal, values))
        except SignalError as error:
            raise SignalError(f"{self._who}: {error}") from error

    @property
    def values(self) -> Values | Coded:
        """Those of all batches: as they were given, or encoded."""
        pieces = self._pieces
        if isinstance(pieces[0], Coded):
            return Coded.joined(pieces)
        if isinstance(pieces[0], list):
            return [text for texts in pieces for text in texts]
        if isinstance(pieces[0], Ragged):
            return Ragged.of([row for rows in pieces for row in rows])
        joined: Values = np.concatenate(pieces)
        return joined

    @property
    def error(self) -> dict[str, float]:
        """What the encoding loses, measured on the first rows; empty where nothing is encoded."""
        if not self._measured:
            return {}
        some = np.concatenate(self._measured)
        coding = self._pieces[0].signal.coding
        if isinstance(coding, Head):
            return coding.loss(some)
        decoded = coding.decode(coding.encode(some), self._pieces[0].signal.inner_shape)
        lost: dict[str, float] = coding.error(some, decoded)
        return lost

    def _signal(self, values: Values) -> Signal:
        try:
            return Signal.of(self._name, values, self._ask.encoding, self._ask.source, self._book)
        except SignalError as error:
            raise SignalError(f"{self._who}: {error}") from error
