"""Packing: several texts share one sequence of a model, and none sees another.

Each text's positions begin at 0 again, and a mask of all pairs of tokens, added to the attention's
scores, keeps texts apart. Not every model obeys such a mask, so each is tried before it is believed.
"""

from __future__ import annotations

import inspect
from bisect import bisect_left, insort
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from stillroom.stages.teachers.huggingface.rows import Int64s, within
from stillroom.stages.teachers.huggingface.texts import Tokens
from stillroom.stages.worker.asking import out_of_memory
from stillroom.stages.worker.live import SLACK
from stillroom.stages.worker.steady import HALF, SINGLE
from stillroom.storage.errors import FormatError

if TYPE_CHECKING:
    from stillroom.stages.teachers.huggingface.heads import HeadedModel
    from stillroom.stages.teachers.huggingface.reading import TokenModel


def packs(lengths: Int64s, room: int) -> list[Int64s]:
    """Rows that share a sequence of at most `room` tokens: the longest first, each where it fits best.

    >>> [pack.tolist() for pack in packs(np.array([2, 7, 3, 5, 1]), 8)]
    [[1, 4], [3, 2], [0]]
    """
    found: list[list[int]] = []
    free: list[tuple[int, int]] = []
    """Tokens that still fit, rising, and into which pack."""
    for row in np.argsort(-lengths, kind="stable").tolist():
        length = int(lengths[row])
        at = bisect_left(free, (length, -1))
        left, pack = free.pop(at) if at < len(free) else (room, len(found))
        if pack == len(found):
            found.append([])
        found[pack].append(row)
        insort(free, (left - length, pack))
    return [np.array(pack, np.int64) for pack in found]


@dataclass(frozen=True)
class Packing:
    """How a model's texts share sequences."""

    room: int
    """The most tokens of a sequence."""
    causal: bool
    """Whether a token sees only those before it."""

    def groups(self, lengths: Int64s, most: int) -> Iterator[list[Int64s]]:
        """Packs that go through the model together: at most `most` tokens, one sequence at least."""
        each = packs(lengths, self.room)
        start = 0
        while start < len(each):
            stop, longest = start, 0
            while stop < len(each):
                longest = max(longest, int(lengths[each[stop]].sum()))
                if stop > start and longest * (stop + 1 - start) > most:
                    break
                stop += 1
            yield each[start:stop]
            start = stop

    def inputs(self, lengths: Sequence[Int64s], dtype: Any, device: Any) -> dict[str, Any]:
        """position_ids (n, longest), and attention_mask: which token sees which.

        Of causal models (n, 1, longest, longest) of `dtype`, 0 where it does and the least number there
        is where not; of masked ones (n, longest, longest), 1 and 0, as BERT and its kin take it.
        `lengths` are those of the rows of each sequence. Padding sees itself, so that no softmax is
        taken over nothing.
        """
        import torch

        longest = max(int(each.sum()) for each in lengths)
        row_of = np.full((len(lengths), longest), -1, np.int64)
        positions = np.zeros((len(lengths), longest), np.int64)
        for number, each in enumerate(lengths):
            tokens = int(each.sum())
            row_of[number, :tokens] = np.repeat(np.arange(len(each)), each)
            positions[number, :tokens] = within(each)
        row = torch.as_tensor(row_of).to(device)
        sees = row[:, :, None] == row[:, None, :]
        found = {"position_ids": torch.as_tensor(positions).to(device)}
        if not self.causal:
            return {**found, "attention_mask": sees.long()}
        mask = torch.zeros(sees.shape, dtype=dtype, device=device)
        mask.masked_fill_(~sees.tril(), torch.finfo(dtype).min)
        return {**found, "attention_mask": mask[:, None]}


def require_apart(read: TokenModel, headed: HeadedModel, packing: Packing, who: str) -> None:
    """FormatError for a model that answers otherwise for texts in one sequence than for each alone.

    Tried on drawn tokens: one text that fills a sequence, which a sliding window would cut, and
    several that share one.
    """
    if "position_ids" not in inspect.signature(read.model.forward).parameters:
        raise FormatError(_cannot(who, "it takes no position_ids"))
    lengths = [packing.room]
    while (rest := packing.room // 2 ** len(lengths)) > 0:
        lengths.append(rest)
    tokens = _drawn(lengths, read.entries)
    every = np.arange(len(lengths))
    alone = np.concatenate([_said(headed, read.padded(tokens, every[i : i + 1])) for i in every])
    shared = [every[:1], every[1:]] if len(every) > 1 else [every]
    try:
        packed = np.concatenate([_said(headed, read.packed(tokens, [pack])) for pack in shared])
    except (RuntimeError, ValueError, TypeError, IndexError) as error:
        if out_of_memory(error):
            raise
        first = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        raise FormatError(_cannot(who, f"given that mask it fails ({first})")) from error
    share = SINGLE if read.model.dtype.itemsize == 4 else HALF
    allowed = share[1] * float(np.ptp(alone)) + SLACK * float(np.abs(alone).max())
    found = float(np.abs(packed - alone).max())
    if not found <= allowed:
        raise FormatError(
            _cannot(
                who,
                f"its states differ by {found:.3g} from those of each text alone, "
                f"{allowed:.3g} may be",
            )
        )


def _drawn(lengths: Sequence[int], entries: int) -> Tokens:
    """Texts of drawn tokens, the same ones at all times."""
    random = np.random.default_rng(0)
    ids = [random.integers(0, entries, length) for length in lengths]
    return Tokens(ids, None, np.array(lengths, np.int64))


def _said(headed: HeadedModel, group: Any) -> NDArray[np.float32]:
    """(tokens, d) what stands behind the last layer."""
    _, spoken = headed.run(group, return_dict=True)
    states = spoken.whole if spoken.given is None else spoken.given
    said: NDArray[np.float32] = states.float().cpu().numpy()
    return said


def _cannot(who: str, why: str) -> str:
    return (
        f"{who}: this model does not keep texts apart that share a sequence: {why}. Give the teacher "
        'packing="none", where each text is a sequence of its own'
    )
