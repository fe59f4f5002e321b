"""A language model as a teacher: what it says of each token of a given text, without generating any."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from stillroom.stages.data.rows import Batch
from stillroom.stages.teachers.huggingface import running, sources
from stillroom.stages.teachers.huggingface.checkpoint import (
    Attention,
    Precision,
    checkpoint_folder,
    checkpoint_identity,
    load_model,
)
from stillroom.stages.teachers.huggingface.heads import HeadedModel, Spoken
from stillroom.stages.teachers.huggingface.packing import Packing, require_apart
from stillroom.stages.teachers.huggingface.reading import Collected, Group, TokenModel
from stillroom.stages.teachers.huggingface.sources import Source
from stillroom.stages.teachers.huggingface.texts import Texts, Tokens
from stillroom.stages.teachers.teacher import Answer
from stillroom.storage.errors import SignalError
from stillroom.storage.folder import Ask
from stillroom.storage.signal import Values

OF_LOGITS = ("logits", "logsumexp", "logprob")
GIVES = {
    **dict.fromkeys((*OF_LOGITS, "state"), ""),
    **running.LAYERS,
    **dict.fromkeys(("ids", "tokens", "length"), ""),
}
_CLASSES = {"causal": "AutoModelForCausalLM", "masked": "AutoModelForMaskedLM"}


@dataclass(frozen=True)
class LanguageTeacher:
    """The causal or masked language model in a checkpoint's folder, and what it says of given texts.

    What its signals are taken from, for a text of n tokens, ids[0] to ids[n - 1]:

    - `logits` (n, vocabulary) float32. Causal: element t is what follows ids[0] to ids[t], so it
      predicts ids[t + 1], and the last what comes behind the text. Masked: element t is what stands
      at t, given the whole text as it is; where a text holds the mask token, what is behind that
    - `logsumexp` (n,): of the same logits
    - `logprob` float32: of the tokens that are there. Causal (n - 1,): element t is the
      log-probability of ids[t + 1] in logits[t]. Masked (n,): of ids[t] in logits[t]
    - `state` (n, d): what the head is given for the same elements. Stored as
      `encodings={"logits": "head(lm_head)"}`, with the head's own name, it decodes to the logits
    - `hidden:k`, `hidden:all`, `last`, `attention:k`, `ids`, `tokens`, `length`: as of EncoderTeacher

    Softmax and sums are taken in float32. Logits are made from the states of the row's own tokens, some
    positions at a time: (tokens of a pass, vocabulary) is never held, unless `logits` itself is asked
    for. Then those of one batch are held, float32, until they are encoded: a large vocabulary calls for
    `state` and a head, or for small batches.
    """

    name: str
    """Names the teacher's segments."""
    folder: str | Path
    """The checkpoint; its bytes are part of the identity, where it lies is not."""
    texts: Texts
    """How texts become tokens."""
    kind: Literal["causal", "masked"] = "causal"
    """What an element predicts: the next token, or the one in its own place."""
    signals: Mapping[str, str] = field(default_factory=lambda: {"logits": "logits", "ids": "ids"})
    """What each is taken from, by name."""
    encodings: Mapping[str, str] = field(default_factory=dict)
    """Encoding by signal; raw where none is named."""
    inputs: Sequence[str] = ("text",)
    """The column of texts, or of conversations."""
    precision: Precision = "float32"
    """In which weights are held and computed with; what is stored is float32."""
    attention: Attention = "sdpa"
    """How attention is computed: eager wherever a signal reads it."""
    device: str = "auto"
    """"auto" takes a GPU where the worker has one. Not part of the identity."""
    threads: int = 1
    """CPU threads inside one worker."""
    packing: Literal["none", "packed"] = "none"
    """Whether texts share sequences of up to `max_tokens` tokens, none seeing another. It saves padding
    where a batch's texts differ much in length; but attention is computed over whole sequences."""
    tokens_at_once: int = 8_192
    """Of one forward pass, padding included. Not part of the identity."""
    positions_at_once: int = 512
    """Positions whose logits are made at once. Not part of the identity."""

    def asks(self) -> Mapping[str, Ask]:
        """Every signal; also `tokens` and `length` where texts may be cut.

        SignalError for a head's encoding of anything but its states.
        """
        read = self._sources()
        for name, encoding in self.encodings.items():
            if encoding.startswith("head(") and name in read and read[name].what != "state":
                raise SignalError(
                    f"teacher {self.name!r}, signal {name!r}: {encoding} makes logits from what the "
                    f"head is given; read it from 'state', not from {self.signals[name]!r}"
                )
        counted = list(dict.fromkeys(source.column for source in read.values()))
        cut = counted if self.texts.too_long == "cut" else []
        return sources.asked(self.signals, self.encodings, cut, f"teacher {self.name!r}")

    def identity(self) -> dict[str, Any]:
        """Weights, configuration, tokenizer, and every setting that decides numbers; no path."""
        who = f"teacher {self.name!r}"
        folder = checkpoint_folder(self.folder, who)
        return {
            "kind": f"{self.kind} language model",
            "adapter": 1,
            "shift": 1 if self.kind == "causal" else 0,
            **checkpoint_identity(folder, who, ["tokenizers"]),
            **self.texts.identity(folder, self.packing),
            "inputs": list(self.inputs),
            "precision": self.precision,
            "attention": self._attention(),
        }

    def load(self) -> Answer:
        """Load tokenizer and model; FormatError where the checkpoint lacks weights, or where texts are
        to share sequences and the model does not keep them apart."""
        return _Loaded(self)

    def _sources(self) -> dict[str, Source]:
        return sources.sources_of(self.signals, self.inputs, GIVES, f"teacher {self.name!r}")

    def _attention(self) -> Attention:
        return sources.attention_for(self._sources().values(), self.attention)


class _Loaded:
    """A model with its head and its tokenizer."""

    def __init__(self, teacher: LanguageTeacher) -> None:
        self._teacher, self._who = teacher, f"teacher {teacher.name!r}"
        asked = {name: ask.source for name, ask in teacher.asks().items()}
        self._sources = sources.sources_of(asked, teacher.inputs, GIVES, self._who)
        folder = checkpoint_folder(teacher.folder, self._who)
        model = load_model(
            *(folder, _CLASSES[teacher.kind], self._who),
            precision=teacher.precision,
            attention=teacher._attention(),
            device=teacher.device,
        )
        packed = teacher.packing == "packed"
        packing = Packing(teacher.texts.max_tokens, teacher.kind == "causal") if packed else None
        self._read = TokenModel(model, teacher.texts, folder, self._who, packing)
        with running.inference(teacher.threads):
            self._headed = HeadedModel(model, self._who)
            if packing is not None:
                require_apart(self._read, self._headed, packing, self._who)

    def constants(self, name: str) -> dict[str, Any]:
        """weight (V, d) and, where it has one, bias (V,) of the head of that name."""
        return self._headed.constants(name)

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
            base, spoken = self._headed.run(group, **given)
            for name, source in read.items():
                if source.what == "state":
                    own = running.array_of(spoken.states())
                    found.put(name, tokens.kept, group.row_of, group.at, own)
                elif source.what not in OF_LOGITS:
                    found.take(name, source, base, group)
            if any(source.what in OF_LOGITS for source in read.values()):
                self._of_logits(tokens, found, read, group, spoken)
        return found.values()

    def _of_logits(
        self,
        tokens: Tokens,
        found: Collected,
        read: Mapping[str, Source],
        group: Group,
        spoken: Spoken,
    ) -> None:
        """What is made of the logits of a group's tokens, some positions at a time."""
        import torch

        shift = 1 if self._teacher.kind == "causal" else 0
        kept, row_of, at = tokens.kept, group.row_of, group.at
        none = np.full(shift, -1)  # behind the last token
        ids = np.concatenate([part for r in group.rows for part in (tokens.ids[r][shift:], none)])
        for start in range(0, len(at), self._teacher.positions_at_once):
            some = slice(start, start + self._teacher.positions_at_once)
            logits = spoken.logits(some).float()
            total = torch.logsumexp(logits, -1)
            there = ids[some] >= 0
            target = torch.as_tensor(ids[some].clip(0), device=logits.device)
            logprob = logits.gather(1, target[:, None])[:, 0] - total
            for name, source in read.items():
                if source.what == "logits":
                    found.put(name, kept, row_of[some], at[some], running.array_of(logits))
                elif source.what == "logsumexp":
                    found.put(name, kept, row_of[some], at[some], running.array_of(total))
                elif source.what == "logprob":
                    own = running.array_of(logprob)[there]
                    found.put(name, kept - shift, row_of[some][there], at[some][there], own)
