"""Teaching gives one cache, whoever computes it and in whatever order."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stillroom.pipeline import RayRunner
from stillroom.stages import ArrayRows, plan_teach
from stillroom.storage import Cache, Ragged
from stillroom.storage.errors import RowsError, SignalError
from tests.stages.builders import (
    Shuffled,
    answers,
    data,
    doubled,
    every_kind,
    images,
    net,
    network,
    plain,
    said,
    stamps,
    taught,
    tree,
)


def test_ray_and_local_write_the_same_bytes(tmp_path: Path, ray_runner: RayRunner) -> None:
    teacher = network(encodings={"feature": "float16"})
    taught(tmp_path / "local", teacher=teacher)
    taught(tmp_path / "ray", teacher=teacher, runner=RayRunner(workers=2))
    assert tree(tmp_path / "ray") == tree(tmp_path / "local")


def test_the_number_of_workers_does_not_change_a_byte(
    tmp_path: Path, ray_runner: RayRunner
) -> None:
    taught(tmp_path / "local")
    for workers in (1, 3):
        taught(tmp_path / str(workers), runner=RayRunner(workers=workers))
        assert tree(tmp_path / str(workers)) == tree(tmp_path / "local")


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_order_of_shards_does_not_change_a_byte(tmp_path: Path, seed: int) -> None:
    taught(tmp_path / "ordered", teacher=network())
    taught(tmp_path / "shuffled", teacher=network(), runner=Shuffled(seed))
    assert tree(tmp_path / "shuffled") == tree(tmp_path / "ordered")


def test_batch_size_changes_values_no_more_than_the_teacher_itself_does(tmp_path: Path) -> None:
    rows, teacher = data(200), network()
    answer = teacher.load()
    image = images(200)
    whole = answer({"image": image})["logits"]
    live = [
        np.concatenate([answer({"image": image[i : i + n]})["logits"] for i in range(0, 200, n)])
        for n in (1, 3, 7, 64)
    ]
    band = max(float(np.abs(np.asarray(some) - np.asarray(whole)).max()) for some in live)
    for size in (1, 5, 256):
        snapshot = taught(tmp_path / str(size), rows, teacher, batch_size=size, shard_rows=70)
        assert np.abs(answers(snapshot, rows) - np.asarray(whole)).max() <= band


def test_what_is_cached_is_what_the_module_says(tmp_path: Path) -> None:
    import torch

    rows, module = data(), net()
    snapshot = taught(tmp_path / "c", rows, network(), batch_size=60, shard_rows=60)
    with torch.inference_mode():
        hidden = module[1](module[0](torch.from_numpy(images(60))))
        logits = module[2](hidden)
    np.testing.assert_array_equal(answers(snapshot, rows, "feature"), hidden.numpy())
    np.testing.assert_array_equal(answers(snapshot, rows), logits.numpy())


def test_a_plan_says_what_would_be_computed_and_writes_nothing(tmp_path: Path) -> None:
    cache = Cache.at(tmp_path / "c")
    before = stamps(tmp_path)
    plan = plan_teach(cache, data(), plain())
    assert (plan.to_compute, plan.rows, plan.snapshot) == (60, 60, None)
    assert plan.why == "60 rows: this teacher has answered none yet"
    assert stamps(tmp_path) == before
    snapshot = taught(tmp_path / "c")
    again = plan_teach(cache, data(), plain())
    assert (again.to_compute, again.why) == (0, "")
    assert again.snapshot is not None
    assert again.snapshot.number == snapshot.number


def test_ragged_record_text_and_encoded_signals_come_back(tmp_path: Path) -> None:
    rows, teacher = every_kind()
    snapshot = taught(tmp_path / "c", rows, teacher)
    live = said(np.arange(23), [f"word {i} é" for i in range(23)])
    for name in ("tokens", "scores"):
        found = answers(snapshot, rows, name)
        assert isinstance(found, Ragged)
        for mine, theirs in zip(found, live[name], strict=True):
            np.testing.assert_array_equal(mine, theirs)
    np.testing.assert_array_equal(answers(snapshot, rows, "record"), live["record"])
    np.testing.assert_array_equal(answers(snapshot, rows, "flag"), live["flag"], strict=True)
    assert answers(snapshot, rows, "caption") == live["caption"]
    wide = answers(snapshot, rows, "wide")
    assert 0 < np.abs(wide - live["wide"]).max() <= 2**-8  # half a step of 8 bits below 1
    few = answers(snapshot, rows, "few")
    top = np.argsort(-live["few"], axis=1)[:, :3]
    assert (np.argsort(-few, axis=1)[:, :3] == top).all()
    sure = np.take_along_axis(live["few"], top, 1)
    np.testing.assert_allclose(np.take_along_axis(few, top, 1), sure, atol=2e-3)


def test_the_kinds_of_signals_are_the_same_bytes_from_ray(
    tmp_path: Path, ray_runner: RayRunner
) -> None:
    from ray import cloudpickle

    rows, teacher = every_kind()
    taught(tmp_path / "local", rows, teacher)
    cloudpickle.register_pickle_by_value(sys.modules[__name__])  # type: ignore[no-untyped-call]
    taught(tmp_path / "ray", rows, teacher, runner=ray_runner)
    assert tree(tmp_path / "ray") == tree(tmp_path / "local")


def test_a_tensor_in_bfloat16_is_kept_exactly(tmp_path: Path) -> None:
    import torch

    def halved(image: Any) -> dict[str, Any]:
        return {"logits": torch.from_numpy(image).to(torch.bfloat16)}

    snapshot = taught(tmp_path / "c", teacher=plain(answer=halved))
    expected = torch.from_numpy(images(60)).to(torch.bfloat16).float().numpy()
    np.testing.assert_array_equal(answers(snapshot, data()), expected)


def test_a_data_set_without_rows_is_refused_before_anything_is_made(tmp_path: Path) -> None:
    empty = ArrayRows([], image=np.zeros((0, 8), "f4"))
    with pytest.raises(RowsError, match="no rows"):
        taught(tmp_path / "c", empty)
    assert plan_teach(Cache(tmp_path / "c"), empty, plain()).to_compute == 0
    assert [p.name for p in (tmp_path / "c").iterdir()] == ["cache.json"]


def test_a_column_that_the_data_set_lacks_is_named_with_the_nearest(tmp_path: Path) -> None:
    teacher = replace(plain(), inputs=("imag",))
    with pytest.raises(RowsError, match=r"'plain' reads column 'imag'.*did you mean 'image'"):
        taught(tmp_path / "c", teacher=teacher)


def test_a_teacher_without_signals_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SignalError, match="'plain' gives no signals"):
        taught(tmp_path / "c", teacher=plain(signals=()))


@pytest.mark.parametrize("sizes", [{"batch_size": 0}, {"shard_rows": 0}])
def test_sizes_must_be_positive(tmp_path: Path, sizes: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="must be positive"):
        taught(tmp_path / "c", **sizes)


def test_a_shard_larger_than_the_data_set_holds_all_of_it(tmp_path: Path) -> None:
    snapshot = taught(tmp_path / "c", shard_rows=10**6, batch_size=10**6)
    np.testing.assert_array_equal(answers(snapshot, data()), doubled(images(60))["logits"])
