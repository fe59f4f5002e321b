"""Where in a checkpoint's model a signal is taken from, in one word: `hidden:3`, `mean:unit@title`."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from stillroom.stages.teachers.huggingface.checkpoint import Attention
from stillroom.storage.errors import SignalError, nearest
from stillroom.storage.folder import Ask

_SOURCE = re.compile(r"([a-z_]+)(?::([a-z0-9]+))?(?:@(.+))?")
COUNTS = ("tokens", "length")


@dataclass(frozen=True)
class Source:
    """What is read."""

    what: str
    """`hidden`, `mean`, `logits`, ..."""
    option: str = ""
    """Which of them: a layer's number, `all`, `unit`."""
    column: str = ""
    """Of which column of the data set."""

    @property
    def layer(self) -> int:
        """The number of a layer."""
        return int(self.option)


def source_of(text: str, inputs: Sequence[str], known: Mapping[str, str], who: str) -> Source:
    """A source as a teacher spells it; SignalError where it gives no such thing.

    `known` maps what the teacher gives to a pattern of its options. Without `@column` the first of
    the inputs is read.

    >>> source_of("hidden:3", ["text"], {"hidden": r"[0-9]+|all"}, "")
    Source(what='hidden', option='3', column='text')
    """
    match = _SOURCE.fullmatch(text)
    what, option, column = match.groups(default="") if match else (text, "", "")
    column = column or inputs[0]
    if what not in known:
        raise SignalError(f"{who} gives no {text!r}; {nearest(what, known)}")
    if not re.fullmatch(known[what], option):
        raise SignalError(f"{who} gives no {text!r}: expected {what}{_optional(known[what])}")
    if column not in inputs:
        raise SignalError(f"{who}: {text!r} reads no column it is given; {nearest(column, inputs)}")
    return Source(what, option, column)


def sources_of(
    texts: Mapping[str, str], inputs: Sequence[str], known: Mapping[str, str], who: str
) -> dict[str, Source]:
    """The same of every signal, by its name."""
    return {name: source_of(text, inputs, known, who) for name, text in texts.items()}


def attention_for(read: Iterable[Source], otherwise: Attention) -> Attention:
    """How a model must compute attention: eager where a signal reads it, as sdpa keeps none."""
    return "eager" if any(source.what == "attention" for source in read) else otherwise


def _optional(pattern: str) -> str:
    return f" with :{pattern} behind it" if pattern else " alone"


def asked(
    signals: Mapping[str, str], encodings: Mapping[str, str], counted: Sequence[str], who: str
) -> dict[str, Ask]:
    """What is asked of a teacher; `counted` are columns whose tokens are counted in any case.

    SignalError for an encoding of a signal that is not among them.
    """
    for name in encodings:
        if name not in signals:
            raise SignalError(f"encoding for {name!r}, which {who} does not give")
    return {
        name: Ask(encodings.get(name, "raw"), source)
        for name, source in with_counts(signals, counted).items()
    }


def with_counts(signals: Mapping[str, str], columns: Sequence[str]) -> dict[str, str]:
    """The signals, with `tokens` and `length` of texts that may be cut, unless they are there.

    >>> with_counts({"mean": "mean"}, ["text"])
    {'mean': 'mean', 'tokens': 'tokens', 'length': 'length'}
    """
    found = dict(signals)
    for column in columns:
        tail, at = ("", "") if len(columns) == 1 else (f"-{column}", f"@{column}")
        for count in COUNTS:
            if not {f"{count}@{column}", f"{count}{at}"} & set(signals.values()):
                found.setdefault(f"{count}{tail}", f"{count}{at}")
    return found
