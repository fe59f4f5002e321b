"""People teach: the ratings of about twenty of them for every text, against one label for each text.

rows (film and product reviews, editorials, tweets) -> teach (what people said, summed up) -> students
(the same bag of words, five ways to learn) -> table. Run: stillroom run examples/ratings.py, or
python examples/ratings.py.
"""

from __future__ import annotations

import sys
import zlib
from collections.abc import Mapping
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from lessons import Class, Lesson, Line, held_out, lesson_steps
from rated_texts import BUCKETS, archive, hashed, rated_texts

from stillroom.pipeline.step import Step
from stillroom.stages.data.rows import ArrayRows
from stillroom.stages.evaluating import Evaluation
from stillroom.stages.fit import Fit
from stillroom.stages.objectives.logits import cross_entropy
from stillroom.stages.recipe import Recipe
from stillroom.stages.student import Student
from stillroom.stages.teachers.ratings import long_ratings
from stillroom.stages.teachers.table import TableTeacher
from stillroom.stages.term import term
from stillroom.storage.keys import as_keys
from stillroom.storage.reader import Reader

if TYPE_CHECKING:
    from torch import Tensor, nn

NUMBERS = tuple(range(-4, 5))
"""What people could say: extremely negative to extremely positive."""
CLEAR = 0.5
"""From here on a mean counts as positive, and from its negative on as negative."""


def ratings(*, data: str = "", rows: int = 6000, epochs: int = 8, seeds: int = 3) -> list[Step]:
    """Distil what about twenty people said of each text into bags of words.

    data: the sdist of vaderSentiment 0.5 (empty: in build/packages); rows: texts at most (0: all);
    epochs: of every student; seeds: trainings of each student.
    """
    measured = Evaluation("test", compared, columns=(), signals=("votes", "mean"))
    learn = Class(students, measured, ("nll", "mae", "side"), references)
    return lesson_steps(partial(lesson, data=data, rows=rows), learn, epochs=epochs, seeds=seeds)


@cache
def lesson(folder: Path, *, data: str, rows: int) -> Lesson:
    """Texts as hashed words, one person's label for each (`one`), and everybody's ratings."""
    texts = rated_texts(archive(data))[: rows or None]
    keys = [text.key for text in texts]
    chosen = [t.ratings[zlib.crc32(t.key.encode()) % len(t.ratings)] for t in texts]
    plain = ArrayRows(
        keys, ids=hashed([text.text for text in texts]), one=np.array(chosen) - NUMBERS[0]
    )
    teacher = TableTeacher("people", NUMBERS, signals=("votes", "majority", "mean", "raters"))
    said = [
        (text.key, f"{i:02}", rating) for text in texts for i, rating in enumerate(text.ratings)
    ]
    names = ("key", "rater", "label")
    table = long_ratings(dict(zip(names, zip(*said, strict=True), strict=True)))
    splits = held_out(keys, [text.source for text in texts])
    return Lesson(teacher.rows(plain, table), teacher, splits, batch_size=256)


def bag(width: int) -> nn.Module:
    """The mean of the vectors of a text's words and word pairs, and a score for each number."""
    from torch import nn

    words = nn.EmbeddingBag(BUCKETS, width, mode="mean", padding_idx=0)
    return nn.Sequential(words, nn.ReLU(), nn.Linear(width, len(NUMBERS)))


def expected(logits: Tensor) -> Tensor:
    """(n,) the mean of the numbers under (n, 9) logits."""
    import torch

    numbers = torch.tensor(NUMBERS, dtype=logits.dtype, device=logits.device)
    return logits.softmax(-1) @ numbers


def unlike_votes(logits: Tensor, votes: Tensor) -> Tensor:
    """-sum of votes * log softmax(logits): nats that people's answers cost under the student."""
    return -(votes * logits.log_softmax(-1)).sum(-1)


def unlike_mean(logits: Tensor, mean: Tensor) -> Tensor:
    """The squared distance of the expected number from the mean."""
    return (expected(logits) - mean).square()


def _recipes() -> Mapping[str, Recipe]:
    votes = term(unlike_votes, "student.logits", "teacher.votes")
    mean = term(unlike_mean, "student.logits", "teacher.mean")
    return {
        "one person's label": Recipe("one", (term(cross_entropy, "student.logits", "row.one"),)),
        "majority": Recipe(
            "majority", (term(cross_entropy, "student.logits", "teacher.majority"),)
        ),
        "mean": Recipe("mean", (mean,)),
        "votes": Recipe("votes", (votes,)),
        "votes and mean": Recipe("both", (votes, mean)),
    }


def students(*, epochs: int, seeds: int) -> list[Student]:
    """Every way to learn with every seed; all have the same architecture and see the same rows."""
    fit = Fit(epochs=epochs, batch_size=128, learning_rate=1e-2, evaluate_every=epochs)
    return [
        Student(recipe.name, partial(bag, 16), recipe, inputs=("ids",), fit=fit, seed=seed)
        for recipe in _recipes().values()
        for seed in range(seeds)
    ]


def compared(tensors: Mapping[str, Any]) -> dict[str, Any]:
    """What the student says of texts that it did not train on, against all people's answers.

    `nll`: nats that one person's answer costs; `mae`: the expected number's distance from the mean;
    `side`: share of texts of clear mean for which its sign is right.
    """
    logits, votes = tensors["student.logits"].double(), tensors["teacher.votes"].double()
    return {
        "nll": unlike_votes(logits, votes).mean().item(),
        **_numbers(expected(logits), tensors["teacher.mean"].double()),
    }


def _numbers(mine: Tensor, mean: Tensor) -> dict[str, float]:
    clear = mean.abs() >= CLEAR
    return {
        "mae": (mine - mean).abs().mean().item(),
        "side": (mine.sign() == mean.sign())[clear].double().mean().item(),
    }


def references(given: Lesson, reader: Reader) -> dict[str, Line]:
    """People themselves, one more person, and the same answer for every text."""
    import torch

    def said(split: str) -> dict[str, Tensor]:
        taken = reader.gather(as_keys(given.splits[split]))
        return {name: torch.as_tensor(values).double() for name, values in taken.items()}

    train, test = said("train"), said("test")
    place = {key: i for i, key in enumerate(given.rows.keys.to_pylist())}
    places = np.array([place[key] for key in given.splits["test"]])
    one = torch.as_tensor(given.rows.read(places, ["one"])["one"]) + NUMBERS[0]
    others = (test["mean"] * test["raters"] - one) / (test["raters"] - 1)
    same = train["votes"].mean(0).log().expand_as(test["votes"])
    lines = {
        "people (the entropy of their votes)": {
            "nll": torch.special.entr(test["votes"]).sum(-1).mean().item()
        },
        "one person, against the others": _numbers(one.double(), others),
        "the same for every text": compared(
            {f"teacher.{name}": values for name, values in test.items()} | {"student.logits": same}
        ),
    }
    return {name: {m: [value] for m, value in line.items()} for name, line in lines.items()}


if __name__ == "__main__":
    from stillroom.workflows.cli import main

    sys.argv[1:1] = ["run", __file__]
    main()
