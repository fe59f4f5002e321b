"""A sentence encoder reads WordNet's glosses once; bags of words learn its vectors and tell topics apart.

Glosses of nouns -> teach (all-MiniLM-L6-v2 from its checkpoint) -> students (labels alone, the teacher's
vectors and a linear probe, both; with all labels and with a quarter) -> table.
Run: stillroom run examples/glosses.py, or python examples/glosses.py.
"""

from __future__ import annotations

import sys
import zlib
from collections.abc import Mapping
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from lessons import Class, Lesson, Line, held_out, lesson_steps, shuffled
from sentences_data import BUCKETS, hashed
from sentences_teacher import model_folder

from stillroom.pipeline.step import Step
from stillroom.stages.data.rows import ArrayRows, find_rows
from stillroom.stages.evaluating import Evaluation
from stillroom.stages.fit import Fit
from stillroom.stages.objectives.features import cosine_distance
from stillroom.stages.objectives.logits import cross_entropy
from stillroom.stages.recipe import Recipe
from stillroom.stages.student import Student
from stillroom.stages.teachers.huggingface.encoder import EncoderTeacher
from stillroom.stages.teachers.huggingface.texts import Texts
from stillroom.stages.term import term
from stillroom.storage.errors import MissingPackageError
from stillroom.storage.keys import as_keys
from stillroom.storage.reader import Reader

if TYPE_CHECKING:
    from torch import Tensor, nn

WORDNET = Path("/usr/share/wordnet")
"""Where Debian's package wordnet-base puts its files."""
FIRST, TOPICS, WIDTH = 3, 26, 384
"""Lexicographer files 3 to 28 hold nouns: acts, animals, artefacts, ... The encoder's width."""


def glosses(*, data: str = "", rows: int = 2000, epochs: int = 10, seeds: int = 3) -> list[Step]:
    """Distil a sentence encoder on WordNet's nouns.

    data: folder with data.noun (empty: where Debian's wordnet-base puts it); rows: glosses at most
    (0: all); epochs: of every student; seeds: trainings of each student.
    """
    measured = Evaluation("test", compared, columns=("label",), signals=("vector",))
    learn = Class(students, measured, ("accuracy", "cosine"), references)
    given = partial(lesson, file=str(Path(data or WORDNET) / "data.noun"), rows=rows)
    return lesson_steps(given, learn, epochs=epochs, seeds=seeds)


def read_nouns(file: Path) -> list[tuple[str, int, str]]:
    """(number of the synset, topic from 0, gloss) of every noun; examples are left out of the gloss.

    A line is `offset file type count word ... | gloss; "example"`; lines that begin with a space are
    the licence. MissingPackageError where the file is not there.
    """
    if not file.is_file():
        raise MissingPackageError(
            f"no {file}: apt-get install wordnet-base, or name the folder of WordNet 3's data.noun "
            "with --data"
        )
    found: dict[str, tuple[str, int, str]] = {}
    for line in file.read_text("latin-1").splitlines():
        if not line.startswith(" "):
            synset, _, gloss = line.partition(" | ")
            number, topic = synset.split()[:2]
            said = gloss.partition('; "')[0].strip()
            found.setdefault(said, (f"n{number}", int(topic) - FIRST, said))
    return list(found.values())


@cache
def lesson(folder: Path, *, file: str, rows: int) -> Lesson:
    """`gloss`, `ids` (96 hashed words and word pairs), `label` (topic), `told`: 1 for one in four."""
    nouns = shuffled(read_nouns(Path(file)), lambda noun: noun[0])[: rows or None]
    keys, labels, texts = (list(column) for column in zip(*nouns, strict=True))
    told = np.array([zlib.crc32(key.encode()) // 5 % 4 == 0 for key in keys], np.int64)
    columns = {"ids": hashed(texts), "label": np.array(labels), "told": told}
    return Lesson(ArrayRows(keys, gloss=texts, **columns), encoder(), held_out(keys, keys))


def encoder() -> EncoderTeacher:
    """The mean over a gloss's tokens of the last states, 384 numbers of length one."""
    return EncoderTeacher(
        "minilm",
        model_folder(),
        Texts(max_tokens=48, too_long="cut"),
        signals={"vector": "mean:unit"},
        encodings={"vector": "float16"},
        inputs=("gloss",),
    )


def bag(width: int) -> nn.Module:
    """The sum of word vectors and one linear layer: a vector of length one, and topics from it.

    `logits` and `probe` are the same numbers; what is learned from `probe` does not reach the words.
    """
    from torch import nn

    class Bag(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.words = nn.EmbeddingBag(BUCKETS, width, mode="sum", padding_idx=0)
            nn.init.normal_(self.words.weight, std=0.05)
            self.out = nn.Sequential(nn.LayerNorm(width), nn.Dropout(0.2), nn.Linear(width, WIDTH))
            self.topics = nn.Linear(WIDTH, TOPICS)

        def forward(self, ids: Tensor) -> dict[str, Tensor]:
            vector = nn.functional.normalize(self.out(self.words(ids)), dim=-1)
            read, alone = (self.topics(10 * given) for given in (vector, vector.detach()))
            return {"vector": vector, "logits": read, "probe": alone}

    return Bag()


def told_only(logits: Tensor, label: Tensor, told: Tensor) -> Tensor:
    """Cross-entropy of the rows whose label is known, nothing for the others."""
    return cross_entropy(logits, label) * told


def _recipes() -> dict[str, Recipe]:
    copied = term(cosine_distance, "student.vector", "teacher.vector", weight=3.0)

    def named(name: str, output: str, few: bool, teacher: bool) -> Recipe:
        inputs = (f"student.{output}", "row.label", *(["row.told"] if few else []))
        labels = term(told_only if few else cross_entropy, *inputs, weight=4.0 if few else 1.0)
        return Recipe(name, (copied, labels) if teacher else (labels,))

    every = (
        named("labels-quarter", "logits", few=True, teacher=False),
        named("vectors-quarter", "probe", few=True, teacher=True),
        named("both-quarter", "logits", few=True, teacher=True),
        named("labels", "logits", few=False, teacher=False),
        named("vectors", "probe", few=False, teacher=True),
        named("both", "logits", few=False, teacher=True),
    )
    return {recipe.name: recipe for recipe in every}


def students(*, epochs: int, seeds: int) -> list[Student]:
    """The same bag with each recipe and each seed; all read the same glosses."""
    fit = Fit(epochs=epochs, batch_size=128, learning_rate=2e-2, evaluate_every=epochs)
    layers = {name: f":{name}" for name in ("vector", "logits", "probe")}
    return [
        Student(name, partial(bag, 64), recipe, ("ids",), layers, fit=fit, seed=seed)
        for name, recipe in _recipes().items()
        for seed in range(seeds)
    ]


def compared(tensors: Mapping[str, Any]) -> dict[str, float]:
    """Of glosses held out: share of right topics, and the cosine to the teacher's vector."""
    right = tensors["student.logits"].argmax(-1) == tensors["row.label"]
    apart = cosine_distance(tensors["student.vector"], tensors["teacher.vector"])
    return {"accuracy": right.double().mean().item(), "cosine": 1 - apart.mean().item()}


def references(given: Lesson, reader: Reader) -> dict[str, Line]:
    """A linear probe on the teacher's own vectors, and the most frequent topic for every gloss."""
    import torch

    def taken(split: str) -> tuple[Tensor, ...]:
        keys = as_keys(given.splits[split])
        read = given.rows.read(find_rows(given.rows, keys), ["label", "told"])
        columns = [reader.gather(keys)["vector"], read["label"], read["told"]]
        return tuple(map(torch.as_tensor, columns))

    (vectors, labels, told), (held, wanted, _) = taken("train"), taken("test")

    def accuracy(few: bool) -> list[float]:
        chosen = told > 0 if few else told >= 0
        probe = probed(vectors[chosen], labels[chosen])
        return [(probe(held).argmax(-1) == wanted).double().mean().item()]

    most = labels.bincount().argmax()
    return {
        "most frequent": {"accuracy": [(wanted == most).double().mean().item()]},
        "teacher, a quarter of the labels": {"accuracy": accuracy(True), "cosine": [1.0]},
        "teacher": {"accuracy": accuracy(False), "cosine": [1.0]},
    }


def probed(vectors: Tensor, labels: Tensor) -> nn.Module:
    """A linear layer fitted to all rows at once (L-BFGS); weights are held small as by C = 10 of
    scikit-learn's LogisticRegression."""
    import torch
    from torch import nn

    with torch.random.fork_rng(devices=[]), torch.enable_grad():
        torch.manual_seed(0)
        probe = nn.Linear(vectors.shape[1], TOPICS)
        steps = torch.optim.LBFGS(probe.parameters(), max_iter=200, line_search_fn="strong_wolfe")

        def loss() -> Tensor:
            steps.zero_grad()
            held = probe.weight.square().sum() / (20 * len(labels))
            lost: Tensor = cross_entropy(probe(vectors), labels).mean() + held
            lost.backward()
            return lost

        steps.step(loss)
    return probe


if __name__ == "__main__":
    from stillroom.workflows.cli import main

    sys.argv[1:1] = ["run", __file__]
    main()
