"""Plan first: rows, bytes, seconds, room on the disk and N*, before a teacher is fully loaded."""

from __future__ import annotations

import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np

from stillroom.stages.data.rows import Int64s, Rows
from stillroom.stages.mapper import Mapper
from stillroom.stages.plans.constant import constant_seconds
from stillroom.stages.plans.estimating import AGAIN, Interval
from stillroom.stages.plans.forecasting import Terms, asked_of, estimate, evidence_of
from stillroom.stages.plans.probing import Probe
from stillroom.stages.plans.probing import probe as take_probe
from stillroom.stages.plans.teach_plan import TeachPlan, TeachState, Work
from stillroom.stages.teachers.teacher import Teacher
from stillroom.storage.cache import Cache
from stillroom.storage.place import Place, place_of


def plan_teach(
    cache: Cache | str | Place,
    rows: Rows,
    teacher: Teacher,
    *,
    probe: bool | Probe = False,
    runner: Mapper | None = None,
    workers: int = 1,
    batch_size: int = 256,
    shard_rows: int = 4096,
    snapshot_every: int | None = None,
    epochs: float | None = None,
    rows_per_epoch: int | None = None,
    reading_seconds: float | None = None,
    price_per_hour: float | None = None,
) -> TeachPlan:
    """What `teach` would compute and why, and what that takes; nothing of the cache is written.

    The cache may be a path where none is yet. Bytes and seconds come from shards that this teacher
    finished earlier, or, with `probe`, from answers of the teacher: it is then loaded once, in a
    worker of `runner` (in this process without one), and answers a few batches. A probe that was
    taken before can be given. Without either they are unknown, and only rows are planned. Bytes of
    fixed shape are exact.

    `workers`, `batch_size`, `shard_rows` and `snapshot_every` are those of the teaching to come; with
    the last, segments and snapshots on the way are counted. N* needs `epochs`: how
    often a student passes over its `rows_per_epoch` rows (all of the data set where not given).
    `reading_seconds` is what one student run spends on reading from the cache; 0 where not measured,
    and the plan says so. `price_per_hour` is of a machine that runs one worker.

    Raises RowsError when the data set lacks a column, and with `probe` what `probe` raises.
    """
    counts, every = (batch_size, shard_rows, workers), snapshot_every
    if min(*counts, every or 1, epochs or 1) <= 0 or every == 0 or epochs == 0:
        raise ValueError(
            "batch_size, shard_rows, workers, snapshot_every and epochs must be positive: "
            f"{batch_size}, {shard_rows}, {workers}, {every}, {epochs}"
        )
    students = (epochs, rows_per_epoch or len(rows), reading_seconds, price_per_hour)
    terms = Terms(batch_size, shard_rows, workers, *students)
    place = cache.path if isinstance(cache, Cache) else place_of(cache)
    if isinstance(cache, Cache):
        return _plan(TeachState(cache, rows, teacher, every), place, probe, runner, terms)
    if (place / "cache.json").is_file():
        return _plan(TeachState(Cache(place), rows, teacher, every), place, probe, runner, terms)
    with tempfile.TemporaryDirectory(prefix="stillroom-plan-") as folder:
        empty = Cache.at(Path(folder))
        return _plan(TeachState(empty, rows, teacher, every), place, probe, runner, terms)


def _plan(
    state: TeachState, place: Place, probe: bool | Probe, runner: Mapper | None, terms: Terms
) -> TeachPlan:
    started, probing = time.perf_counter(), 0.0
    if state.fresh() is not None:
        return state.plan()
    settled = state.settled()
    plan = state.planned(settled)
    if not plan.to_compute:
        return plan
    if probe is True:
        before = time.perf_counter()
        places = np.sort(np.concatenate([_left(work) for work in plan.work]))
        probe = take_probe(
            *(state.rows, state.teacher, places, asked_of(plan.work)),
            runner=runner,
            batch_size=terms.batch_size,
            shard_rows=terms.shard_rows,
        )
        probing = time.perf_counter() - before
    evidence = probe.evidence() if probe else evidence_of(state, settled)
    found = estimate(state, settled, plan.why, place, evidence, terms)
    if found.seconds is not None:
        # Teaching hashes, compares, describes and looks up the same rows before and after it computes.
        around = time.perf_counter() - started - probing + constant_seconds()
        seconds = (found.seconds + Interval.exact(around)).widened(AGAIN)
        found = replace(found, seconds=seconds)
    return replace(plan, estimate=found)


def _left(work: Work) -> Int64s:
    """Places of the rows that are not finished."""
    if work.draft is None:
        return work.places
    left = [s for s in work.draft.shards() if s.index not in work.finished]
    return np.concatenate([work.places[s.start : s.stop] for s in left] or [work.places[:0]])
