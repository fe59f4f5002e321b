"""Pruning as a step of a workflow: snapshots outside a policy go, and what no kept one uses."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from stillroom.pipeline.execute import StepFound
from stillroom.pipeline.step import Preview, Result, Run, Step
from stillroom.storage.cache import Cache
from stillroom.storage.care.pruning import Pruned, prune
from stillroom.storage.errors import NotACacheError
from stillroom.workflows.spelling import amount, whole


def prune_step(
    name: str,
    cache: str,
    *,
    keep_last: int | None = None,
    keep_days: float | None = None,
    draft_days: float = 7,
    needs: tuple[Step, ...] = (),
) -> Step:
    """A step that prunes a cache by a policy, which is that of `stillroom cache prune`.

    `cache`: its path below the run's folder, an absolute one, or a URL. It should need the steps that
    teach and train, so that nothing goes which they still read. ValueError for a policy that keeps
    everything, or nothing.
    """
    if keep_last is None and keep_days is None:
        raise ValueError(f"step {name!r}: give keep_last or keep_days, else every snapshot stays")
    if keep_last is not None and keep_last < 1:
        raise ValueError(f"step {name!r}: keep_last must be at least 1, found {keep_last}")
    policy = {"keep_last": keep_last, "keep_days": keep_days, "draft_days": draft_days}
    return Step(name, pruned, {"cache": cache, **policy}, needs, preview=outside)


def pruned(run: Run, inputs: Mapping[str, Result], *, cache: str, **policy: Any) -> Result:
    """Prune; `oldest` is the oldest snapshot that stayed."""
    there = Cache(_place(run, cache))
    found = prune(there, **policy, dry_run=True)
    if why := pruned_words(found, policy):
        run.listen(StepFound(why))
        prune(there, **policy)
    return {"oldest": min(there.snapshots(), default=None)}


def outside(run: Run, inputs: Mapping[str, Result], *, cache: str, **policy: Any) -> Preview:
    """What would go; a cache that is not there yet has nothing."""
    try:
        found = prune(Cache(_place(run, cache)), **policy, dry_run=True)
    except NotACacheError:
        return Preview("")
    lines = [
        f"{what}: {', '.join(map(str, names))}"
        for what, names in (("snapshots", found.snapshots), ("segments", found.segments))
        if names
    ]
    return Preview(pruned_words(found, policy), tuple(lines), found.to_json())


def pruned_words(found: Pruned, policy: Mapping[str, Any]) -> str:
    """What goes and by which policy, in words; empty when nothing does.

    >>> pruned_words(Pruned((1, 2), ("0001-big-1b13",), (), (), (), (), 4096), {"keep_last": 3})
    '2 snapshots, 1 segment, 4.1 kB go; kept: the newest 3'
    """
    counts = [
        f"{whole(len(names))} {what.removesuffix('s') if len(names) == 1 else what}"
        for what in ("snapshots", "segments", "drafts", "leftovers", "books", "derived")
        if (names := getattr(found, what))
    ]
    if not counts:
        return ""
    kept = []
    if policy.get("keep_last") is not None:
        kept.append(f"the newest {whole(policy['keep_last'])}".removesuffix(" 1"))
    if policy.get("keep_days") is not None:
        kept.append(f"those of the last {policy['keep_days']:g} days")
    return f"{', '.join([*counts, amount(found.bytes)])} go; kept: {', '.join(kept)}"


def _place(run: Run, cache: str) -> Any:
    return cache if "://" in cache else run.folder / cache
