"""One worker against two, the seconds until the first shard, and Ray Data doing the same job."""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file

from benchmarks.bare import BUILDS, BareLoop
from benchmarks.measuring import Line, Section, Table, Timing, Way, interleaved, timed
from stillroom.pipeline import RayRunner
from stillroom.stages import ArrayRows, ModuleTeacher, teach
from stillroom.stages.events import RowsTaught
from stillroom.storage import Cache

BATCH, SHARD_ROWS = 256, 2_048
GOAL, EFFICIENCY = 1.05, 0.9


def measure(work: Path, quick: bool) -> Section:
    """A light and a heavy teacher; Ray runs before each clock starts but for the cold start."""
    section = Section(
        "Scaling",
        f"Rows of float32[1, 28, 28] in batches of {BATCH} and shards of {SHARD_ROWS:,}; logits[10] "
        "and one feature layer. Ray is up before the clock starts; workers are new each time, "
        "stillroom's and Ray Data's. Efficiency is the time of one worker ÷ twice the time of two. "
        "Ray Data maps the same module over the same rows with two actors (`map_batches`) and writes "
        "float16 columns to Parquet; it syncs nothing to the disk, stillroom does.",
    )
    for kind, rows in (("light", 32_768), ("heavy", 16_384)):
        _Scaling(section, work, kind, rows // 8 if quick else rows).compare(1 if quick else 2)
    return section


class _Scaling:
    """One teacher's comparisons."""

    def __init__(self, section: Section, work: Path, kind: str, rows: int) -> None:
        self.section, self.kind, self.rows, self.work = section, kind, rows, work
        self.image = np.random.default_rng(0).random((rows, 1, 28, 28), np.float32)
        self.data = ArrayRows(np.arange(rows), image=self.image)
        self.weights, self.cache = work / f"{kind}.safetensors", work / f"{kind}.cache"
        torch.manual_seed(0)
        build, feature = BUILDS[kind]
        save_file(build().state_dict(), self.weights)
        layers = {"logits": "", "feature": feature}
        encodings = dict.fromkeys(layers, "float16")
        given = {"weights": self.weights, "layers": layers, "encodings": encodings}
        self.teacher = ModuleTeacher(kind, build, **given)  # type: ignore[arg-type]
        self.first: dict[str, list[float]] = {}

    def compare(self, rounds: int) -> None:
        loop = BareLoop(self.kind, self.weights, self.image, BATCH, 1)
        import ray

        # Workers end with each map: idle ones would hold the CPUs that Ray Data waits for.
        ways: dict[str, Way] = {
            "bare": timed(lambda: loop(0, self.rows)),
            "one": lambda: self._teach(RayRunner(workers=1), "1 worker, Ray running"),
            "two": lambda: self._teach(RayRunner(workers=2), "2 workers, Ray running"),
            "data": self._ray_data,
        }
        ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
        times = interleaved(ways, rounds, warm=False)
        ray.shutdown()
        cold = [
            self._teach(RayRunner(workers=2), "2 workers, Ray not running") for _ in range(rounds)
        ]
        each = times["bare"].median / (self.rows / BATCH) * 1e3
        name = f"{self.kind} teacher, {each:.2g} ms a batch, {self.rows:,} rows"
        say = self.section.lines.append
        say(Line(f"{name}: 1 worker", "loop, 1 thread", times["one"], times["bare"], GOAL))
        say(
            Line(
                f"{name}: 2 workers", "half of that loop", times["two"], times["bare"].per(2), GOAL
            )
        )
        say(Line(f"{name}: 2 workers", "Ray Data, 2 actors", times["two"], times["data"]))
        efficiency = times["one"].median / (2 * times["two"].median)
        rows = [(what, f"{Timing(tuple(s)).median:.2f} s") for what, s in self.first.items()]
        rows += [("whole run, Ray not running", f"{Timing(tuple(cold)).median:.2f} s")]
        rows += [("parallel efficiency at 2 workers", f"{efficiency:.2f} (goal {EFFICIENCY})")]
        self.section.tables.append(Table((f"{name}: until the first shard", "median"), tuple(rows)))

    def _teach(self, runner: RayRunner, what: str) -> float:
        shutil.rmtree(self.cache, ignore_errors=True)
        started = time.perf_counter()
        first: list[float] = []

        def listen(event: object) -> None:
            if isinstance(event, RowsTaught) and not first:
                first.append(time.perf_counter() - started)

        how = {"batch_size": BATCH, "shard_rows": SHARD_ROWS, "listen": listen}
        teach(Cache.at(self.cache), self.data, self.teacher, runner=runner, **how)  # type: ignore[arg-type]
        self.first.setdefault(what, []).extend(first)
        return time.perf_counter() - started

    def _ray_data(self) -> float:
        import ray.data

        ray.data.DataContext.get_current().enable_progress_bars = False
        out = self.work / f"{self.kind}.parquet"
        shutil.rmtree(out, ignore_errors=True)
        started = time.perf_counter()
        # An actor on every CPU would leave none to read and to write, and nothing would ever end.
        # In pieces, or one actor would get everything.
        ray.data.from_numpy(np.array_split(self.image, 8)).map_batches(
            _Answers,
            fn_constructor_args=(self.kind, str(self.weights)),
            batch_size=BATCH,
            compute=ray.data.ActorPoolStrategy(size=2),
            num_cpus=0.5,
        ).write_parquet(str(out))
        return time.perf_counter() - started


class _Answers:
    """Ray Data's worker: the same module, cut at the same layer."""

    def __init__(self, kind: str, weights: str) -> None:
        torch.set_num_threads(1)
        build, feature = BUILDS[kind]
        module = build()
        module.load_state_dict(load_file(weights))
        cut = int(feature) + 1
        self._body, self._head = module.eval()[:cut], module[cut:]

    def __call__(self, batch: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        with torch.inference_mode():
            feature = self._body(torch.from_numpy(np.array(batch["data"])))
            logits = self._head(feature)
        return {"feature": feature.half().numpy(), "logits": logits.half().numpy()}
