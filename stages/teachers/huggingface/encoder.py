"""An encoder of texts as a teacher: hidden states, attention and pooled vectors of a checkpoint."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from stillroom.stages.data.rows import Batch
from stillroom.stages.teachers.huggingface import running, sources
from stillroom.stages.teachers.huggingface.checkpoint import (
    Attention,
    Precision,
    checkpoint_folder,
    checkpoint_identity,
    load_model,
)
from stillroom.stages.teachers.huggingface.reading import TokenModel
from stillroom.stages.teachers.huggingface.sources import Source
from stillroom.stages.teachers.huggingface.texts import Texts
from stillroom.stages.teachers.teacher import Answer
from stillroom.storage.folder import Ask
from stillroom.storage.signal import Values

GIVES = {**running.LAYERS, **running.POOLED, "ids": "", "tokens": "", "length": ""}


@dataclass(frozen=True)
class EncoderTeacher:
    """The encoder in a checkpoint's folder (config.json, weights, tokenizer), as AutoModel reads it.

    What its signals are taken from:

    - `hidden:k` (tokens, d): what block k gives, hidden:0 the embeddings; `hidden:all` (tokens,
      blocks + 1, d); `last` (tokens, d): behind the model's final norm
    - `attention:k` (tokens * tokens, heads): inside block k, from 1; see `as_attention`
    - `mean`, `cls`, `pooler` (d,): the mean of the last states over the row's tokens, the first of
      them, or what the checkpoint's pooler makes of that; `mean:unit` has length one
    - `ids` (tokens,), `tokens`, `length`, int32: the tokens, how many were read, how many there were

    What is said of tokens is ragged, of the row's own tokens alone, special ones included. With several
    columns, `mean@title` names the one that is read.
    """

    name: str
    """Names the teacher's segments."""
    folder: str | Path
    """The checkpoint; its bytes are part of the identity, where it lies is not."""
    texts: Texts
    """How texts become tokens."""
    signals: Mapping[str, str] = field(default_factory=lambda: {"embedding": "mean"})
    """What each is taken from, by name."""
    encodings: Mapping[str, str] = field(default_factory=dict)
    """Encoding by signal; raw where none is named."""
    inputs: Sequence[str] = ("text",)
    """Columns of texts; each is read by itself."""
    precision: Precision = "float32"
    """In which weights are held and computed with; pools and what is stored are float32."""
    attention: Attention = "sdpa"
    """How attention is computed: eager wherever a signal reads it."""
    device: str = "auto"
    """"auto" takes a GPU where the worker has one. Not part of the identity."""
    threads: int = 1
    """CPU threads inside one worker."""
    tokens_at_once: int = 16_384
    """Of one forward pass, padding included. Not part of the identity."""

    def asks(self) -> Mapping[str, Ask]:
        """Every signal; also `tokens` and `length` where texts may be cut."""
        read = self._sources().values()
        counted = list(dict.fromkeys(source.column for source in read))
        cut = counted if self.texts.too_long == "cut" else []
        return sources.asked(self.signals, self.encodings, cut, f"teacher {self.name!r}")

    def identity(self) -> dict[str, Any]:
        """Weights, configuration, tokenizer, and every setting that decides numbers; no path."""
        who = f"teacher {self.name!r}"
        folder = checkpoint_folder(self.folder, who)
        return {
            "kind": "encoder",
            "adapter": 1,
            **checkpoint_identity(folder, who, ["tokenizers"]),
            **self.texts.identity(folder),
            "inputs": list(self.inputs),
            "precision": self.precision,
            "attention": self._attention(),
        }

    def load(self) -> Answer:
        """Load tokenizer and model; FormatError where the checkpoint lacks weights."""
        return _Loaded(self)

    def _sources(self) -> dict[str, Source]:
        return sources.sources_of(self.signals, self.inputs, GIVES, f"teacher {self.name!r}")

    def _attention(self) -> Attention:
        return sources.attention_for(self._sources().values(), self.attention)


class _Loaded:
    """A model and its tokenizer."""

    def __init__(self, teacher: EncoderTeacher) -> None:
        self._teacher, self._who = teacher, f"teacher {teacher.name!r}"
        asked = {name: ask.source for name, ask in teacher.asks().items()}
        self._sources = sources.sources_of(asked, teacher.inputs, GIVES, self._who)
        folder = checkpoint_folder(teacher.folder, self._who)
        reads_pooler = any(source.what == "pooler" for source in self._sources.values())
        model = load_model(
            *(folder, "AutoModel", self._who),
            precision=teacher.precision,
            attention=teacher._attention(),
            device=teacher.device,
            unread=() if reads_pooler else ("pooler.",),
        )
        self._read = TokenModel(model, teacher.texts, folder, self._who)

    def __call__(self, batch: Batch) -> dict[str, Values]:
        columns = dict.fromkeys(source.column for source in self._sources.values())
        with running.inference(self._teacher.threads):
            found: dict[str, Values] = {}
            for column in columns:
                mine = {n: s for n, s in self._sources.items() if s.column == column}
                found |= self._of_column(column, batch[column], mine)
            return {name: found[name] for name in self._sources}

    def _of_column(self, column: str, texts: Any, read: Mapping[str, Source]) -> dict[str, Values]:
        tokens = self._read.reader.read(column, texts)
        found = self._read.collected(tokens, read)
        given = running.wanted(read.values())
        for group in self._read.passes(tokens, read, self._teacher.tokens_at_once):
            _, base = running.run(self._read.model, **group.inputs, **given)
            for name, source in read.items():
                if source.what in running.POOLED:
                    made = running.pooled(base, source, group.mask, self._who)
                    found.stack(name, group.rows, running.array_of(made))
                else:
                    found.take(name, source, base, group)
        return found.values()
