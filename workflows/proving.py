"""The command `prove`: a recipe's experiment over several seeds, judged by its claims."""

from __future__ import annotations

import importlib.metadata
import platform
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from datetime import UTC, datetime
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Literal

from stillroom.pipeline.runner import LocalRunner
from stillroom.stages import recipes
from stillroom.stages.proving.bench import Bench
from stillroom.stages.proving.proof import Claim, Proof
from stillroom.storage.errors import StillroomError, nearest
from stillroom.storage.files import read_json, write_json
from stillroom.workflows.intervals import interval

Verdict = Literal["holds", "no difference here", "contrary here"]
Measured = dict[str, dict[str, list[float]]]
"""Values over seeds by arm and metric."""


class NoProofError(StillroomError, LookupError):
    """The recipe's module has no proof, or its proof did not note what its claims compare."""


def proof_of(name: str) -> Proof:
    """The `PROOF` of a recipe's module; NoProofError says how to write one."""
    found = getattr(recipes.module(name), "PROOF", None)
    if not isinstance(found, Proof):
        raise NoProofError(
            f"recipe {name!r} has no PROOF; add to its module PROOF = Proof(run, data=..., claims=...)"
        )
    return found


def provable() -> list[str]:
    """Every method of the folder that has a proof."""
    return [
        n for n in recipes.names() if isinstance(getattr(recipes.module(n), "PROOF", None), Proof)
    ]


def run_proof(
    name: str,
    folder: Path,
    *,
    seeds: int = 5,
    smoke: bool = False,
) -> dict[str, Any]:
    """Run a recipe's proof for every seed below `folder`, which is emptied, and judge its claims.

    Returns what `docs/proofs/<id>.json` keeps of a run.
    """
    proof, started = proof_of(name), time.perf_counter()
    measured: Measured = {}
    for seed in range(seeds):
        place = folder / str(seed)
        shutil.rmtree(place, ignore_errors=True)
        bench = Bench(seed, place, LocalRunner(), smoke)
        proof.run(bench)
        for arm, metrics in bench.noted.items():
            for metric, value in metrics.items():
                measured.setdefault(arm, {}).setdefault(metric, []).append(value)
        bench.close()
    return {
        "recipe": recipes.find(name).name,
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "stillroom": importlib.metadata.version("stillroom"),
        "torch": importlib.metadata.version("torch"),
        "machine": f"{platform.system()} {platform.machine()}",
        "seconds": round(time.perf_counter() - started, 1),
        "seeds": seeds,
        "smoke": smoke,
        "data": proof.data,
        "tried": proof.tried,
        "claims": [judged(claim, measured) for claim in proof.claims],
        "arms": measured,
    }


def run_proofs(
    names: Sequence[str], *, seeds: int = 5, smoke: bool = False, jobs: int = 1
) -> Iterator[dict[str, Any]]:
    """The proofs of several recipes in their order, as they are done; `jobs` of them at a time, each in
    a process of its own."""
    work = partial(_in_a_folder, seeds=seeds, smoke=smoke)
    if jobs == 1:
        yield from map(work, names)
        return
    # Afresh: a fork of a process whose torch has threads can hang.
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        yield from pool.map(work, names)


def _in_a_folder(name: str, *, seeds: int, smoke: bool) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="stillroom-") as folder:
        return run_proof(name, Path(folder), seeds=seeds, smoke=smoke)


def judged(claim: Claim, measured: Measured) -> dict[str, Any]:
    """The difference of a claim's arms, paired by seed, its 95% interval, and the verdict.

    A difference is positive where the claim's first arm is better.
    """
    better, than = (_values(arm, claim.metric, measured) for arm in (claim.better, claim.than))
    sign = 1 if claim.larger else -1
    found = interval([sign * (a - b) for a, b in zip(better, than, strict=True)])
    return {
        "better": claim.better,
        "than": claim.than,
        "metric": claim.metric,
        "larger": claim.larger,
        "margin": claim.margin,
        "says": claim.says,
        "means": [interval(better)["mean"], interval(than)["mean"]],
        "difference": found,
        "verdict": verdict(found, claim.margin),
    }


def verdict(difference: Mapping[str, float], margin: float = 0.0) -> Verdict:
    """What an interval of differences says of a claim."""
    if difference["low"] > -margin:
        return "holds"
    return "contrary here" if difference["high"] < -margin else "no difference here"


def _values(arm: str, metric: str, measured: Measured) -> Sequence[float]:
    if arm not in measured:
        raise NoProofError(f"a claim names the arm {arm!r}; {nearest(arm, measured)}")
    if metric not in measured[arm]:
        raise NoProofError(
            f"arm {arm!r} has no metric {metric!r}; {nearest(metric, measured[arm])}"
        )
    return measured[arm][metric]


def keep(found: Mapping[str, Any], folder: Path) -> Path:
    """Append a run to the file of its recipe; the file."""
    place = folder / f"{found['recipe']}.json"
    runs = read_json(place)["runs"] if place.exists() else []
    write_json(place, {"recipe": found["recipe"], "runs": [*runs, found]})
    return place


def lines(found: Mapping[str, Any]) -> list[str]:
    """A run for people: each arm's means, then the claims."""
    arms: Mapping[str, Mapping[str, Sequence[float]]] = found["arms"]
    width = max(map(len, arms))
    said = [f"{found['recipe']}: {found['data']}", ""]
    for arm, metrics in arms.items():
        spelled = []
        for metric, values in metrics.items():
            at = interval(values)
            half = (at["high"] - at["low"]) / 2
            spelled.append(f"{metric} {at['mean']:.4f} ± {half:.4f}")
        said.append(f"{arm:<{width}}  {'  '.join(spelled)}")
    seeds = f"{found['seeds']} seed{'s' * (found['seeds'] > 1)}, {found['seconds']:.0f} s"
    if found["smoke"]:
        return [*said, "", f"{seeds}; a smoke test: it runs, and the numbers mean nothing"]
    said.append("")
    said += [claim_line(claim) for claim in found["claims"]]
    said.append(seeds)
    return said


def claim_line(claim: Mapping[str, Any]) -> str:
    """`dho > single (accuracy): +0.0210 [+0.0100, +0.0320], holds`."""
    at = claim["difference"]
    margin = f" - {claim['margin']:g}" if claim["margin"] else ""
    return (
        f"{claim['better']} > {claim['than']}{margin} ({claim['metric']}): {at['mean']:+.4f} "
        f"[{at['low']:+.4f}, {at['high']:+.4f}], {claim['verdict']}"
    )
