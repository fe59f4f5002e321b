"""Texts of ragged lengths through a language model: packed into common sequences, padded, one by one."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from benchmarks.measuring import Line, Section, interleaved, timed
from stillroom.stages.teachers.huggingface.language import LanguageTeacher
from stillroom.stages.teachers.huggingface.texts import Texts

BATCH, MOST = 64, 256
WIDTH, LAYERS, WORDS = 256, 4, 1_000
SHAPES = {
    "most are short": (2.5, 1.0),
    "of like length": (4.0, 0.1),
}
"""Mean and deviation of the logarithm of a text's words."""


def measure(work: Path, quick: bool) -> Section:
    """Rows a second of each way, for two kinds of raggedness."""
    folder = work / "model"
    _save(folder)
    section = Section(
        "Packing",
        f"A GPT-2 of {LAYERS} layers of width {WIDTH}, drawn weights, 1 thread; batches of {BATCH} texts "
        f'of up to {MOST} tokens; `logsumexp` of each token. Packed: `packing="packed"`. Padded: the '
        "default, where texts of like length share a pass. One by one: a batch is a text, which pads "
        "nothing.",
    )
    for name, (mean, deviation) in SHAPES.items():
        texts = _texts(BATCH if quick else 2 * BATCH, mean, deviation)
        ways = {
            "packed": timed(_Way(folder, "packed", texts, BATCH)),
            "padded": timed(_Way(folder, "none", texts, BATCH)),
            "one": timed(_Way(folder, "none", texts, 1)),
        }
        times = interleaved(ways, 1 if quick else 4)
        rows = {way: len(texts) / found.median for way, found in times.items()}
        what = f"{name}, {np.mean([len(t.split()) for t in texts]):.0f} tokens in the mean: "
        remark = ", ".join(f"{way} {figure:,.0f} rows/s" for way, figure in rows.items())
        section.lines.append(
            Line(what + "packed", "padded", times["packed"], times["padded"], remark=remark)
        )
        section.lines.append(Line(what + "packed", "one by one", times["packed"], times["one"]))
        section.notes.append(f"{name}: {remark}.")
    return section


class _Way:
    """All texts once, in batches."""

    def __init__(
        self, folder: Path, packing: Literal["none", "packed"], texts: Sequence[str], batch: int
    ) -> None:
        signals = {"lse": "logsumexp"}
        teacher = LanguageTeacher("lm", folder, Texts(MOST), signals=signals, packing=packing)
        self._answer, self._texts, self._batch = teacher.load(), list(texts), batch

    def __call__(self) -> None:
        for start in range(0, len(self._texts), self._batch):
            self._answer({"text": self._texts[start : start + self._batch]})


def _texts(count: int, mean: float, deviation: float) -> list[str]:
    random = np.random.default_rng(0)
    lengths = np.exp(random.normal(mean, deviation, count)).astype(int).clip(1, MOST)
    return [" ".join(f"w{i}" for i in random.integers(0, WORDS, n)) for n in lengths]


def _save(folder: Path) -> None:
    """A model with drawn weights, and a tokenizer with a token for each word."""
    tokenizers, transformers = map(importlib.import_module, ("tokenizers", "transformers"))
    known = {"[UNK]": 0, **{f"w{i}": i + 1 for i in range(WORDS)}}
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel(known, unk_token="[UNK]"))
    made.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    transformers.PreTrainedTokenizerFast(tokenizer_object=made).save_pretrained(folder)
    torch.manual_seed(0)
    config = transformers.GPT2Config(
        vocab_size=len(known), n_embd=WIDTH, n_layer=LAYERS, n_head=4, n_positions=MOST
    )
    transformers.GPT2LMHeadModel(config).save_pretrained(folder)
