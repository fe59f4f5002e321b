"""A speaker encoder hears telephone prompts once; small nets learn to tell voices apart, also new ones.

Asterisk's prompts of five voices -> teach (Resemblyzer's encoder) -> students of three of the voices
(which voice it is, or the teacher's vectors and a probe; with all labels and with one in twenty)
-> table.
Run: stillroom run examples/speech.py, or python examples/speech.py.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from lessons import Class, Lesson, Line, lesson_steps
from speech_sounds import BANDS, KNOWN, SOUNDS, VOICES, lesson

from stillroom.pipeline.step import Step
from stillroom.stages.data.rows import find_rows
from stillroom.stages.evaluating import Evaluation
from stillroom.stages.fit import Fit
from stillroom.stages.objectives.features import cosine_distance
from stillroom.stages.objectives.logits import cross_entropy
from stillroom.stages.recipe import Recipe
from stillroom.stages.student import Student
from stillroom.stages.term import term
from stillroom.storage.keys import as_keys
from stillroom.storage.reader import Reader

if TYPE_CHECKING:
    from torch import Tensor, nn


def speech(*, data: str = "", rows: int = 900, epochs: int = 12, seeds: int = 3) -> list[Step]:
    """Distil a speaker encoder.

    data: folder of Asterisk's sounds (empty: where Debian puts them); rows: clips, as many of each
    voice; epochs: of every student; seeds: trainings of each student.
    """
    measured = Evaluation("test", compared, columns=("voice",), signals=("vector",))
    learn = Class(students, measured, ("known", "new", "cosine"), references)
    given = partial(lesson, sounds=data or str(SOUNDS), clips=rows // len(VOICES))
    return lesson_steps(given, learn, epochs=epochs, seeds=seeds)


def small_net() -> nn.Module:
    """Two convolutions over time and the mean: a vector of length one, and which known voice it is.

    `logits` and `probe` are the same numbers; what is learned from `probe` reaches nothing else.
    """
    import torch
    from torch import nn

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            layers: list[nn.Module] = []
            for inside, out in ((BANDS, 48), (48, 64)):
                layers += [nn.Conv1d(inside, out, 5, 2), nn.BatchNorm1d(out), nn.ReLU()]
            pooled = [nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(64, 256)]
            self.layers = nn.Sequential(*layers, *pooled)
            self.voices = nn.Linear(256, KNOWN)

        def forward(self, bands: Tensor) -> dict[str, Tensor]:
            loud = torch.log(bands + 1e-6).transpose(1, 2) / 5 + 1
            vector = nn.functional.normalize(self.layers(loud), dim=-1)
            read, alone = (self.voices(10 * given) for given in (vector, vector.detach()))
            return {"vector": vector, "logits": read, "probe": alone}

    return Net()


def told_only(logits: Tensor, voice: Tensor, told: Tensor) -> Tensor:
    """Cross-entropy of the rows whose voice is known, nothing for the others."""
    return cross_entropy(logits, voice) * told


def _recipes() -> Mapping[str, Recipe]:
    copied = term(cosine_distance, "student.vector", "teacher.vector", weight=3.0)
    few = ("row.voice", "row.told")
    return {
        "labels-few": Recipe("labels-few", (term(told_only, "student.logits", *few, weight=20.0),)),
        "vectors-few": Recipe(
            "vectors-few", (copied, term(told_only, "student.probe", *few, weight=20.0))
        ),
        "labels": Recipe("labels", (term(cross_entropy, "student.logits", "row.voice"),)),
        "vectors": Recipe("vectors", (copied, term(cross_entropy, "student.probe", "row.voice"))),
    }


def students(*, epochs: int, seeds: int) -> list[Student]:
    """The same net with each recipe and each seed; all hear the same clips."""
    fit = Fit(epochs=epochs, batch_size=32, learning_rate=3e-3, evaluate_every=epochs)
    layers = {name: f":{name}" for name in ("vector", "logits", "probe")}
    return [
        Student(name, small_net, recipe, ("bands",), layers, fit=fit, seed=seed)
        for name, recipe in _recipes().items()
        for seed in range(seeds)
    ]


def compared(tensors: Mapping[str, Any]) -> dict[str, float]:
    """`known`: share of held-out clips of known voices whose voice is named; `new`: see `apart`;
    `cosine`: to the teacher's vectors, of all clips held out."""
    voice, vector = tensors["row.voice"], tensors["student.vector"]
    right = (tensors["student.logits"].argmax(-1) == voice)[voice < KNOWN]
    off = cosine_distance(vector, tensors["teacher.vector"]).mean().item()
    return {"known": right.double().mean().item(), "new": apart(vector, voice), "cosine": 1 - off}


def apart(vector: Tensor, voice: Tensor) -> float:
    """Of clips of new voices: how often two of one voice are more alike than two of different ones
    (area under the ROC curve over all pairs; 0.5 is chance)."""
    import torch

    chosen = voice >= KNOWN
    alike = (vector[chosen] @ vector[chosen].T).double()
    same = voice[chosen][:, None] == voice[chosen]
    pairs = torch.ones_like(same).triu(1)
    near, far = alike[pairs & same], alike[pairs & ~same].sort().values
    below = torch.searchsorted(far, near) + torch.searchsorted(far, near, right=True)
    return (below.double() / (2 * len(far))).mean().item()


def references(given: Lesson, reader: Reader) -> dict[str, Line]:
    """The teacher itself (the nearest mean of its vectors names the voice), and an untrained net."""
    import torch

    def taken(split: str) -> tuple[Tensor, ...]:
        keys = as_keys(given.splits[split])
        read = given.rows.read(find_rows(given.rows, keys), ["voice", "bands"])
        return tuple(map(torch.as_tensor, (reader.gather(keys)["vector"], *read.values())))

    (vectors, voices, _), (held, voice, bands) = taken("train"), taken("test")
    means = torch.stack([vectors[voices == each].mean(0) for each in range(KNOWN)])
    nearest = held @ torch.nn.functional.normalize(means, dim=-1).T
    with torch.random.fork_rng(devices=[]), torch.inference_mode():
        torch.manual_seed(0)
        untrained = apart(small_net().eval()(bands)["vector"], voice)
    said = {"student.vector": held, "student.logits": nearest, "row.voice": voice}
    own = compared({**said, "teacher.vector": held})
    return {
        "teacher": {name: [value] for name, value in own.items()},
        "untrained": {"new": [untrained]},
    }


if __name__ == "__main__":
    from stillroom.workflows.cli import main

    sys.argv[1:1] = ["run", __file__]
    main()
