"""What text models share: a model with its tokenizer, passes over rows of like length, signals joined."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stillroom.stages.teachers.huggingface import running
from stillroom.stages.teachers.huggingface.packing import Packing
from stillroom.stages.teachers.huggingface.rows import (
    Int64s,
    Joined,
    Stacked,
    groups,
    padded,
    within,
)
from stillroom.stages.teachers.huggingface.sources import Source
from stillroom.stages.teachers.huggingface.texts import TextReader, Texts, Tokens
from stillroom.storage.errors import FormatError
from stillroom.storage.signal import Values

KNOWN_OF_TOKENS = ("ids", "tokens", "length")
"""What is known of a text without the model."""


@dataclass(frozen=True)
class Group:
    """Rows of a batch in one forward pass, each in a sequence of its own or several in one."""

    rows: Int64s
    """Places in the batch, in the order of the sequences."""
    lengths: Int64s
    """Tokens of each."""
    inputs: Mapping[str, Any]
    """What the model is given, (sequences, longest) each: input_ids, and token_type_ids where it takes
    them and its tokenizer gives them; attention_mask; of packed rows also position_ids."""
    mask: Any
    """(sequences, longest): 1 where a token is."""
    spots: Int64s
    """(rows, 2): in which sequence each row lies, and where in it it begins."""

    @property
    def row_of(self) -> Int64s:
        """(all tokens,): the row in the batch of each token of the group, row after row."""
        return np.repeat(self.rows, self.lengths)

    @property
    def at(self) -> Int64s:
        """(all tokens,): which of its row's each is."""
        return within(self.lengths)

    def own(self, tensor: Any) -> Any:
        """(all tokens, *inner) of (sequences, longest, *inner): what is no padding, row after row."""
        return tensor[self.mask.bool()]


class TokenModel:
    """A model, and the tokenizer that it was trained with."""

    def __init__(
        self,
        model: Any,
        texts: Texts,
        folder: Path,
        who: str,
        packing: Packing | None = None,
    ) -> None:
        """FormatError where the two do not fit each other, or the texts the model."""
        self.model, self._who, self._packing = model, who, packing
        self.reader = TextReader(texts, folder, who)
        config = getattr(model.config, "text_config", None) or model.config
        pad = getattr(config, "pad_token_id", None)
        # What the mask hides; but some models count positions from the padding that they know.
        self._pad = pad if isinstance(pad, int) and pad >= 0 else 0
        self._device = model.device
        self._types = "token_type_ids" in inspect.signature(model.forward).parameters
        positions = getattr(config, "max_position_embeddings", None)
        if isinstance(positions, int) and texts.max_tokens > positions:
            raise FormatError(
                f"{who}: max_tokens={texts.max_tokens:,}, but the model of {folder} has only "
                f"{positions:,} positions; lower it"
            )
        entries, known = getattr(config, "vocab_size", None), len(self.reader.tokenizer)
        self.entries = entries if isinstance(entries, int) else known
        """Tokens that the model has embeddings for."""
        if isinstance(entries, int) and known > entries:
            raise FormatError(
                f"{who}: the tokenizer of {texts.folder(folder)} knows {known:,} tokens, the model of "
                f"{folder} has embeddings for {entries:,}; they belong to different models"
            )

    def collected(self, tokens: Tokens, read: Mapping[str, Source]) -> Collected:
        """What is known before the model runs, and room for the rest."""
        found = Collected(tokens, self._who)
        for name, source in read.items():
            if source.what in KNOWN_OF_TOKENS:
                found.known(name, source.what)
        return found

    def passes(self, tokens: Tokens, read: Mapping[str, Source], most: int) -> Iterator[Group]:
        """The rows of a batch in passes of at most `most` tokens; none where nothing is asked of the
        model."""
        if all(source.what in KNOWN_OF_TOKENS for source in read.values()):
            return
        if self._packing is None:
            yield from (self.padded(tokens, rows) for rows in groups(tokens.kept, most))
        else:
            yield from (self.packed(tokens, p) for p in self._packing.groups(tokens.kept, most))

    def padded(self, tokens: Tokens, rows: Int64s) -> Group:
        """Each of these rows in a sequence of its own."""
        given, mask = self._given(tokens, list(rows[:, None]))
        spots = np.stack([np.arange(len(rows)), np.zeros(len(rows), np.int64)], axis=1)
        return Group(rows, tokens.kept[rows], {**given, "attention_mask": mask}, mask, spots)

    def packed(self, tokens: Tokens, packs: Sequence[Int64s]) -> Group:
        """The rows of each pack one after another in a sequence, where none sees another."""
        given, mask = self._given(tokens, packs)
        rows = np.concatenate(packs)
        lengths = [tokens.kept[pack] for pack in packs]
        spots = [
            np.stack([np.full(len(each), number), np.cumsum(each) - each], axis=1)
            for number, each in enumerate(lengths)
        ]
        assert self._packing is not None
        given |= self._packing.inputs(lengths, self.model.dtype, self._device)
        return Group(rows, tokens.kept[rows], given, mask, np.concatenate(spots))

    def _given(self, tokens: Tokens, packs: Sequence[Int64s]) -> tuple[dict[str, Any], Any]:
        """Ids, and types where there are any, of sequences of rows, and where tokens are."""
        place = running.placer(self._device)

        def joined(each: Sequence[Int64s], pad: int) -> tuple[Int64s, Int64s]:
            return padded([np.concatenate([each[row] for row in pack]) for pack in packs], pad)

        ids, mask = joined(tokens.ids, self._pad)
        given = {"input_ids": place(ids)}
        if self._types and tokens.types is not None:
            given["token_type_ids"] = place(joined(tokens.types, 0)[0])
        return given, place(mask)


class Collected:
    """The signals of a batch, each held once and without padding."""

    def __init__(self, tokens: Tokens, who: str) -> None:
        """Nothing is held yet."""
        self._tokens, self._who = tokens, who
        self._joined: dict[str, Joined] = {}
        self._stacked: dict[str, Stacked] = {}

    def known(self, name: str, what: str) -> None:
        """Ids or counts of the tokens."""
        tokens, kept = self._tokens, self._tokens.kept
        if what == "ids":
            ids = np.concatenate(tokens.ids).astype(np.int32)
            self.put(name, kept, np.repeat(np.arange(len(kept)), kept), within(kept), ids)
        else:
            counts = kept if what == "tokens" else tokens.lengths
            self.stack(name, np.arange(len(counts)), counts.astype(np.int32))

    def put(
        self, name: str, lengths: Int64s, rows: Int64s, at: Int64s, values: NDArray[Any]
    ) -> None:
        """Some elements of a ragged signal whose rows have these lengths: whose they are, and where."""
        if name not in self._joined:
            self._joined[name] = Joined(lengths)
        self._joined[name].put(rows, at, values)

    def stack(self, name: str, rows: Int64s, values: NDArray[Any]) -> None:
        """Rows of a signal of a fixed shape."""
        self._stacked.setdefault(name, Stacked(len(self._tokens.ids))).put(rows, values)

    def take(self, name: str, source: Source, base: Any, group: Group) -> None:
        """Hidden states or attention of a group's rows, without what was padded."""
        if source.what in KNOWN_OF_TOKENS:
            return
        kept = self._tokens.kept
        if source.what != "attention":
            own = running.array_of(group.own(running.states(base, source, self._who)))
            self.put(name, kept, group.row_of, group.at, own)
            return
        each = running.attention(base, source, self._who)
        for row, n, (at, b) in zip(group.rows, group.lengths, group.spots.tolist(), strict=True):
            own = each[at, :, b : b + n, b : b + n]
            square = running.array_of(own.permute(1, 2, 0).reshape(n * n, -1))
            self.put(name, kept**2, np.full(n * n, row), np.arange(n * n), square)

    def values(self) -> dict[str, Values]:
        """Every signal by name."""
        ragged: dict[str, Values] = {n: joined.ragged() for n, joined in self._joined.items()}
        return ragged | {name: rows.stacked() for name, rows in self._stacked.items()}
