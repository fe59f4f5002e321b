"""Views hang on seed, key and view alone, and teaching them keeps what is still true."""

from __future__ import annotations

import copy
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stillroom.pipeline import LocalRunner, RayRunner
from stillroom.stages import ArrayRows, FunctionTeacher, audit, plan_teach
from stillroom.stages.plans.teach_plan import TeachState
from stillroom.stages.views import boxes
from stillroom.stages.views import plan as view_plan
from stillroom.stages.views import resizing as view_resizing
from stillroom.stages.views import rows as views_module
from stillroom.stages.views.boxes import Crop, Flip
from stillroom.stages.views.mixing import Mixup
from stillroom.stages.views.pixels import Colour, Mask
from stillroom.stages.views.plan import ViewPlan
from stillroom.stages.views.rows import ViewedRows
from stillroom.stages.views.teacher import ViewedTeacher
from stillroom.storage import Cache, RowsError, SignalError
from stillroom.storage.code import code_digest
from stillroom.storage.pairs import spelled
from tests.stages import view_builders
from tests.stages.builders import Heard, Shuffled, chosen, taught, tree
from tests.stages.view_builders import EVERY, album, gaze, looker, photos, viewed

SEEN = ["image", "view.parameters", "view.seen"]


def test_views_hang_on_no_order_no_batch_and_no_other_row() -> None:
    plan, rows = ViewPlan(EVERY[:-2]), album()
    shown = ViewedRows(rows, plan, views=3)
    whole = shown.read(np.arange(len(shown)), [*SEEN, "mask"])
    places = np.random.default_rng(0).permutation(len(shown))
    some = shown.read(places, [*SEEN, "mask"])
    for name, column in whole.items():
        np.testing.assert_array_equal(np.asarray(column)[places], np.asarray(some[name]))
    turned = ViewedRows(chosen(rows, [7, 3]), plan, views=1)
    alone: Any = turned.read(np.arange(4), SEEN)
    at = [spelled(shown.keys).index(pair) for pair in spelled(turned.keys)]
    assert spelled(turned.keys) == [("p7", 0), ("p3", 0), ("p7", 1), ("p3", 1)]
    assert (alone["view.seen"] == np.asarray(whole["view.seen"])[at]).all()
    assert (turned.hashes(SEEN) == shown.hashes(SEEN)[at]).all()
    assert (np.asarray(alone["image"])[:2] == photos(12)[[7, 3]]).all()


def test_a_data_set_of_views_travels_as_what_it_is_made_of(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shown = ViewedRows(album(), ViewPlan(EVERY), views=2, only=["p1", "p2", "p3"])
    hashes = shown.hashes(SEEN)
    monkeypatch.setattr(views_module, "_TOGETHER", 5)
    assert shown.hashes(SEEN).tobytes() == hashes.tobytes()
    other = copy.copy(shown)
    assert not {"keys", "_words"} & set(vars(other))  # nothing that was made of it was sent along
    assert other.keys.equals(shown.keys)
    assert other.hashes(SEEN).tobytes() == hashes.tobytes()
    assert other.fingerprint(SEEN) == shown.fingerprint(SEEN)
    assert spelled(shown.keys)[10:14] == [("p10", 0), ("p11", 0), ("p1", 1), ("p2", 1)]


def test_partners_are_drawn_among_the_chosen_rows_and_move_little() -> None:
    plan, keys = ViewPlan((Mixup(1.0),)), [f"p{i}" for i in range(200)]
    rows = album(200)
    shown = ViewedRows(rows, plan, views=2, only=keys[:150], plain=False)
    partner = np.array(shown.read(np.arange(len(shown)), ["view.partner"])["view.partner"])
    assert set(partner) <= {*keys[:150]}
    own = np.array([key for key, _ in spelled(shown.keys)])
    assert (partner != own).all()
    assert len(set(partner[:150])) > 60  # not a few favourites
    assert (partner[:150] != partner[150:]).mean() > 0.9
    fewer = ViewedRows(rows, plan, views=2, only=keys[1:150], plain=False)
    left = np.array(fewer.read(np.arange(len(fewer)), ["view.partner"])["view.partner"])
    was = np.array([p for p, k in zip(partner, own, strict=True) if k != "p0"])
    assert (left != was).sum() == (was == "p0").sum() < 20
    alone = ViewedRows(album(1), plan, views=1, plain=False)
    assert alone.read(np.array([0]), ["view.partner"])["view.partner"] == ["p0"]


def test_numbered_keys_have_numbered_partners(tmp_path: Path) -> None:
    rows = ArrayRows(range(100, 112), image=photos(12))
    snapshot = viewed(tmp_path, ViewPlan((Mixup(1.0),)), rows)
    assert snapshot.signals["partner"].dtype == "int64"


def test_an_edit_changes_a_row_and_those_that_it_is_a_partner_of() -> None:
    plan = ViewPlan((Crop(), Mixup(1.0)))
    before, after = (ViewedRows(album(edited=e), plan, views=3) for e in ((), (4,)))
    partner = before.read(np.arange(len(before)), ["view.partner"])["view.partner"]
    changed = before.hashes(SEEN) != after.hashes(SEEN)
    involved = [
        key == "p4" or other == "p4"
        for (key, _), other in zip(spelled(before.keys), partner, strict=True)
    ]
    assert changed.tolist() == involved
    assert 4 < sum(involved) < 20
    assert before.fingerprint(SEEN) != after.fingerprint(SEEN)
    assert (before.hashes(["label"]) == after.hashes(["label"])).all()


def _taught_now(folder: Path, plan: ViewPlan, **how: Any) -> int:
    heard = Heard()
    viewed(folder, plan, listen=heard, **how)
    return heard.taught


def test_only_what_is_new_is_taught(tmp_path: Path) -> None:
    plan = ViewPlan((Crop((0.5, 1.0)), Flip(), Mixup(1.0)))
    assert _taught_now(tmp_path, plan, views=2) == 36
    assert _taught_now(tmp_path, plan, views=2) == 0
    assert _taught_now(tmp_path, plan, views=3) == 12
    assert _taught_now(tmp_path, plan, views=1) == 0
    order = list(range(12))[::-1]
    assert _taught_now(tmp_path, plan, views=3, rows=chosen(album(), order)) == 0
    shown = ViewedRows(album(), plan, views=3)
    partner = shown.read(np.arange(12, 48), ["view.partner"])["view.partner"]
    own = [key for key, _ in spelled(shown.keys)[12:]]
    involved = sum("p4" in pair for pair in zip(own, partner, strict=True))
    assert _taught_now(tmp_path, plan, views=3, rows=album(edited=[4])) == 1 + involved
    wider = ViewPlan((Crop((0.4, 1.0)), Flip(), Mixup(1.0)))
    state = TeachState(
        Cache(tmp_path), ViewedRows(album(), wider, views=3), ViewedTeacher(looker(), wider)
    )
    assert state.plan().to_compute == 48
    assert "views.transforms" in state.plan().why


def test_plain_teachers_keep_their_place_beside_viewed_ones(tmp_path: Path) -> None:
    taught(tmp_path, album(), looker("plain"))
    snapshot = viewed(tmp_path, ViewPlan((Flip(),)))
    assert {"plain/logits", "looker/logits", "view", "seen"} == set(snapshot.signals)
    assert snapshot.rows == 36
    heard = Heard()
    again = taught(tmp_path, album(), looker("plain"), listen=heard)
    assert heard.taught == 0
    assert again.rows == 12


def test_a_teacher_must_be_told_of_views_and_of_the_same_plan(tmp_path: Path) -> None:
    plan, other = ViewPlan((Flip(),)), ViewPlan((Flip(),), seed=1)
    shown = ViewedRows(album(), plan, views=1)
    for teacher in (looker(), ViewedTeacher(looker(), other)):
        with pytest.raises(RowsError, match="Wrap it: ViewedTeacher"):
            plan_teach(Cache.at(tmp_path), shown, teacher)
    with pytest.raises(RowsError, match=r"view\.parameters"):
        plan_teach(Cache.at(tmp_path), album(), ViewedTeacher(looker(), plan))
    with pytest.raises(RowsError, match="not the column 'image'"):
        ViewedTeacher(looker(inputs=("label",)), plan)
    with pytest.raises(SignalError, match="'seen'"):
        ViewedTeacher(FunctionTeacher("t", gaze, ("image",), ("seen",)), plan).asks()


def test_data_sets_without_views_are_refused() -> None:
    plan = ViewPlan((Flip(),))
    for image, words in (
        (photos(4, (8, 6)), "three axes"),
        (photos(4).astype("float64"), "uint8 or float32"),
        (["a"] * 4, "uint8 or float32"),
    ):
        with pytest.raises(RowsError, match=words):
            ViewedRows(_rows(image), plan, views=1)
    with pytest.raises(RowsError, match="column 'image'"):
        ViewedRows(ArrayRows([1], label=np.zeros(1)), plan, views=1)
    with pytest.raises(RowsError, match="plain=False"):
        ViewedRows(album(), ViewPlan((Crop(size=(4, 4)),)), views=1)
    with pytest.raises(RowsError, match="do not fill"):
        ViewedRows(album(), ViewPlan((Mask(5),)), views=1)
    with pytest.raises(RowsError, match="1 or 3 channels"):
        ViewedRows(album(), ViewPlan((Colour(),), layout="HWC"), views=1)
    with pytest.raises(RowsError, match="not in the data set: nobody"):
        ViewedRows(album(), plan, views=1, only=["p1", "nobody"])
    with pytest.raises(RowsError, match="plain rows"):
        ViewedRows(ViewedRows(album(), plan, views=1), plan, views=1)
    with pytest.raises(ValueError, match="at least 1"):
        ViewedRows(album(), plan, views=0)


def _rows(image: Any) -> Any:
    return ArrayRows(range(len(image)), image=image)


def test_identity_is_the_same_in_another_process_and_names_code_and_library() -> None:
    identity = ViewPlan(EVERY).identity()
    assert identity["libraries"] == {"numpy": np.__version__}
    code = (
        "from tests.stages.view_builders import EVERY; from stillroom.stages.views.plan import ViewPlan;"
        "print(ViewPlan(EVERY).identity()['code'])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == identity["code"]


def shifted(images: Any, box: Any, size: Any) -> Any:
    """A resize of another library, which takes the pixel beside."""
    moved = box.copy()
    moved[:, 1] = np.maximum(box[:, 1] - 1, 0)
    return view_resizing.nearest(images, moved, size)


def test_another_transform_is_another_teacher(monkeypatch: pytest.MonkeyPatch) -> None:
    plan, other = ViewPlan((Crop(),)), ViewPlan((Flip(),))
    before = plan.identity(), other.identity()
    monkeypatch.setattr(boxes, "bilinear", shifted)
    view_plan._code.cache_clear()
    assert plan.identity()["code"] != before[0]["code"]
    assert other.identity() == before[1]  # a plan without crops does not mind
    assert code_digest(shifted)
    monkeypatch.setattr(np, "__version__", "9.9")
    assert other.identity() != before[1]
    view_plan._code.cache_clear()


def test_any_order_of_shards_gives_the_same_bytes(tmp_path: Path) -> None:
    plan = ViewPlan(EVERY)
    viewed(tmp_path / "a", plan)
    viewed(tmp_path / "b", plan, runner=Shuffled(3), batch_size=3)
    assert tree(tmp_path / "a") == tree(tmp_path / "b")


@pytest.mark.slow
def test_ray_gives_the_same_bytes(tmp_path: Path, ray_runner: RayRunner) -> None:
    from ray import cloudpickle

    cloudpickle.register_pickle_by_value(view_builders)  # type: ignore[no-untyped-call]
    plan = ViewPlan(EVERY)
    viewed(tmp_path / "a", plan)
    viewed(tmp_path / "b", plan, runner=ray_runner)
    assert tree(tmp_path / "a") == tree(tmp_path / "b")


@pytest.mark.parametrize("hidden", [False, True])
def test_audit_finds_mirrored_views(tmp_path: Path, hidden: bool) -> None:
    """Answers to flipped images, with right checksums; `hidden`: and with parameters that say so."""
    plan = ViewPlan((Crop((0.5, 1.0)), Flip()))
    rows, teacher = ViewedRows(album(), plan, views=1, plain=False), ViewedTeacher(looker(), plan)
    cache = Cache.at(tmp_path)
    state = TeachState(cache, rows, teacher)
    with cache.writing(state.digest):
        draft = cache.draft(
            *(teacher.name, state.identity, state.asked, rows.keys, state.own.hashes), 4
        )
        for shard in draft.shards():
            batch: dict[str, Any] = rows.read(np.arange(shard.start, shard.stop), teacher.inputs)
            if shard.index == 1:
                batch["image"] = np.ascontiguousarray(batch["image"][..., ::-1])
                if hidden:
                    batch["view.parameters"]["flip"] ^= True
                    seen = plan.seen(batch["image"], None)
                    batch["view.seen"] = seen.view(np.uint8).reshape(-1, 16)
            draft.write(shard, teacher.load()(batch), {})
        draft.seal()
        cache.commit(lambda: state.served(cache.segments()), "planted")
    report = audit(cache, rows, teacher, runner=LocalRunner())
    assert {p.shard for p in report.problems()} == {1}
    assert {p.signal for p in report.problems()} == (
        {"logits", "view", "seen"} if hidden else {"logits"}
    )
    assert "', 1): differs by" in report.problems()[0].what
