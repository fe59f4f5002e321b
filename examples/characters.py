"""A character language model that somebody else trained teaches once; a small GRU learns from its top 32.

weights (HDF5 -> safetensors, no TensorFlow) -> teach (the next character at every place of a tweet) ->
students -> table. Run: stillroom run examples/characters.py, or python examples/characters.py.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from lessons import Class, Lesson, Line, held_out, lesson_steps, package_file
from numpy.typing import NDArray
from rated_texts import archive, rated_texts

from stillroom.pipeline.step import Result, Run, Step
from stillroom.stages.data.rows import ArrayRows
from stillroom.stages.evaluating import Evaluation
from stillroom.stages.fit import Fit
from stillroom.stages.recipe import Recipe
from stillroom.stages.student import Student
from stillroom.stages.teachers.module import ModuleTeacher
from stillroom.stages.term import term
from stillroom.storage.files import write_atomic
from stillroom.storage.keys import as_keys
from stillroom.storage.reader import Reader

if TYPE_CHECKING:
    from torch import Tensor, nn

CLASSES, PLACES, WINDOW, TOP = 465, 48, 40, 32
"""Characters (0 is padding), predicted places of a text, characters that the teacher looks back on,
and how many of its choices are stored for each place."""
INSTALL = "pip install h5py, and pip install --no-deps textgenrnn==2.0.0"


def characters(*, data: str = "", rows: int = 400, epochs: int = 10, seeds: int = 3) -> list[Step]:
    """Distil textgenrnn into a GRU, on the beginnings of tweets.

    data: the sdist of vaderSentiment 0.5 (empty: in build/packages); rows: tweets at most (0: all);
    epochs: of every student; seeds: trainings of each student.
    """
    file = package_file("textgenrnn", "textgenrnn_weights.hdf5", INSTALL)
    package_file("h5py", "__init__.py", INSTALL)
    first = Step("weights", read_weights, files=(file,))
    measured = Evaluation("test", compared, columns=(), signals=("logits",))
    learn = Class(students, measured, ("bits", "first", "kl"), references)
    given = partial(lesson, data=data, rows=rows)
    return lesson_steps(given, learn, epochs=epochs, seeds=seeds, needs=(first,))


def read_weights(run: Run, inputs: Mapping[str, Result]) -> Result:
    """textgenrnn.safetensors: the weights under the names of `Textgenrnn`.

    Keras keeps the kernels of its CuDNN layers with the four gates side by side, each as CuDNN lays it
    out, and two biases.
    """
    import h5py
    from safetensors.numpy import save

    file = package_file("textgenrnn", "textgenrnn_weights.hdf5", INSTALL)
    with h5py.File(file) as stored:

        def read(name: str) -> NDArray[Any]:
            layer = name.partition("/")[0]
            return np.asarray(stored[f"{layer}/{name}:0"], np.float32)

        weights = {
            "embedding.weight": read("embedding/embeddings"),
            "attention": read("attention/attention_W")[:, 0],
            "output.weight": read("output/kernel").T,
            "output.bias": read("output/bias"),
        }
        for number in (1, 2):
            name, gates = f"rnn_{number}", partial(np.split, indices_or_sections=4, axis=1)
            given = [g.T.reshape(g.shape, order="F") for g in gates(read(f"{name}/kernel"))]
            back = [g.T for g in gates(read(f"{name}/recurrent_kernel"))]
            weights[f"{name}.weight_ih_l0"] = np.concatenate(given, 1).T
            weights[f"{name}.weight_hh_l0"] = np.concatenate(back, 1).T
            biases = np.split(read(f"{name}/bias"), 2)
            weights[f"{name}.bias_ih_l0"], weights[f"{name}.bias_hh_l0"] = biases
    whole = {name: np.ascontiguousarray(array) for name, array in weights.items()}
    write_atomic(run.folder / "textgenrnn.safetensors", [save(whole)])
    return {"outputs": ["textgenrnn.safetensors"]}


def textgenrnn() -> nn.Module:
    """Two LSTMs and an attention-weighted average over a window of 40 characters (M. Woolf, 2018)."""
    import torch
    from torch import nn

    class Textgenrnn(nn.Module):
        """(n, 49) characters -> (n, 48, 465) logits of the next one at every place that has one."""

        def __init__(self) -> None:
            super().__init__()
            self.embedding = nn.Embedding(CLASSES, 100)
            self.rnn_1 = nn.LSTM(100, 128, batch_first=True)
            self.rnn_2 = nn.LSTM(128, 128, batch_first=True)
            self.attention = nn.Parameter(torch.zeros(356))
            self.output = nn.Linear(356, CLASSES)

        def forward(self, ids: Tensor) -> Tensor:
            before = nn.functional.pad(ids[:, :-1], (WINDOW - 1, 0)).unfold(1, WINDOW, 1)
            there = ids[:, 1:] > 0
            logits = torch.zeros(*there.shape, CLASSES, device=ids.device)
            logits[there] = self.next(before[there])
            return logits

        def next(self, windows: Tensor) -> Tensor:
            embedded = self.embedding(windows)
            first, _ = self.rnn_1(embedded)
            second, _ = self.rnn_2(first)
            every = torch.cat([embedded, first, second], -1)
            shares = (every @ self.attention).softmax(1)
            logits: Tensor = self.output((every * shares[..., None]).sum(1))
            return logits

    return Textgenrnn()


@cache
def lesson(folder: Path, *, data: str, rows: int) -> Lesson:
    """Tweets as (n, 49) ids: the sign for a beginning, and the first 48 characters that it knows."""
    known = package_file("textgenrnn", "textgenrnn_vocab.json", INSTALL)
    vocabulary = json.loads(known.read_text())
    texts = rated_texts(archive(data), ("tweet",))[: rows or None]
    ids = np.zeros((len(texts), PLACES + 1), np.int64)
    for row, text in enumerate(texts):
        found = [vocabulary["<s>"], *(vocabulary[c] for c in text.text if c in vocabulary)]
        ids[row, : len(found)] = found[: PLACES + 1]
    keys = [text.key for text in texts]
    teacher = ModuleTeacher(
        "textgenrnn",
        textgenrnn,
        weights=folder / "textgenrnn.safetensors",
        inputs=("ids",),
        encodings={"logits": f"topk({TOP})"},
    )
    splits = held_out(keys, [text.source for text in texts])
    return Lesson(ArrayRows(keys, ids=ids), teacher, splits, batch_size=16, shard_rows=256)


def gru(width: int) -> nn.Module:
    """One GRU over the text: (n, 49) ids -> (n, 48, 465) logits."""
    from torch import nn

    class Gru(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding = nn.Embedding(CLASSES, width // 2)
            self.gru = nn.GRU(width // 2, width, batch_first=True)
            self.output = nn.Linear(width, CLASSES)

        def forward(self, ids: Tensor) -> Tensor:
            states, _ = self.gru(self.embedding(ids[:, :-1]))
            logits: Tensor = self.output(states)
            return logits

    return Gru()


def surprise(logits: Tensor, ids: Tensor) -> Tensor:
    """(n,) nats that the next character costs, the mean over a text's places."""
    costs = -logits.log_softmax(-1).gather(-1, ids[:, 1:, None])[..., 0]
    return _mean(costs, ids)


def unlike(logits: Tensor, theirs: Tensor, ids: Tensor) -> Tensor:
    """(n,) KL from the teacher to the student in nats, the mean over a text's places."""
    mine, theirs = logits.log_softmax(-1), theirs.log_softmax(-1)
    return _mean((theirs.exp() * (theirs - mine)).sum(-1), ids)


def _mean(values: Tensor, ids: Tensor) -> Tensor:
    there = ids[:, 1:] > 0
    return (values * there).sum(-1) / there.sum(-1).clamp_min(1)


def students(*, epochs: int, seeds: int) -> list[Student]:
    """From the texts alone, from the teacher alone, and from both."""
    text = partial(term, surprise, "student.logits", "row.ids")
    teacher = partial(term, unlike, "student.logits", "teacher.logits", "row.ids")
    recipes = [
        Recipe("text", (text(),)),
        Recipe("teacher", (teacher(),)),
        Recipe("both", (text(weight=0.5), teacher(weight=0.5))),
    ]
    fit = Fit(epochs=epochs, batch_size=16, learning_rate=1e-2, evaluate_every=epochs)
    return [
        Student(recipe.name, partial(gru, 64), recipe, inputs=("ids",), fit=fit, seed=seed)
        for recipe in recipes
        for seed in range(seeds)
    ]


def compared(tensors: Mapping[str, Any]) -> dict[str, Any]:
    """Over all places of the texts held out.

    `bits`: what a character costs; `first`: share of characters that were the first choice; `kl`: from
    the teacher to the student, in bits.
    """
    import torch

    logits, ids = tensors["student.logits"], tensors["row.ids"]
    there, after = ids[:, 1:] > 0, ids[:, 1:]
    mine = logits.log_softmax(-1)[there]
    theirs = tensors["teacher.logits"].log_softmax(-1)[there]
    nats = -mine.gather(-1, after[there][:, None]).double().mean()
    kl = (theirs.exp() * (theirs - mine)).sum(-1).double().mean()
    one = torch.tensor(2.0).log()
    first = (logits.argmax(-1) == after)[there].double().mean()
    return {"bits": (nats / one).item(), "first": first.item(), "kl": (kl / one).item()}


def references(given: Lesson, reader: Reader) -> dict[str, Line]:
    """The teacher as it is stored, and how often each character is there in the texts to train on."""
    import torch

    place = {key: i for i, key in enumerate(given.rows.keys.to_pylist())}

    def ids(split: str) -> Tensor:
        places = np.array([place[key] for key in given.splits[split]])
        return torch.as_tensor(given.rows.read(places, ["ids"])["ids"])

    test = {"row.ids": ids("test")}
    test["teacher.logits"] = torch.as_tensor(reader.gather(as_keys(given.splits["test"]))["logits"])
    counts = torch.bincount(ids("train")[:, 1:].reshape(-1), minlength=CLASSES)
    counts[0] = 0
    often = (counts + 0.1).log().expand(*test["teacher.logits"].shape)
    lines = {
        f"teacher (its top {TOP})": compared({**test, "student.logits": test["teacher.logits"]}),
        "how often a character is there": compared({**test, "student.logits": often}),
    }
    return {name: {m: [value] for m, value in line.items()} for name, line in lines.items()}


if __name__ == "__main__":
    from stillroom.workflows.cli import main

    sys.argv[1:1] = ["run", __file__]
    main()
