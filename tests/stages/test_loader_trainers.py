"""The examples of docs/loader.md, run as they stand; killed in the middle, and run again."""

from __future__ import annotations

import os
import re
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

ROOT = Path(__file__).parents[2]
BLOCKS = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "loader.md").read_text(), re.DOTALL)
SHARED = next(block for block in BLOCKS if "teach(" in block)


def example(folder: Path, with_: str) -> Path:
    """The example that has this in it, behind the cache that all share, as a file of its own."""
    (block,) = (block for block in BLOCKS if with_ in block)
    folder.mkdir()
    script = folder / "example.py"
    script.write_text(f"{SHARED}\n{block}")
    return script


class Killed(BaseException):
    """What nothing catches."""


def run(script: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    monkeypatch.chdir(script.parent)
    return runpy.run_path(str(script))


def weights(found: dict[str, Any]) -> list[torch.Tensor]:
    return [parameter.detach() for parameter in found["student"].parameters()]


def same(one: list[torch.Tensor], other: list[torch.Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_plain_torch_goes_on_where_it_was_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = run(example(tmp_path / "whole", "torch.save("), monkeypatch)
    script = example(tmp_path / "killed", "torch.save(")
    save, saved = torch.save, list[None]()

    def killing(*given: Any) -> None:
        saved.append(save(*given))
        if len(saved) in (50, 51):  # in the second epoch of 40 batches; and at the next step
            raise Killed

    monkeypatch.setattr(torch, "save", killing)
    for _ in range(2):
        with pytest.raises(Killed):
            run(script, monkeypatch)
    ended = run(script, monkeypatch)
    # What was computed and not kept is computed again: the step that each was killed behind.
    assert len(saved) == 3 * len(whole["feed"]) + 2
    assert same(weights(ended), weights(whole))


RUNS = """
import os, runpy, sys, traceback
import torch
import {package}
import stillroom.pipeline, stillroom.stages, stillroom.storage
import stillroom.stages.feeding.feed

def run(folder, kill_in=0):
    \"\"\"The example in a process of its own, which is killed in that optimiser step.\"\"\"
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    step, taken = torch.optim.AdamW.step, []

    def killing(self, *given, **more):
        taken.append(1)
        if len(taken) == kill_in:
            os._exit(9)
        return step(self, *given, **more)

    torch.optim.AdamW.step = killing
    os.chdir(folder)
    try:
        found = runpy.run_path("example.py")
        trained = [parameter.detach() for parameter in found["student"].parameters()]
        torch.save([len(taken), trained], "weights.pt")
        os._exit(0)
    except BaseException:
        traceback.print_exc()
        os._exit(1)

whole, killed = sys.argv[1:]
print("ended", run(whole), run(killed, 55), run(killed, 25), run(killed))
"""


@pytest.mark.slow
@pytest.mark.timeout(1200)  # four trainings by libraries that are slow to import
@pytest.mark.parametrize(
    ("package", "with_"), [("lightning", "lightning.Trainer("), ("transformers", "Distilling(")]
)
def test_other_trainers_go_on_where_they_were_killed(
    tmp_path: Path, package: str, with_: str
) -> None:
    """Checkpoints are written every 15 steps: what came after the last is computed again.

    It is killed in step 55 of 120, goes on after step 45, in the second epoch, and is killed in step 70.
    """
    pytest.importorskip(package)
    if package == "transformers":
        pytest.importorskip("accelerate")
    whole, killed = (example(tmp_path / name, with_).parent for name in ("whole", "killed"))
    script = tmp_path / "runs.py"
    script.write_text(RUNS.format(package=package))
    env = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-W", "ignore", str(script), str(whole), str(killed)]
    ran = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert ran.stdout.splitlines()[-1] == "ended 0 9 9 0", ran.stderr[-3000:]
    (steps, one), (rest, other) = (torch.load(at / "weights.pt") for at in (whole, killed))
    assert (steps, rest) == (120, 60)
    assert same(one, other)


DDP = """
import sys
import torch
import torch.distributed as dist
from torch import nn
from stillroom.stages import loader
from stillroom.storage import Cache

folder, rank = sys.argv[1], int(sys.argv[2])
store = dist.FileStore(f"{folder}/store", 2)
dist.init_process_group("gloo", store=store, rank=rank, world_size=2)
feed = loader(Cache(f"{folder}/c").snapshot(), ["logits"], batch_size=7, seed=3)
torch.manual_seed(0)
student = nn.parallel.DistributedDataParallel(nn.Linear(4, 4))
optimizer = torch.optim.SGD(student.parameters(), lr=0.1)
met = []
for _ in range(2):
    for batch in feed:
        met += batch["batch.index"].tolist()
        loss = (student(batch["teacher.logits"]) - 1).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
torch.save([met, student.state_dict()], f"{folder}/{rank}.pt")
dist.destroy_process_group()
"""


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("rows", [57, 60])  # 1 and 4 beyond whole batches of both
def test_two_processes_of_torch_distributed_end_together(tmp_path: Path, rows: int) -> None:
    from tests.stages.builders import data, plain, taught

    taught(tmp_path / "c", data(rows), plain())
    script = tmp_path / "ddp.py"
    script.write_text(DDP)
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(script), str(tmp_path)]
    ranks = [subprocess.Popen([*command, str(rank)], env=env) for rank in range(2)]
    assert [process.wait(900) for process in ranks] == [0, 0]
    (first, one), (second, other) = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    assert sorted(first + second) == sorted([*range(rows)] * 2)
    assert same(list(one.values()), list(other.values()))
