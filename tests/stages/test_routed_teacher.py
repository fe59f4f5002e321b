"""Routing: every row by its own expert, exactly as that one alone; a changed expert teaches its rows."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stillroom.pipeline import LocalRunner, RayRunner
from stillroom.stages import (
    ArrayRows,
    FunctionTeacher,
    RoutedTeacher,
    TableTeacher,
    Teacher,
    audit,
    long_ratings,
    plan_teach,
)
from stillroom.stages.views.boxes import Flip
from stillroom.stages.views.plan import ViewPlan
from stillroom.stages.views.rows import ViewedRows
from stillroom.stages.views.teacher import ViewedTeacher
from stillroom.storage import Cache
from stillroom.storage.errors import RowsError
from tests.stages import routed_builders
from tests.stages.builders import Heard, answers, images, network, taught
from tests.stages.routed_builders import (
    ROUTES,
    Noted,
    alone,
    data,
    expert,
    languages,
    routed,
    same,
)


@settings(max_examples=8, deadline=None, derandomize=True)
@given(
    st.lists(st.sampled_from(ROUTES), min_size=1, max_size=14), st.integers(1, 6), st.integers(1, 9)
)
def test_every_row_is_answered_as_by_its_expert_alone(
    tmp_path_factory: pytest.TempPathFactory, language: list[str], batch: int, shard: int
) -> None:
    rows, teacher = data(len(language), language=language), routed()
    how = {"batch_size": batch, "shard_rows": shard}
    snapshot = taught(tmp_path_factory.mktemp("routed") / "c", teacher.rows(rows), teacher, **how)
    for name in ("logits", "tokens", "said"):
        found = answers(snapshot, rows, name)
        for place, route in enumerate(language):
            expected = alone(teacher.teachers[route], rows, [place])[name][0]
            assert same(found[place], expected)


def test_a_changed_expert_and_a_row_that_moves_teach_only_what_they_concern(tmp_path: Path) -> None:
    rows, teacher = data(), routed()

    def run(teacher: RoutedTeacher, rows: ArrayRows) -> int:
        heard, given = Heard(), teacher.rows(rows)
        snapshot = taught(tmp_path / "c", given, teacher, listen=heard)
        assert snapshot.rows == len(rows)
        found = answers(snapshot, rows)
        for place, route in enumerate(languages(rows)):
            expected = alone(teacher.teachers[route], rows, [place])["logits"][0]
            assert same(found[place], expected)
        return heard.taught

    first = routed()
    assert run(first, rows) == 30
    assert run(routed(), rows) == 0
    changed = replace(teacher, teachers={**teacher.teachers, "fr": expert(9)})
    assert plan_teach(Cache.at(tmp_path / "c"), changed.rows(rows), changed).to_compute == 10
    assert run(changed, rows) == languages(rows).count("fr") == 10
    assert run(first, rows) == 0  # the former expert's answers are stored
    moved = ["it" if i == 4 else language for i, language in enumerate(languages(rows))]
    assert moved != languages(rows)
    assert run(first, data(language=moved)) == 1
    image = images(30)
    image[11] += 1
    assert run(first, data(image=image)) == 1
    assert run(replace(first, teachers={**first.teachers, "es": expert(5)}), rows) == 0
    assert run(first, data(36)) == 6  # rows that are new


def test_a_column_that_only_another_expert_reads_does_not_count(tmp_path: Path) -> None:
    def sized(image: Any, size: Any) -> dict[str, Any]:
        return {"logits": image[:, :4] * size[:, None]}

    plain = expert(1, signals=("logits",))
    wide = FunctionTeacher("wide", sized, ("image", "size"), ("logits",))
    teacher, size = routed(de=plain, fr=wide, it=plain), np.ones(30, np.float32)
    taught(tmp_path / "c", teacher.rows(data(size=size)), teacher)
    heard, rows = Heard(), data(size=size * 2)
    snapshot = taught(tmp_path / "c", teacher.rows(rows), teacher, listen=heard)
    assert heard.taught == languages(rows).count("fr")
    french = np.array(languages(rows)) == "fr"
    expected = images(30)[:, :4] * np.where(french, 2, 1)[:, None]
    np.testing.assert_array_equal(answers(snapshot, rows), expected.astype(np.float32))


def test_rows_in_another_order_are_the_same_rows(tmp_path: Path) -> None:
    rows, teacher = data(), routed()
    taught(tmp_path / "c", teacher.rows(rows), teacher)
    order, heard = np.random.default_rng(0).permutation(30), Heard()
    batch = rows.read(order, rows.columns)
    turned = ArrayRows([f"r{i}" for i in order], **batch)
    taught(tmp_path / "c", teacher.rows(turned), teacher, listen=heard)
    assert heard.taught == 0


def test_whole_numbers_route_as_texts_do(tmp_path: Path) -> None:
    rows = data(language=np.arange(30) % 2)
    teacher = RoutedTeacher("experts", "language", {0: expert(2), 1: expert(3)})
    snapshot = taught(tmp_path / "c", teacher.rows(rows), teacher)
    factor = np.where(np.arange(30) % 2, 3, 2).astype(np.float32)[:, None]
    np.testing.assert_array_equal(answers(snapshot, rows), images(30)[:, :4] * factor)


def test_views_of_routed_rows_are_answered_by_the_rows_experts(tmp_path: Path) -> None:
    rows = data(12, image=np.random.default_rng(0).random((12, 1, 4, 4), np.float32))
    flat: dict[str | int, Teacher] = {
        r: expert(i + 1, answer=flattened[i], signals=("logits",)) for i, r in enumerate(ROUTES)
    }
    teacher = RoutedTeacher("experts", "language", flat)
    plan = ViewPlan((Flip(),), seed=1)
    viewed = ViewedRows(teacher.rows(rows), plan, views=2)
    shown = ViewedTeacher(teacher, plan)
    snapshot = taught(tmp_path / "c", viewed, shown)
    for place in range(len(viewed)):
        batch = viewed.read(np.array([place]), ["image", "language"])
        route = str(batch["language"][0])
        expected = flat[route].load()({"image": batch["image"]})["logits"][0]
        assert same(answers(snapshot, viewed)[place], expected)
    changed = replace(teacher, teachers={**flat, "fr": expert(9, signals=("logits",))})
    with pytest.raises(RowsError, match="routed to other experts"):
        taught(tmp_path / "c", viewed, ViewedTeacher(changed, plan))


def one(image: Any) -> dict[str, Any]:
    return {"logits": image.reshape(len(image), -1)[:, :4]}


def two(image: Any) -> dict[str, Any]:
    return {"logits": image.reshape(len(image), -1)[:, 4:8]}


def three(image: Any) -> dict[str, Any]:
    return {"logits": image.reshape(len(image), -1)[:, 8:12]}


flattened = [one, two, three]


def test_an_expert_is_loaded_with_the_first_row_that_needs_it(tmp_path: Path) -> None:
    noted = {r: Noted(expert(1 + i), tmp_path / "log") for i, r in enumerate(ROUTES)}
    teacher = routed(**noted)
    taught(tmp_path / "c", teacher.rows(data(language=["fr"] * 30)), teacher)
    assert (tmp_path / "log").read_text() == "x2\n"  # one, once, in eight batches
    taught(tmp_path / "c", teacher.rows(data(language=["fr"] * 29 + ["it"])), teacher)
    assert (tmp_path / "log").read_text() == "x2\nx3\n"


def test_modules_are_experts_and_where_they_are_read_from_is_part_of_them(tmp_path: Path) -> None:
    first = network("one", layers={"logits": ""})
    second = network("two", layers={"logits": "2"})  # the same numbers, said to be from elsewhere
    teacher = routed(de=first, fr=second, it=first)
    assert teacher.asks()["logits"].source == "by language"
    assert teacher.experts()["de"] != teacher.experts()["fr"]
    rows = data()
    snapshot = taught(tmp_path / "c", teacher.rows(rows), teacher, batch_size=30, shard_rows=30)
    for route in ROUTES:
        places = [i for i, language in enumerate(languages(rows)) if language == route]
        expected = alone(teacher.teachers[route], rows, places)["logits"]
        np.testing.assert_array_equal(answers(snapshot, rows)[places], expected)


def test_the_cache_is_cared_for_as_any_other(tmp_path: Path) -> None:
    rows, teacher = data(), routed()
    given = teacher.rows(rows)
    taught(tmp_path / "c", given, teacher)
    cache = Cache(tmp_path / "c")
    assert audit(cache, given, teacher, runner=LocalRunner()).faithful
    posing = Noted(expert(2), tmp_path / "log", answers=expert(9).load())
    other = replace(teacher, teachers={**teacher.teachers, "fr": replace(posing, files=[])})
    assert other.experts() == teacher.experts()
    assert not audit(cache, given, other, runner=LocalRunner()).faithful
    build, arguments = given.__reduce__()  # as a runner sends it
    again = build(*arguments)
    assert again.fingerprint(teacher.inputs) == given.fingerprint(teacher.inputs)
    np.testing.assert_array_equal(again.hashes(teacher.inputs), given.hashes(teacher.inputs))


def test_people_may_be_experts_too(tmp_path: Path) -> None:
    people = TableTeacher("people", labels=("x", "y"))
    where = ["net", "people", "net", "people"]
    rows = data(4, language=where)
    votes = FunctionTeacher("net", certain, ("image",), ("votes",))
    teacher = RoutedTeacher("experts", "language", {"net": votes, "people": people})
    rated = people.rows(rows, long_ratings(everybody()))
    snapshot = taught(tmp_path / "c", teacher.rows(rated), teacher)
    assert answers(snapshot, rows, "votes").tolist() == [[1, 0], [0.5, 0.5], [1, 0], [0, 1]]


def everybody() -> dict[str, list[str]]:
    """A rating for every row: the column has to be there for all."""
    key = ["r0", "r1", "r1", "r2", "r3"]
    return {"key": key, "rater": ["a", "a", "b", "a", "a"], "label": ["x", "x", "y", "x", "y"]}


def certain(image: Any) -> dict[str, Any]:
    return {"votes": np.tile(np.array([1, 0], np.float32), (len(image), 1))}


@pytest.mark.slow
def test_workers_of_ray_answer_as_this_process_does(tmp_path: Path, ray_runner: RayRunner) -> None:
    from ray import cloudpickle

    rows, teacher = data(), routed()
    here = taught(tmp_path / "a", teacher.rows(rows), teacher)
    cloudpickle.register_pickle_by_value(routed_builders)  # type: ignore[no-untyped-call]
    there = taught(tmp_path / "b", teacher.rows(rows), teacher, runner=ray_runner)
    cloudpickle.unregister_pickle_by_value(routed_builders)  # type: ignore[no-untyped-call]
    for name in ("logits", "tokens", "said"):
        assert same(answers(here, rows, name), answers(there, rows, name))
