"""The table: the students beside the teacher itself, an untrained student, TF-IDF and LSA."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from sentences_data import BUCKETS
from sentences_learning import compared

from stillroom.stages.data.rows import ArrayRows
from stillroom.stages.student import Record
from stillroom.storage.keys import KeyIndex, as_keys
from stillroom.storage.reader import Reader
from stillroom.workflows.intervals import interval

if TYPE_CHECKING:
    from torch import Tensor, nn

METRICS = ("cosine", "neighbour", "first", "found")
NAMES = ("summary", "details")
Line = Mapping[str, Sequence[float]]
"""The values of each metric, one for each seed."""


def references(
    rows: ArrayRows, splits: Mapping[str, list[str]], reader: Reader, build: Callable[[], nn.Module]
) -> dict[str, Line]:
    """What needs no training of a student, measured on the rows held out."""
    taken = reader.gather(as_keys(splits["test"]))
    teacher = [torch.as_tensor(taken[name]) for name in NAMES]
    train, test = (_ids(rows, splits[name]) for name in ("train", "test"))
    rare = _rarity(torch.cat(train))
    sparse = [_weighted(ids, rare) for ids in test]
    corpus = _weighted(torch.cat(train), rare)
    torch.manual_seed(0)
    axes = torch.svd_lowrank(corpus, min(384, *corpus.shape), niter=2)[2]
    with torch.inference_mode():
        vectors = {
            "teacher": teacher,
            "tf-idf": [one.to_dense() for one in sparse],
            "lsa": [one @ axes for one in sparse],
            "untrained": list(build().eval()(*test).values()),
        }
        lines = {name: _measured(mine, teacher) for name, mine in vectors.items()}
    for other in ("tf-idf", "lsa"):
        lines[other].pop("cosine", None)  # its axes are not the teacher's
    return dict(lines)


def trained(records: Sequence[Record]) -> dict[str, Line]:
    """The students' metrics of the last epoch, by name."""
    lines: dict[str, dict[str, list[float]]] = {}
    for record in records:
        for metric in METRICS:
            lines.setdefault(record.name, {}).setdefault(metric, []).append(record.metrics[metric])
    return dict(lines)


def table(lines: Mapping[str, Line]) -> str:
    """Markdown: means, and behind ± half of the 95% t-interval where there are several seeds."""
    heads = ["", *METRICS]
    body = [[name, *(_cell(line.get(m, ())) for m in METRICS)] for name, line in lines.items()]
    rows = [heads, ["---", *["---:"] * len(METRICS)], *body]
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def _cell(values: Sequence[float]) -> str:
    if not values:
        return ""
    seen = interval(values)
    half = (seen["high"] - seen["low"]) / 2
    return f"{seen['mean']:.3f}" + (f" ± {half:.3f}" if len(values) > 1 else "")


def _measured(mine: Sequence[Tensor], theirs: Sequence[Tensor]) -> dict[str, list[float]]:
    normal = [torch.nn.functional.normalize(one, dim=-1) for one in mine]
    tensors = {f"student.{n}": t for n, t in zip(NAMES, normal, strict=True)}
    tensors |= {f"teacher.{n}": t for n, t in zip(NAMES, theirs, strict=True)}
    return {name: [value] for name, value in compared(tensors).items()}


def _ids(rows: ArrayRows, keys: list[str]) -> list[Tensor]:
    places = KeyIndex(rows.keys).find(as_keys(keys))
    columns = rows.read(places, [f"{name}_ids" for name in NAMES])
    return [torch.as_tensor(column) for column in columns.values()]


def _counts(ids: Tensor) -> Tensor:
    """(n, BUCKETS) sparse: how often each bucket is in a text."""
    text, place = (ids > 0).nonzero(as_tuple=True)
    at = torch.stack([text, ids[text, place]])
    return torch.sparse_coo_tensor(
        at, torch.ones(len(text)), (len(ids), BUCKETS), check_invariants=True
    ).coalesce()


def _rarity(ids: Tensor) -> Tensor:
    """log((1 + texts) / (1 + texts with the bucket))."""
    texts = torch.bincount(_counts(ids).indices()[1], minlength=BUCKETS)
    return torch.log((1 + len(ids)) / (1 + texts.float()))


def _weighted(ids: Tensor, rare: Tensor) -> Tensor:
    """TF-IDF with log(1 + count), every row of length 1."""
    counts = _counts(ids)
    at = counts.indices()
    values = counts.values().log1p() * rare[at[1]]
    length = torch.zeros(len(ids)).index_add_(0, at[0], values.square()).sqrt()
    values = values / length[at[0]].clamp_min(1e-12)
    return _sparse(at, values, (len(ids), BUCKETS))


def _sparse(at: Tensor, values: Tensor, shape: tuple[int, int]) -> Tensor:
    """Equal places are added up."""
    return torch.sparse_coo_tensor(at, values, shape, check_invariants=True).coalesce()
